"""The one table from kinds of errors to HTTP status, and what turns any exception into the wire form.

507 (RFC 4918) stands for every lack of the host, not of disk space alone. A cancelled operation
is a 409: the request met a state that somebody else chose. What is in no kind is a defect: it is
answered 500 with an id that stands in the log beside the traceback, and nothing of its text.
"""

from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from holdfast.spec import errors as kinds
from holdfast.spec.errors import HoldfastError, InvalidInput, NotFound, RemoteError, kind_of
from holdfast.spec.ids import new_id

log = structlog.get_logger(__name__)

STATUS: dict[type[HoldfastError], int] = {
    kinds.InvalidInput: 422,
    kinds.NotFound: 404,
    kinds.Conflict: 409,
    kinds.Forbidden: 403,
    kinds.Unauthenticated: 401,
    kinds.Insufficient: 507,
    kinds.Unsupported: 501,
    kinds.Failed: 502,
    kinds.TimedOut: 504,
    kinds.Cancelled: 409,
    kinds.Interrupted: 503,
}
_BY_NAME = {kind.__name__: status for kind, status in STATUS.items()}
_SHOWN = 200
SECRET_FIELDS = frozenset(
    (
        *("content", "content_key", "passphrase", "password", "recovery_key"),
        *("secret", "stdin", "token", "user_data"),
    )
)
"""Fields of requests that hold secrets, or may: an answer never repeats what was given for them."""


class BadRequest(InvalidInput):
    id = "bad-request"


class NoSuchAddress(NotFound):
    id = "no-such-address"


def status_of(error: HoldfastError) -> int:
    if isinstance(error, RemoteError):  # of another daemon, whose words are passed on
        return _BY_NAME.get(error.wire_kind, 500)
    return STATUS.get(kind_of(error), 500)


def _shown(finding: dict[str, Any]) -> Any:
    """What was given, cut short; None where it may hold a secret, whose words come back in no answer.

    Of a field that is missing the input is all that it is missing from, and a field that nobody knows
    may be one whose name was mistyped.
    """
    value, at = finding.get("input"), finding["loc"]
    if len(at) < 2 or finding["type"] == "extra_forbidden" or not SECRET_FIELDS.isdisjoint(at):
        return None
    if value is None or isinstance(value, bool | int | float):
        return value
    return value[:_SHOWN] if isinstance(value, str) else None


def bad_request(error: RequestValidationError) -> BadRequest:
    """The first finding in words and value; all of them in `detail`."""
    findings = [
        {
            "field": (".".join(str(part) for part in each["loc"][1:]) or str(each["loc"][0]))[:_SHOWN],
            "problem": each["msg"].removeprefix("Value error, "),
            "value": _shown(each),
        }
        for each in error.errors()[:20]
    ]
    first = findings[0]
    return BadRequest(
        f"{first['field']}: {first['problem']}",
        value=first["value"],
        cure=f"Correct the field {first['field']!r}.",
        detail={"findings": findings},
    )


def respond(error: HoldfastError) -> JSONResponse:
    headers = {"WWW-Authenticate": "Bearer"} if isinstance(error, kinds.Unauthenticated) else None
    return JSONResponse(error.as_dict(), status_code=status_of(error), headers=headers)


def defect(error: Exception) -> JSONResponse:
    """A 500 that names only the id under which the log has the whole of it."""
    id_ = new_id()
    log.error("unexpected error", error_id=id_, exc_info=error)
    wire = HoldfastError(
        f"something went wrong inside Holdfast; the log has it under {id_}",
        value=id_,
        cure="Look in the daemon's log for this id and report what stands there.",
    )
    return JSONResponse(wire.as_dict(), status_code=500)


def install(app: FastAPI) -> None:
    """Register the handlers. (Defects are caught by the gate, the outermost layer.)"""

    @app.exception_handler(HoldfastError)
    async def known(_: Request, error: HoldfastError) -> JSONResponse:
        return respond(error) if status_of(error) != 500 else defect(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        return respond(bad_request(error))

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        if error.status_code == 404:
            return respond(
                NoSuchAddress(
                    f"there is nothing at {request.url.path[:_SHOWN]!r}", value=request.url.path[:_SHOWN]
                )
            )
        wire = BadRequest(str(error.detail), value=request.method)
        return JSONResponse(wire.as_dict(), status_code=error.status_code, headers=error.headers)
