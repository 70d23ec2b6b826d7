"""Pauses between tries that never give up."""

DOUBLINGS_MAX = 30
"""More than any bound leaves room for. Who tries for days comes to 2**1024, which no float holds."""


def pause_s(first_s: float, tries: int, *, max_s: float) -> float:
    """Before the next try: doubled with each of the `tries` in a row that failed before the last one, up to `max_s`."""
    return float(min(first_s * 2 ** min(tries, DOUBLINGS_MAX), max_s))
