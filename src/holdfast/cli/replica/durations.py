"""Lengths of time as people write them."""

import re

from holdfast.spec.errors import InvalidInput

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_DURATION = re.compile(r"(\d{1,6}(?:\.\d{1,3})?)([smhd]?)", re.ASCII)


class BadDuration(InvalidInput):
    id = "bad-duration"


def every(text: str) -> float:
    """Seconds of `every=1h`; `none` is 0. Raises BadDuration."""
    said = text.strip()
    return 0.0 if said == "none" else seconds(said.removeprefix("every="))


def seconds(text: str) -> float:
    """Of `1s`, `15m`, `2h`, `1d`; a number alone is seconds. Raises BadDuration."""
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise BadDuration(
            f"{text[:40]!r} is no length of time", value=text[:40], cure="Write for example 1s, 15m or 2h."
        )
    return float(match[1]) * _UNITS[match[2] or "s"]
