"""The outermost layer: an id for each request, who asks, limits, metrics, and the last catch of errors.

Authentication happens before a byte of the body is read. Bodies of ordinary requests are read
whole here (small, in bounded time); only uploads stream through.
"""

import asyncio
import time

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from holdfast.api.doors import ABORT, authenticate
from holdfast.api.errors import defect, respond
from holdfast.api.metrics import Metrics
from holdfast.api.services import Tokens
from holdfast.spec.errors import HoldfastError, InvalidInput, TimedOut
from holdfast.spec.ids import new_id

UPLOAD_PATH = "/v1/images/uploads"
MAX_BODY = 2 * 1024**2
BODY_SECONDS = 20.0
STALL_SECONDS = 30.0
"""How long a peer may take no byte of an answer, or send no byte of an upload."""

log = structlog.get_logger(__name__)


class BodyTooLarge(InvalidInput):
    id = "body-too-large"


class BodyTooSlow(TimedOut):
    id = "body-too-slow"


async def _whole_body(receive: Receive) -> bytes:
    body: bytes = b""
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while True:
                message = await receive()
                body += message.get("body", b"")
                if len(body) > MAX_BODY:
                    raise BodyTooLarge(
                        f"the body has more than {MAX_BODY} bytes",
                        value=len(body),
                        cure="Send files as uploads.",
                    )
                if message["type"] == "http.disconnect" or not message.get("more_body"):
                    return body
    except TimeoutError:
        raise BodyTooSlow(f"the body did not arrive within {BODY_SECONDS:.0f} s") from None


def _replay(body: bytes, receive: Receive) -> Receive:
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def _steady(receive: Receive) -> Receive:
    async def chunk() -> Message:
        try:
            return await asyncio.wait_for(receive(), STALL_SECONDS)
        except TimeoutError:
            raise BodyTooSlow(f"no byte of the upload came for {STALL_SECONDS:.0f} s") from None

    return chunk


class Gate:
    def __init__(self, app: ASGIApp, tokens: Tokens, metrics: Metrics) -> None:
        self._app = app
        self._tokens = tokens
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return
        request_id = new_id()
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request=request_id)
        scope["state"] = {**scope.get("state", {})}
        began, status = time.monotonic(), 0

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                status = message["status"]
                message["headers"] = [*message.get("headers", []), (b"x-request-id", request_id.encode())]
            elif message["type"] == "websocket.accept":
                status = 101
            try:
                await asyncio.wait_for(send(message), STALL_SECONDS)
            except TimeoutError:
                scope["state"].get(ABORT, lambda: None)()
                raise ConnectionAbortedError("the peer took no byte of the answer") from None

        try:
            await self._enter(scope, receive, watched)
        except HoldfastError as error:
            if not status:
                await respond(error)(scope, receive, watched)
        except ConnectionError:
            log.info("the peer went away", path=scope["path"])
        except Exception as error:
            answer = defect(error)
            if not status:
                await answer(scope, receive, watched)
        finally:
            self._told(scope, status, began)

    async def _enter(self, scope: Scope, receive: Receive, send: Send) -> None:
        principal = await authenticate(scope, self._tokens)
        scope["state"]["principal"] = principal
        structlog.contextvars.bind_contextvars(actor=principal.name)
        if scope["type"] == "http":
            if scope["path"] == UPLOAD_PATH:
                receive = _steady(receive)
            else:
                receive = _replay(await _whole_body(receive), receive)
        await self._app(scope, receive, send)

    def _told(self, scope: Scope, status: int, began: float) -> None:
        route = getattr(scope.get("route"), "path", "none")
        method = scope.get("method", "WEBSOCKET")
        self._metrics.answered(method, route, status, began)
        log.info(
            "request",
            method=method,
            path=scope["path"],
            status=status,
            milliseconds=round((time.monotonic() - began) * 1000, 1),
        )
