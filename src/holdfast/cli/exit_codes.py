"""The one table from kinds of errors to exit codes; docs/guide/errors.md tells it to people."""

from holdfast.spec.errors import HoldfastError, RemoteError, kind_of

EXIT_CODES = {
    "HoldfastError": 1,
    "InvalidInput": 2,
    "NotFound": 3,
    "Conflict": 4,
    "Forbidden": 5,
    "Unauthenticated": 5,
    "Insufficient": 6,
    "Unsupported": 7,
    "Failed": 8,
    "TimedOut": 9,
    "Cancelled": 10,
    "Interrupted": 10,
}
NOT_REACHABLE = 11
VERDICT_FAILED = 12
"""Of `holdfast trust attest`: it was done, and the VM did not pass."""


def exit_code(error: HoldfastError) -> int:
    if error.id == "daemon-not-reachable":
        return NOT_REACHABLE
    kind = error.wire_kind if isinstance(error, RemoteError) else kind_of(error).__name__
    return EXIT_CODES.get(kind, 1)
