"""The API as Python calls: over the UNIX socket, or https with a pinned certificate and a token.

Every answer is a model of `spec`; every refusal is a RemoteError with the daemon's own words.
"""

import hashlib
import json
import os
import socket
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import httpx

from holdfast.spec.errors import Failed, InvalidInput, RemoteError, Unauthenticated
from holdfast.spec.event import Event
from holdfast.spec.image_requests import Upload
from holdfast.spec.model import Frozen
from holdfast.spec.operation import Operation, OperationState
from holdfast.spec.paging import Page
from holdfast.spec.vm_view import VmSummary, VmView

M = TypeVar("M", bound=Frozen)
_CHUNK = 1024**2
_ANSWER_SECONDS = 90.0
_SILENCE_SECONDS = 45.0
"""The events stream beats every 15 s; longer silence means that it is dead."""


class DaemonNotReachable(Failed):
    id = "daemon-not-reachable"


class WrongFingerprint(Unauthenticated):
    id = "wrong-fingerprint"


class CertificateNotTrusted(Unauthenticated):
    id = "certificate-not-trusted"


class NotHttps(InvalidInput):
    id = "not-https"


class NoTokenFile(InvalidInput):
    id = "no-token-file"


@dataclass(frozen=True)
class Place:
    """Where the daemon is: a socket, or a host and port with what to trust there."""

    socket: Path | None = None
    url: str | None = None
    fingerprint: str | None = None
    """`sha256:` and hex digits of the certificate to be met; None: `ca` decides."""
    ca: Path | None = None
    token_file: Path | None = None
    token: str | None = field(default=None, repr=False)
    """Wins over a file."""


def _token(place: Place) -> str:
    if place.token:
        return place.token
    named = place.token_file or os.environ.get("HOLDFAST_TOKEN_FILE")
    if not named:
        raise NoTokenFile(
            f"{place.url} wants a token, and no file with one was named",
            cure="Name it with HOLDFAST_TOKEN_FILE; `holdfast token create` on that host makes one.",
        )
    path = Path(named)
    try:
        return path.read_text().strip()
    except OSError as error:
        raise NoTokenFile(
            f"no token can be read from {str(path)!r}",
            value=str(path),
            cure="Name a file that holds one with HOLDFAST_TOKEN_FILE.",
        ) from error


def _pinned(place: Place) -> ssl.SSLContext:
    """A context that trusts exactly the certificate with the fingerprint, fetched and compared here."""
    if place.fingerprint is None:
        return ssl.create_default_context(cafile=str(place.ca) if place.ca else None)
    url = httpx.URL(place.url or "")
    look = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    look.check_hostname, look.verify_mode = False, ssl.CERT_NONE
    try:
        with (
            socket.create_connection((url.host, url.port or 443), timeout=10) as raw,
            look.wrap_socket(raw) as wrapped,
        ):
            found = wrapped.getpeercert(binary_form=True) or b""
    except OSError as error:
        raise _unreachable(place, error) from error
    met = "sha256:" + hashlib.sha256(found).hexdigest()
    if met != place.fingerprint.lower():
        raise WrongFingerprint(
            f"{place.url} shows another certificate: {met}",
            value=met,
            cure="Do not go on, unless the host was set up anew; then take the fingerprint from it again.",
        )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # the certificate itself is pinned
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.load_verify_locations(cadata=found)
    return context


def _require_https(url: str) -> None:
    """A token must never travel in the clear. Raises NotHttps."""
    if not url.lower().startswith("https://"):
        raise NotHttps(
            f"{url!r} is not an https address", value=url, cure="Write HOLDFAST_URL as https://HOST:PORT."
        )


def _unreachable(place: Place, error: Exception) -> DaemonNotReachable | CertificateNotTrusted:
    where = str(place.socket or place.url)
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return CertificateNotTrusted(
            f"the certificate of {where} is vouched for by nobody",
            value=where,
            cure="Name its fingerprint (`holdfast token create` on that host prints it) with"
            " HOLDFAST_FINGERPRINT, or the file of its issuer with HOLDFAST_CA.",
        )
    return DaemonNotReachable(
        f"the daemon does not answer at {where}: {error}",
        value=where,
        cure="Start it: `systemctl start holdfast`, or `./run up` in a source tree.",
    )


class Client:
    """One daemon. `wire` keeps answers as they came; typed methods make models of them."""

    def __init__(self, place: Place) -> None:
        self.place = place
        headers: dict[str, str] = {}
        self.tls: ssl.SSLContext | None = None
        if place.socket is not None:
            # A context of our own: httpx would read all authorities of the web for it, in 20 ms.
            unused = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            transport, url = httpx.HTTPTransport(verify=unused, uds=str(place.socket)), "http://holdfast"
        else:
            _require_https(str(place.url))
            context = _pinned(place)
            headers["Authorization"] = f"Bearer {_token(place)}"
            transport, url = httpx.HTTPTransport(verify=context), str(place.url)
            self.tls = context
        self.headers = headers
        self._http = httpx.Client(transport=transport, base_url=url, headers=headers, timeout=_ANSWER_SECONDS)

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def _send(self, method: str, path: str, **more: Any) -> httpx.Response:
        try:
            answer = self._http.request(method, path, **more)
        except httpx.TransportError as error:
            raise _unreachable(self.place, error) from error
        _check(answer)
        return answer

    def wire(self, method: str, path: str, body: Any = None, query: dict[str, Any] | None = None) -> Any:
        """The answer's JSON as it came; None where it has no body.

        Raises:
            RemoteError: the daemon refused.
            DaemonNotReachable
        """
        params = {key: value for key, value in (query or {}).items() if value is not None}
        content = body.model_dump(mode="json", exclude_none=True) if isinstance(body, Frozen) else body
        answer = self._send(method, path, params=params, json=content)
        return answer.json() if answer.content else None

    def get(self, model: type[M], path: str, query: dict[str, Any] | None = None) -> M:
        return model.model_validate(self.wire("GET", path, query=query))

    def every(self, path: str, query: dict[str, Any] | None = None) -> Iterator[dict[str, Any]]:
        """All items of a paged list, in wire form."""
        offset = 0
        while True:
            page = self.wire("GET", path, query={"limit": 1000, **(query or {}), "offset": offset})
            yield from page["items"]
            offset += len(page["items"])
            if not page["items"] or offset >= page["total"]:
                return

    def vm(self, name: str) -> VmView:
        return self.get(VmView, vm_path(name))

    def vms(self, **query: Any) -> Page[VmSummary]:
        return Page[VmSummary].model_validate(self.wire("GET", "/v1/vms", query=query))

    def operation(self, operation_id: str) -> Operation:
        return self.get(Operation, f"/v1/operations/{quote(operation_id, safe='')}")

    def cancel(self, operation_id: str) -> Operation:
        path = f"/v1/operations/{quote(operation_id, safe='')}/cancel"
        return Operation.model_validate(self.wire("POST", path))

    def content(self, method: str, path: str, body: Any) -> bytes:
        """An answer that is a file. Raises as `wire`."""
        return self._send(method, path, json=body).content

    def chunks(self, path: str, start: int = 0) -> Iterator[bytes]:
        """A file from byte `start` on, as it comes in. Raises as `wire`."""
        headers = {"Range": f"bytes={start}-"} if start else {}
        try:
            with self._http.stream("GET", path, headers=headers) as answer:
                if answer.is_error:
                    answer.read()
                    _check(answer)
                yield from answer.iter_bytes(_CHUNK)
        except httpx.TransportError as error:
            raise _unreachable(self.place, error) from error

    def screenshot(self, name: str) -> bytes:
        return self._send("GET", vm_path(name, "screenshot")).content

    def execute(self, name: str, request: Frozen, timeout: float) -> Any:
        body = request.model_dump(mode="json")
        return self._send("POST", vm_path(name, "exec"), json=body, timeout=timeout + 30).json()

    def upload(self, path: Path) -> Upload:
        def chunks() -> Iterator[bytes]:
            with path.open("rb") as file:
                while chunk := file.read(_CHUNK):
                    yield chunk

        answer = self._send("POST", "/v1/images/uploads", content=chunks())
        return Upload.model_validate(answer.json())

    def websocket(self, name: str, stream: str) -> Any:
        """The open WebSocket (of `websockets.sync`) of a VM's `console` or `vnc`.

        Raises:
            RemoteError: the daemon refused.
        """
        from websockets.exceptions import InvalidStatus
        from websockets.sync.client import connect, unix_connect

        path = vm_path(name, stream)
        try:
            if self.place.socket is not None:
                return unix_connect(str(self.place.socket), f"ws://holdfast{path}", compression=None)
            url = str(self.place.url).replace("https://", "wss://", 1).rstrip("/") + path
            return connect(url, ssl=self.tls, additional_headers=self.headers, compression=None)
        except InvalidStatus as error:
            answer = httpx.Response(error.response.status_code, content=bytes(error.response.body or b""))
            _check(answer)
            raise
        except OSError as error:
            raise _unreachable(self.place, error) from error

    def events(
        self, after: int | None = None, subject: str | None = None, until: float | None = None
    ) -> Iterator[Event | None]:
        """Events, for ever or until the time `until` (of time.monotonic); None for a beat.

        The first beat comes once nothing can be missed any more.

        A broken stream is taken up again after the last id seen.
        """
        failures = 0
        while True:
            query = {"format": "jsonl", **({"subject": subject} if subject else {})}
            if after is not None:
                query["after"] = str(after)
            silence = _SILENCE_SECONDS
            if until is not None:
                silence = min(silence, until - time.monotonic())
                if silence <= 0:
                    return
            timeout = httpx.Timeout(10.0, read=silence)
            try:
                with self._http.stream("GET", "/v1/events", params=query, timeout=timeout) as answer:
                    if answer.is_error:
                        answer.read()
                        _check(answer)
                    for line in answer.iter_lines():
                        failures = 0
                        event = Event.model_validate_json(line) if line else None
                        if event is not None and event.id:
                            after = event.id
                        yield event
                        if until is not None and time.monotonic() >= until:
                            return
            except httpx.TransportError as error:
                if until is not None and time.monotonic() >= until:
                    return
                failures += 1
                if failures > 2:
                    raise _unreachable(self.place, error) from error

    def follow(self, operation: Operation) -> Iterator[Operation]:
        """The operation each time it moved, the last time as it ended."""
        for event in self.events(subject=operation.id):
            if event is None or event.kind == "operation.ended" or event.id == 0:
                now = self.operation(operation.id)
                yield now
                if now.state.ended:
                    return
            elif event.kind == "operation.progress":
                known = {"phase", "progress", "text"} & event.data.keys()
                yield operation.model_copy(
                    update={"state": OperationState.RUNNING, **{key: event.data[key] for key in known}}
                )


def vm_path(name: str, verb: str = "") -> str:
    return f"/v1/vms/{quote(name, safe='')}" + (f"/{verb}" if verb else "")


def _check(answer: httpx.Response) -> None:
    if not answer.is_error:
        return
    try:
        wire = answer.json()
        if not isinstance(wire, dict) or "id" not in wire:
            raise ValueError("not an error of ours")
    except (json.JSONDecodeError, ValueError):
        wire = {"id": "bad-answer", "kind": "Failed", "message": f"the daemon answered {answer.status_code}"}
    raise RemoteError(wire)
