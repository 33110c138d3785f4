"""QEMU's own description of its monitor: the answer to `query-qmp-schema` (QEMU, qapi/introspect.json).

A version number says little: distributions backport and leave out. Ask the schema instead.
"""

from collections.abc import Iterator
from typing import Any

_DEEPEST = 16  # types refer to one another in circles


class Schema:
    """Looks things up in one schema; holds no state of its own.

    Args:
        entries: the list that QEMU returned. Entries that cannot be understood are passed over.
    """

    def __init__(self, entries: Any) -> None:
        listed = entries if isinstance(entries, list) else []
        self._entries: dict[str, dict[str, Any]] = {
            entry["name"]: entry
            for entry in listed
            if isinstance(entry, dict) and isinstance(entry.get("name"), str)
        }

    def commands(self) -> frozenset[str]:
        return frozenset(name for name in self._entries if self.has_command(name))

    def has_command(self, command: str) -> bool:
        return self._entries.get(command, {}).get("meta-type") == "command"

    def has_event(self, event: str) -> bool:
        return self._entries.get(event, {}).get("meta-type") == "event"

    def has_argument(self, command: str, path: str) -> bool:
        """Whether a command takes the argument `path`, such as `a` or `a.b`, in any of its variants."""
        return any(True for _ in self._types(command, path))

    def has_enum_value(self, command: str, path: str, value: str) -> bool:
        """Whether the argument `path` of a command may be `value`."""
        return any(value in _values(entry) for entry in self._types(command, path))

    def _types(self, command: str, path: str) -> Iterator[dict[str, Any]]:
        """Types that the argument may have; more than one where variants give it different ones."""
        if not self.has_command(command):
            return
        types = list(self._plain(self._entries[command].get("arg-type"), 0))
        for name in path.split("."):
            found = [kind for entry in types for kind in self._members(entry, name, 0)]
            types = [plain for kind in found for plain in self._plain(kind, 0)]
        yield from types

    def _plain(self, name: Any, depth: int) -> Iterator[dict[str, Any]]:
        """A type without arrays and alternates around it."""
        entry = self._entries.get(name) if isinstance(name, str) else None
        if entry is None or depth > _DEEPEST:
            return
        if entry.get("meta-type") == "array":
            yield from self._plain(entry.get("element-type"), depth + 1)
        elif entry.get("meta-type") == "alternate":
            for member in entry.get("members", ()):
                yield from self._plain(member.get("type"), depth + 1)
        else:
            yield entry

    def _members(self, entry: dict[str, Any], name: str, depth: int) -> Iterator[Any]:
        if entry.get("meta-type") != "object" or depth > _DEEPEST:
            return
        for member in entry.get("members", ()):
            if member.get("name") == name:
                yield member.get("type")
        for variant in entry.get("variants", ()):
            kind = self._entries.get(variant.get("type"))
            if kind is not None:
                yield from self._members(kind, name, depth + 1)


def _values(entry: dict[str, Any]) -> set[str]:
    """Values of an enumeration; QEMU below 6.2 lists them only under `values`."""
    if entry.get("meta-type") != "enum":
        return set()
    members = {member["name"] for member in entry.get("members", ()) if "name" in member}
    return members | set(entry.get("values", ()))
