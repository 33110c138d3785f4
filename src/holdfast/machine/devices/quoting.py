"""QEMU's two option syntaxes, written so that no value can end its option early.

JSON where QEMU 7.2 reads it (-blockdev, -device, -netdev, -object); elsewhere `key=value` with
every comma inside a value doubled (QEMU, util/keyval.c and util/qemu-option.c).
"""

import json
from collections.abc import Mapping
from typing import Any


def quoted(value: object) -> str:
    """A value for `key=value` syntax."""
    return str(value).replace(",", ",,")


def option(flag: str, value: Mapping[str, Any]) -> list[str]:
    """`flag` with its value as JSON; keys keep their order, other letters than ASCII are escaped."""
    return [flag, json.dumps(value, separators=(",", ":"))]


def blockdev(value: Mapping[str, Any]) -> list[str]:
    return option("-blockdev", value)


def device(driver: str, **properties: Any) -> list[str]:
    """A device; `_` in a property's name stands for `-`, and None leaves the property out."""
    named = {name.replace("_", "-"): each for name, each in properties.items() if each is not None}
    return option("-device", {"driver": driver, **named})


def backend(kind: str, **properties: Any) -> list[str]:
    """A user-creatable object."""
    named = {name.replace("_", "-"): each for name, each in properties.items() if each is not None}
    return option("-object", {"qom-type": kind, **named})
