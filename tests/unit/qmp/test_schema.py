"""Looking things up in a schema, also in one that is broken or goes in circles."""

from typing import Any

import pytest

from holdfast.qmp.schema import Schema

ENTRIES: list[dict[str, Any]] = [
    {"name": "add", "meta-type": "command", "arg-type": "1"},
    {"name": "GONE", "meta-type": "event", "arg-type": "0"},
    {
        "name": "1",
        "meta-type": "object",
        "tag": "driver",
        "members": [{"name": "driver", "type": "2"}, {"name": "list", "type": "[1]"}],
        "variants": [{"case": "file", "type": "3"}],
    },
    {"name": "2", "meta-type": "enum", "values": ["file"], "members": [{"name": "nbd"}]},
    {"name": "3", "meta-type": "object", "members": [{"name": "below", "type": "4"}]},
    {"name": "4", "meta-type": "alternate", "members": [{"type": "1"}, {"type": "str"}]},
    {"name": "[1]", "meta-type": "array", "element-type": "1"},
    {"name": "loop", "meta-type": "command", "arg-type": "[l]"},
    {"name": "[l]", "meta-type": "array", "element-type": "[l]"},
    {"name": "str", "meta-type": "builtin", "json-type": "string"},
]


def test_commands_and_events() -> None:
    schema = Schema(ENTRIES)
    assert schema.has_command("add")
    assert not schema.has_command("GONE")
    assert schema.has_event("GONE")
    assert not schema.has_event("add")


@pytest.mark.parametrize("path", ["driver", "below", "below.below.driver", "list.driver", "list.below.list"])
def test_arguments_that_are_there(path: str) -> None:
    assert Schema(ENTRIES).has_argument("add", path)


@pytest.mark.parametrize("path", ["", "no", "driver.no", "below.no", "."])
def test_arguments_that_are_not(path: str) -> None:
    assert not Schema(ENTRIES).has_argument("add", path)
    assert not Schema(ENTRIES).has_argument("GONE", path)


def test_values() -> None:
    schema = Schema(ENTRIES)
    assert schema.has_enum_value("add", "driver", "file")
    assert schema.has_enum_value("add", "below.list.driver", "nbd")
    assert not schema.has_enum_value("add", "driver", "ssh")
    assert not schema.has_enum_value("add", "list", "file")


def test_circles_end() -> None:
    assert not Schema(ENTRIES).has_argument("loop", "a")


@pytest.mark.parametrize(
    "entries", [None, 1, [1], [{}], [{"name": 3}], [{"name": "add", "meta-type": "command"}]]
)
def test_what_is_no_schema_has_nothing(entries: Any) -> None:
    assert not Schema(entries).has_argument("add", "driver")
