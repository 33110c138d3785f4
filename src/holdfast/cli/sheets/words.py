"""Values in words: sizes, lengths of time, moments, yes and no."""

from datetime import datetime
from typing import Any

from holdfast.spec.units import format_size

_HEX = 12


def size(value: int | None) -> str | None:
    return None if value is None else format_size(value)


def duration(seconds: float | None) -> str | None:
    """`31.3 s`, `4 min 12 s`, `2 h 05 min`, `3 d 4 h`."""
    if seconds is None:
        return None
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes:02d} min"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h"


def moment(value: str | None) -> str | None:
    """A time of the wire form in this machine's own time zone, to the second."""
    if value is None:
        return None
    return datetime.fromisoformat(value).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def percent(value: float) -> str:
    return f"{value:.0%}"


def short_digest(digest: str) -> str:
    """`sha256:` and the first digits, enough for a person to tell images apart."""
    kind, _, digits = digest.partition(":")
    return f"{kind}:{digits[:_HEX]}"


def ranges(numbers: list[int]) -> str:
    """`0-3,8`: whole numbers in ascending order, runs joined."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in parts)


def pairs(data: dict[str, Any]) -> str:
    """`key=value` of a flat dict; what is nothing is left out."""
    shown = {key: ",".join(map(str, each)) if isinstance(each, list) else each for key, each in data.items()}
    return " ".join(f"{key}={each}" for key, each in shown.items() if each not in (None, "", {}))
