"""Errors: one base, a class for each KIND of failure, and in every room a subclass for each error.

    HoldfastError
    ├── InvalidInput      the request itself is wrong; sending it again will not help
    ├── NotFound          what it names does not exist
    ├── Conflict          it exists, but its present state does not allow this
    ├── Forbidden         the caller's role does not allow this
    ├── Unauthenticated   the caller is not known
    ├── Insufficient      the host has too little memory, space, addresses, ...
    ├── Unsupported       this host, QEMU or guest cannot do it (the cure says what can)
    ├── Failed            a program or guest that we depend on failed
    ├── TimedOut          it did not answer in time
    ├── Cancelled         somebody asked us to stop
    └── Interrupted       the daemon ended in the middle and the work was undone

A room's errors are subclasses with a class attribute `id` (kebab-case, for ever: clients match on
it). The API maps KINDS to HTTP status and the CLI maps KINDS to exit codes, each in one table.
"""

from typing import Any, ClassVar


class HoldfastError(Exception):
    """Something was refused or went wrong, said so that a person can act on it.

    Args:
        message: what was wrong, in one plain sentence, with the offending value in it.
        value: the offending value itself, for programs (must be JSON-serializable).
        cure: what to do about it; an imperative sentence.
        detail: more evidence (the tail of a log, a limit, ...), JSON-serializable.
    """

    id: ClassVar[str] = "internal-error"

    def __init__(
        self,
        message: str,
        *,
        value: Any = None,
        cure: str = "",
        detail: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.value = value
        self.cure = cure
        self.detail = detail or {}

    def as_dict(self) -> dict[str, Any]:
        """The wire form: `id`, `message`, `value`, `cure`, `detail`."""
        return {
            "id": self.id,
            "kind": kind_of(self).__name__,
            "message": self.message,
            "value": self.value,
            "cure": self.cure,
            "detail": self.detail,
        }


class InvalidInput(HoldfastError):
    id = "invalid-input"


class NotFound(HoldfastError):
    id = "not-found"


class Conflict(HoldfastError):
    id = "conflict"


class Forbidden(HoldfastError):
    id = "forbidden"


class Unauthenticated(HoldfastError):
    id = "unauthenticated"


class Insufficient(HoldfastError):
    id = "insufficient"


class Unsupported(HoldfastError):
    id = "unsupported"


class Failed(HoldfastError):
    id = "failed"


class TimedOut(HoldfastError):
    id = "timed-out"


class Cancelled(HoldfastError):
    id = "cancelled"


class Interrupted(HoldfastError):
    id = "interrupted"


KINDS: tuple[type[HoldfastError], ...] = (
    InvalidInput,
    NotFound,
    Conflict,
    Forbidden,
    Unauthenticated,
    Insufficient,
    Unsupported,
    Failed,
    TimedOut,
    Cancelled,
    Interrupted,
)


def kind_of(error: HoldfastError) -> type[HoldfastError]:
    """The kind an error belongs to; `HoldfastError` itself where it is none of them."""
    for kind in KINDS:
        if isinstance(error, kind):
            return kind
    return HoldfastError


class RemoteError(HoldfastError):
    """An error that came over the wire: same words, same id, rebuilt from `as_dict`."""

    def __init__(self, wire: dict[str, Any]) -> None:
        super().__init__(
            str(wire.get("message", "unknown error")),
            value=wire.get("value"),
            cure=str(wire.get("cure", "")),
            detail=dict(wire.get("detail") or {}),
        )
        self.wire_id = str(wire.get("id", HoldfastError.id))
        self.wire_kind = str(wire.get("kind", HoldfastError.__name__))

    def as_dict(self) -> dict[str, Any]:
        return {**super().as_dict(), "id": self.wire_id, "kind": self.wire_kind}
