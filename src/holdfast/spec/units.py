"""Sizes in bytes: parsing what people write, and writing what people read (IEC 80000-13 units)."""

import re
from typing import Annotated

from pydantic import BeforeValidator

from holdfast.spec.errors import InvalidInput

KIB = 1024
MIB = 1024**2
GIB = 1024**3
TIB = 1024**4

_FACTORS = {"": 1, "k": KIB, "m": MIB, "g": GIB, "t": TIB, "p": 1024**5}
_SIZE = re.compile(r"\s*(\d{1,19}(?:\.\d{1,6})?)\s*([kmgtp]?)(i?b?)\s*", re.IGNORECASE | re.ASCII)


class BadSize(InvalidInput):
    id = "bad-size"


def parse_size(text: str | int) -> int:
    """Bytes of `1GiB`, `512M`, `1.5g`, `1073741824`. Every prefix is a power of 1024.

    Raises:
        BadSize: it is not a size, is negative, or is not a whole number of bytes.
    """
    if isinstance(text, bool):
        raise BadSize(f"{text!r} is not a size", value=text, cure="Write for example 512MiB or 8GiB.")
    if isinstance(text, int):
        size: float = text
    else:
        match = _SIZE.fullmatch(text)
        if not match:
            raise BadSize(
                f"{text[:60]!r} is not a size",
                value=text[:60],
                cure="Write a number and a unit, for example 512MiB or 8GiB.",
            )
        number, prefix, _ = match.groups()
        factor = _FACTORS[prefix.lower()]
        size = float(number) * factor if "." in number else int(number) * factor
    if size < 0 or size != int(size) or size >= 2**63:
        raise BadSize(
            f"{text!r} is not a whole, representable number of bytes",
            value=str(text),
            cure="Write a number and a unit, for example 512MiB or 8GiB.",
        )
    return int(size)


def format_size(size: int) -> str:
    """`1.5 GiB`, `512 MiB`, `0 B`: three significant digits at most, for people."""
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(value) < 1024:
            return f"{value:.3g} {unit}" if value < 1000 else f"{value:.0f} {unit}"
        value /= 1024
    return f"{value:.3g} PiB"


def _parse(value: object) -> object:
    if isinstance(value, str | int):
        try:
            return parse_size(value)
        except BadSize as error:
            raise ValueError(f"{error.message}. {error.cure}") from error
    return value


Size = Annotated[int, BeforeValidator(_parse)]
"""Bytes. Accepts `"1GiB"` as well as an integer."""
