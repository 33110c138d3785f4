"""QEMU's option syntax: a comma inside a value is doubled (QEMU, util/keyval.c)."""

import json
from typing import Any


def quoted(value: object) -> str:
    return str(value).replace(",", ",,")


def blockdev(value: dict[str, Any]) -> list[str]:
    return ["-blockdev", json.dumps(value, separators=(",", ":"))]
