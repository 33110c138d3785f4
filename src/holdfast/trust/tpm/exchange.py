"""One command to a TPM and its answer, with authorizations: part 1, section 18, of the specification.

header: tag (16 bits), size (32), command code or response code (32)
command: header, handles, [size of authorizations, authorizations], parameters
response: header, [handle], [size of parameters], parameters, [authorizations]
"""

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from holdfast.trust.tpm.numbers import Code, Tag
from holdfast.trust.tpm.refusals import TpmForged, TpmRefused
from holdfast.trust.tpm.sessions import Answer, Authorization, EncryptingSession, Entity
from holdfast.trust.tpm.wire import Reader, TpmNonsense, sized, u16, u32

MAX_RESPONSE = 4096
HEADER = 10
_PATIENCE = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
"""Seconds between the tries of a command that a busy TPM wants to have again (TPM_RC_RETRY)."""
_AGAIN = ("retry", "yielded", "testing")


class TpmTransport(Protocol):
    """A way to one TPM. Handles live as long as it is open."""

    async def transmit(self, command: bytes) -> bytes:
        """Send a whole command; returns the whole response, at most 4,096 bytes.

        Raises:
            TpmNotReachable, TpmTooSlow: no answer; the transport is of no use any more.
        """


@dataclass(frozen=True)
class Request:
    """A command with all that belongs to it."""

    code: Code
    handles: Sequence[Entity] = ()
    authorizations: Sequence[Authorization] = ()
    """In the order of the handles that need one; what encrypts comes last."""
    parameters: bytes = b""
    answers_handle: bool = False
    hides_parameter: bool = False
    """Its first parameter is a TPM2B and secret: encrypted where a session encrypts."""
    hides_answer: bool = False
    """The same of the answer."""


@dataclass(frozen=True)
class Response:
    handle: int
    """0 where the command answers with none."""
    parameters: Reader


class Exchange:
    """Speaks to a TPM over a transport, one command at a time."""

    def __init__(self, transport: TpmTransport) -> None:
        self._transport = transport
        self._one = asyncio.Lock()

    async def __call__(self, request: Request) -> Response:
        """Raises TpmRefused, TpmForged, TpmNonsense, and what the transport raises."""
        async with self._one:
            command = _command(request)
            for pause in (*_PATIENCE, None):
                try:
                    return _response(request, await self._transport.transmit(command))
                except TpmRefused as refused:
                    if refused.reason not in _AGAIN or pause is None:
                        raise
                    await asyncio.sleep(pause)
        raise AssertionError


def _command(request: Request) -> bytes:
    parameters = request.parameters
    for session in request.authorizations:
        if isinstance(session, EncryptingSession):
            session.begin(request.hides_parameter, request.hides_answer)
            if request.hides_parameter:
                size = int.from_bytes(parameters[:2], "big")
                parameters = sized(session.hide(parameters[2 : 2 + size])) + parameters[2 + size :]
    names = b"".join(entity.name for entity in request.handles)
    digest = hashlib.sha256(u32(request.code) + names + parameters).digest()
    body = b"".join(u32(entity.handle) for entity in request.handles)
    if request.authorizations:
        area = b"".join(session.command(digest) for session in request.authorizations)
        body += u32(len(area)) + area
    tag = Tag.SESSIONS if request.authorizations else Tag.NO_SESSIONS
    return u16(tag) + u32(HEADER + len(body) + len(parameters)) + u32(request.code) + body + parameters


def _response(request: Request, data: bytes) -> Response:
    what = f"the response to TPM2_{request.code.name}"
    if len(data) > MAX_RESPONSE:
        raise TpmNonsense(f"{what} is too long", value=len(data))
    reader = Reader(data, what)
    tag, size, code = reader.u16(), reader.u32(), reader.u32()
    if size != len(data):
        raise TpmNonsense(f"{what} says another size than it has", value=size)
    if code:
        raise TpmRefused(request.code, code)
    if tag != (Tag.SESSIONS if request.authorizations else Tag.NO_SESSIONS):
        raise TpmForged(f"{what} lacks the authorizations", value=tag)
    handle = reader.u32() if request.answers_handle else 0
    if not request.authorizations:
        return Response(handle, reader)
    parameters = reader.take(reader.u32())
    digest = hashlib.sha256(u32(code) + u32(request.code) + parameters).digest()
    for session in request.authorizations:
        session.check(Answer(reader.sized(), reader.take(1)[0], reader.sized()), digest)
        if request.hides_answer and isinstance(session, EncryptingSession):
            size = int.from_bytes(parameters[:2], "big")
            parameters = sized(session.reveal(parameters[2 : 2 + size])) + parameters[2 + size :]
    reader.end()
    return Response(handle, Reader(parameters, what))
