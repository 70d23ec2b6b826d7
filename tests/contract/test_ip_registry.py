"""The country of an address, from the database that is really shipped: networks of universities, whose country is
theirs since they were assigned."""

from __future__ import annotations

import subprocess
import sys

import pytest

from common import bootstrap
from common.domain.region import place_of

UNIVERSITIES = {
    "129.132.1.1": "CH",  # ETH Zurich
    "131.111.8.1": "GB",  # Cambridge
    "130.237.1.1": "SE",  # Stockholm
    "130.225.1.1": "DK",  # Denmark's
    "128.214.1.1": "FI",  # Helsinki
    "129.240.1.1": "NO",  # Oslo
    "130.208.1.1": "IS",  # Iceland
    "193.40.1.1": "EE",  # Estonia's
    "134.157.1.1": "FR",  # Paris
    "131.188.1.1": "DE",  # Erlangen
    "131.155.1.1": "NL",  # Eindhoven
    "134.58.1.1": "BE",  # Leuven
    "134.226.1.1": "IE",  # Dublin
    "147.83.1.1": "ES",  # Barcelona
    "193.136.1.1": "PT",  # Portugal's
    "131.114.1.1": "IT",  # Pisa
    "147.32.1.1": "CZ",  # Prague
    "149.156.1.1": "PL",  # Cracow
    "147.102.1.1": "GR",  # Athens
    "141.85.1.1": "RO",  # Bucharest
    "194.141.1.1": "BG",  # Sofia
    "132.66.1.1": "IL",  # Tel Aviv
    "18.18.0.1": "US",  # MIT
    "128.32.0.1": "US",  # Berkeley
    "128.100.1.1": "CA",  # Toronto
    "132.248.1.1": "MX",  # Mexico City
    "143.107.1.1": "BR",  # Sao Paulo
    "133.11.1.1": "JP",  # Tokyo
    "166.111.1.1": "CN",  # Beijing
    "143.248.1.1": "KR",  # Daejeon
    "140.112.1.1": "TW",  # Taipei
    "147.8.1.1": "HK",  # Hong Kong
    "137.132.1.1": "SG",  # Singapore
    "14.139.1.1": "IN",  # India's
    "161.200.1.1": "TH",  # Bangkok
    "128.250.1.1": "AU",  # Melbourne
    "130.216.1.1": "NZ",  # Auckland
    "146.141.1.1": "ZA",  # Johannesburg
    "2001:638::1": "DE",  # Germany's
    "2001:720::1": "ES",  # Spain's
    "2607:f140::1": "US",  # Berkeley
}


@pytest.mark.parametrize("ip", UNIVERSITIES)
def test_a_public_address_has_the_country_it_is_registered_in_and_that_is_a_place(ip: str) -> None:
    country = bootstrap.country_of_ip(ip)

    assert country == UNIVERSITIES[ip]
    place = place_of(country)
    assert place
    assert place.country == country


@pytest.mark.parametrize(
    "ip",
    [
        *("10.1.1.1", "172.16.0.1", "192.168.1.1", "100.64.1.1", "127.0.0.1", "169.254.1.1", "0.0.0.0"),
        *("192.0.2.1", "198.51.100.1", "203.0.113.9", "198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255"),
        *("::", "::1", "fe80::1", "fc00::1", "ff02::1", "2001:db8::1", "::ffff:10.0.0.1"),
        *("", " ", "1.2.3", "1.2.3.4.5", "256.1.1.1", "18.18.0.1/24", "134744072", "0x12120001", "ssh4.example", "\0"),
        *("18.18.0.1\n", "é", "1" * 100_000),
    ],
)
def test_a_private_reserved_or_invalid_address_is_in_no_country(ip: str) -> None:
    assert bootstrap.country_of_ip(ip) is None


def test_the_database_is_loaded_with_the_first_address_and_not_before() -> None:
    code = (
        "import sys; from common import bootstrap, ports; from common.workflows import lifecycle, offers;"
        "before = 'iptocc' in sys.modules; found = bootstrap.country_of_ip('18.18.0.1');"
        "print(before, found, 'iptocc' in sys.modules)"
    )

    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)

    assert ran.stdout.split() == ["False", "US", "True"]
