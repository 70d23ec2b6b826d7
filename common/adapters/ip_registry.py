"""Where an address is registered, offline: `iptocc` carries what the five regional internet registries delegated.

Its data is as old as the pinned version: a new one is published every night. A registry records the country a block was
assigned in, which is the machine's own for about 19 addresses in 20.
"""

from __future__ import annotations


def country_of(ip: str) -> str | None:
    """`region.CountryOfIp`. Loaded with the first call (about 1 ms): few machines come without a place."""
    import iptocc

    return iptocc.country_code(ip)
