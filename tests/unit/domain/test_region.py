"""From a marketplace's free text to the nearest Google Cloud region."""

from __future__ import annotations

import pytest

from common.domain.region import (
    _places,
    country_of,
    estimated_rtt_ms,
    great_circle_km,
    near,
    nearest,
    nowhere,
    place_of,
    place_of_machine,
    region_of,
    regions,
)
from tests.unit.domain.test_strategy import offer

NEAREST = {
    # Vast.ai: subdivision and country code, sometimes without the one, sometimes written out
    "California, US": "us-west2",
    "Texas, US": "us-south1",
    "Oregon, US": "us-west1",
    "Washington, US": "us-west1",
    "Nevada, US": "us-west4",
    "Arizona, US": "us-west4",
    "Utah, US": "us-west3",
    "Idaho, US": "us-west3",
    "Montana, US": "us-west3",
    "Colorado, US": "us-west3",
    "Wyoming, US": "us-west3",
    "Iowa, US": "us-central1",
    "Nebraska, US": "us-central1",
    "Missouri, US": "us-central1",
    "Minnesota, US": "us-central1",
    "Illinois, US": "us-east5",
    "Ohio, US": "us-east5",
    "Michigan, US": "us-east5",
    "Virginia, US": "us-east4",
    "Maryland, US": "us-east4",
    "New Jersey, US": "us-east4",
    "New York, US": "us-east4",
    "Pennsylvania, US": "us-east4",
    "Massachusetts, US": "northamerica-northeast1",
    "North Carolina, US": "us-east1",
    "Georgia, US": "us-east1",
    "Florida, US": "us-east1",
    "Oklahoma, US": "us-south1",
    "Louisiana, US": "us-south1",
    ", US": "us-central1",
    "US": "us-central1",
    "California, United States": "us-west2",
    "Quebec, CA": "northamerica-northeast1",
    "Québec, CA": "northamerica-northeast1",
    "Ontario, CA": "northamerica-northeast2",
    "Ontario, Canada": "northamerica-northeast2",
    "British Columbia, CA": "us-west1",
    "Alberta, CA": "us-west1",
    ", CA": "northamerica-northeast1",
    "Sweden, SE": "europe-north1",
    "Norway": "europe-west4",
    "Norway, NO": "europe-west4",
    "Vestland, NO": "europe-west4",
    "Finland, FI": "europe-north1",
    "Estonia, EE": "europe-north1",
    "Denmark, DK": "europe-west10",
    "Germany, DE": "europe-west3",
    "Berlin, DE": "europe-west10",
    "Hesse, DE": "europe-west3",
    "Bavaria, DE": "europe-west6",
    "Netherlands, NL": "europe-west4",
    "North Holland, NL": "europe-west4",
    "Belgium, BE": "europe-west1",
    "France, FR": "europe-west9",
    "Île-de-France, FR": "europe-west9",
    "United Kingdom, GB": "europe-west2",
    "England, GB": "europe-west2",
    "Ireland, IE": "europe-west2",
    "Iceland, IS": "europe-west2",
    "Spain, ES": "europe-southwest1",
    "Portugal, PT": "europe-southwest1",
    "Lombardy, IT": "europe-west8",
    "Piedmont, IT": "europe-west12",
    "Switzerland, CH": "europe-west6",
    "Austria, AT": "europe-west10",
    "Poland, PL": "europe-central2",
    "Czechia, CZ": "europe-west10",
    "Hungary, HU": "europe-central2",
    "Ukraine, UA": "europe-central2",
    "Lithuania, LT": "europe-central2",
    "Romania, RO": "europe-central2",
    "Bulgaria, BG": "europe-central2",
    "Tbilisi, Georgia": "me-west1",
    "Israel, IL": "me-west1",
    "Turkey, TR": "me-west1",
    "United Arab Emirates, AE": "me-central1",
    "Maharashtra, IN": "asia-south1",
    "Karnataka, IN": "asia-south1",
    "Delhi, IN": "asia-south2",
    "Singapore, SG": "asia-southeast1",
    "Malaysia, MY": "asia-southeast1",
    "Thailand, TH": "asia-southeast1",
    "Indonesia, ID": "asia-southeast2",
    "Vietnam, VN": "asia-east2",
    "Hong Kong, HK": "asia-east2",
    "Guangdong, CN": "asia-east2",
    "Taiwan, TW": "asia-east1",
    "South Korea, KR": "asia-northeast3",
    "Japan, JP": "asia-northeast1",
    "Yutakachō, Shinagawa District, Tokyo, JP": "asia-northeast1",
    "Osaka, JP": "asia-northeast2",
    "New South Wales, AU": "australia-southeast1",
    "Victoria, AU": "australia-southeast2",
    "New Zealand, NZ": "australia-southeast1",
    "São Paulo, BR": "southamerica-east1",
    "Argentina, AR": "southamerica-west1",
    "Chile, CL": "southamerica-west1",
    "Gauteng, ZA": "africa-south1",
    # TensorDock: city, state or province, country by name
    "Chubbuck, Idaho, United States": "us-west3",
    "Dallas, Texas, USA": "us-south1",
    "Toronto, Ontario, Canada": "northamerica-northeast2",
    "Oslo, Oslo, Norway": "europe-west4",
    "Frankfurt, Hesse, Germany": "europe-west3",
    "Ontario, California, United States": "us-west2",
}


@pytest.mark.parametrize("text", NEAREST)
def test_free_text_has_its_nearest_region(text: str) -> None:
    place = place_of(text)

    assert place
    assert nearest(place).region.name == NEAREST[text]


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        " ",
        ",",
        "somewhere",
        "Narnia, ZZ",
        "Narnia, Atlantis",
        "Dallas, TX",
        "Chicago, IL",
        "Indiana, IN",
        "42",
    ],
)
def test_what_is_not_known_or_contradicts_itself_is_never_guessed(text: str | None) -> None:
    assert place_of(text) is None


def test_the_american_georgia_is_not_the_country() -> None:
    assert place_of("Atlanta, Georgia") is None
    assert place_of("Smyrna, Georgia") is None
    assert (place := place_of("Georgia")) and place.country == "GE"
    assert (place := place_of("Atlanta, Georgia, US")) and (place.country, place.precision) == ("US", "city")


@pytest.mark.parametrize(
    ("text", "precision"),
    [
        ("Dallas, Texas, USA", "city"),
        ("Texas, US", "subdivision"),
        ("TX, US", "subdivision"),
        ("Nowhere, US", "country"),
    ],
)
def test_how_much_of_the_text_was_understood_is_told(text: str, precision: str) -> None:
    place = place_of(text)

    assert place
    assert place.precision == precision


@pytest.mark.parametrize("geolocation", ["Chicago, IL", "Smyrna, Georgia", "Narnia, ZZ", None])
def test_a_text_that_says_nothing_leaves_it_to_the_address_and_never_to_its_own_end(geolocation: str | None) -> None:
    machine = offer().model_copy(
        update={"geolocation": geolocation, "country": country_of(geolocation), "public_ip": "18.18.0.1"}
    )

    assert place_of_machine(machine, nowhere) is None
    place = place_of_machine(machine, {"18.18.0.1": "US"}.get)
    assert place
    assert (place.country, place.precision, place.told_by) == ("US", "country", "ip")


def test_an_address_learnt_later_counts_and_one_of_no_known_country_does_not() -> None:
    machine = offer().model_copy(update={"country": None})
    registry = {"128.214.1.1": "FI", "2.57.1.1": "EU"}.get

    place = place_of_machine(machine, registry, "128.214.1.1")
    assert place
    assert (place.country, place.told_by) == ("FI", "ip")
    assert place_of_machine(machine, registry, "2.57.1.1") is None
    assert place_of_machine(machine, registry, "ssh4.example") is None
    assert place_of_machine(machine, registry) is None


def test_every_place_of_the_tables_has_a_region_and_a_country() -> None:
    for kind in ("subdivisions", "cities"):
        assert set(_places()[kind]) <= set(_places()["countries"])
    for country in _places()["countries"]:
        place = place_of(country)
        assert place
        assert place.country == country == country_of(country)


def test_no_city_of_a_country_lies_beyond_the_reach_of_its_point() -> None:
    for country, cities in _places()["cities"].items():
        place = place_of(country)
        assert place
        reach_km = place.reach_km
        assert reach_km is not None
        beyond = {
            name for name, at in cities.items() if great_circle_km((place.latitude, place.longitude), at) > reach_km
        }
        assert beyond == ({"honolulu", "anchorage"} if country == "US" else set())


def test_the_united_states_are_where_their_people_live_and_not_where_their_land_is() -> None:
    place = place_of("US")

    assert place
    assert great_circle_km((place.latitude, place.longitude), (37.4157, -92.3465)) < 20  # the 2020 census' centre
    assert nearest(place).region.name == "us-central1"


def test_regions_come_nearest_first_with_zones_of_their_own() -> None:
    place = place_of("Belgium, BE")
    assert place

    found = near(place)

    assert [one.km for one in found] == sorted(one.km for one in found)
    assert len(found) == len(regions()) >= 38
    assert found[0].region.zones == ("europe-west1-b", "europe-west1-c", "europe-west1-d")
    assert all(region_of(zone) == name for name, region in regions().items() for zone in region.zones)


def test_the_estimate_is_the_fibres_and_never_below_a_millisecond() -> None:
    assert estimated_rtt_ms(1000) == pytest.approx(15.0)
    assert estimated_rtt_ms(333) == pytest.approx(5.0, abs=0.01)
    assert estimated_rtt_ms(0) == 1.0


def test_great_circles() -> None:
    paris, new_york = (48.86, 2.35), (40.71, -74.01)

    assert great_circle_km(paris, new_york) == pytest.approx(5837, rel=0.005)
    assert great_circle_km((0, 179), (0, -179)) == pytest.approx(222, rel=0.01)
    assert great_circle_km(paris, paris) == 0


def test_prices_are_plausible_everywhere() -> None:
    for region in regions().values():
        assert 0 < region.e2_medium_spot < region.e2_medium / 2
        assert region.pd_standard < region.pd_balanced
