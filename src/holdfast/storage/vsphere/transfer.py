"""Disk content over HTTPS: ranges of a flat file of a datastore, or the stream of an export lease.

    /folder/PATH-flat.vmdk?dcPath=&dsName=     any range, several at a time (vSphere, HTTP Access)
    lease.deviceUrl                            a streamOptimized VMDK, from its beginning only

A line that drops is picked up again: ranges go on where they were; of a stream, which has to be sent
anew, what was passed on already is left out.
"""

import asyncio
import contextlib
import re
import ssl
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from urllib.parse import quote

import httpx

from holdfast.spec.units import MIB
from holdfast.storage.formats.vmdk_push import GrainPush
from holdfast.storage.remote_disk import Area, Piece
from holdfast.storage.vsphere.refusals import VsphereDiskUnreadable, VsphereLeaseLost, VsphereTransferFailed

_RANGE = 4 * MIB
_AT_ONCE = 4
_PASSING = (401, 408, 429, 500, 502, 503, 504)
_FLAT = re.compile(r"\[([^\[\]]{1,80})\] (.{1,1024})\.vmdk", re.DOTALL)
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)", re.ASCII)


@dataclass(frozen=True)
class Patience:
    """Seconds. `pauses` are those between tries that brought nothing; their number is the limit."""

    connect: float = 20.0
    read: float = 120.0
    pauses: tuple[float, ...] = (1, 2, 4, 8, 15, 30, 60)


@dataclass(frozen=True)
class Server:
    """Where content is asked for. `cookie` gives the session's, renewed where it has run out; "": none."""

    url: str
    """`https://HOST:PORT`"""
    context: ssl.SSLContext
    cookie: Callable[[], Awaitable[str]]
    patience: Patience = Patience()

    def client(self) -> httpx.AsyncClient:
        limits = httpx.Timeout(self.patience.read, connect=self.patience.connect)
        return httpx.AsyncClient(
            timeout=limits,
            verify=self.context,
            follow_redirects=False,
            trust_env=False,
            limits=httpx.Limits(max_connections=_AT_ONCE + 1),
        )


def flat_url(server: str, file: str, datacenter: str) -> str:
    """Address of the content of a disk whose descriptor is `[DATASTORE] PATH.vmdk`.

    Raises VsphereDiskUnreadable: it is not named so.
    """
    found = _FLAT.fullmatch(file)
    if not found or ".." in found[2].split("/"):
        raise VsphereDiskUnreadable(f"the disk {file[:200]!r} has no file of its own", value=file[:200])
    path = quote(f"{found[2]}-flat.vmdk")
    return f"{server}/folder/{path}?dcPath={quote(datacenter, safe='')}&dsName={quote(found[1], safe='')}"


class FlatFile:
    """Ranges of a flat file; the session's cookie is sent to nobody but its server."""

    def __init__(self, server: Server, url: str, size: int) -> None:
        self._server = server
        self._url = url
        self._size = size

    async def readable(self) -> bool:
        """Whether the server gives ranges of it, and it is as long as the disk."""
        async with self._server.client() as client:
            try:
                await self._range(client, Area(self._size - 512, 512), ())
            except (VsphereDiskUnreadable, VsphereTransferFailed):
                return False
        return True

    async def read(self, areas: Sequence[Area]) -> AsyncGenerator[Piece, None]:
        """Raises VsphereDiskUnreadable, VsphereTransferFailed."""
        waiting: deque[tuple[Area, asyncio.Task[bytes]]] = deque()
        async with self._server.client() as client:
            try:
                for area in areas:
                    for start in range(area.start, area.end, _RANGE):
                        part = Area(start, min(_RANGE, area.end - start))
                        asked = asyncio.ensure_future(self._range(client, part, self._server.patience.pauses))
                        waiting.append((part, asked))
                        if len(waiting) >= _AT_ONCE:
                            yield await _first(waiting)
                while waiting:
                    yield await _first(waiting)
            finally:
                for _, task in waiting:
                    task.cancel()
                await asyncio.gather(*(task for _, task in waiting), return_exceptions=True)

    async def _range(self, client: httpx.AsyncClient, part: Area, pauses: Sequence[float]) -> bytes:
        got = bytearray()
        left = list(pauses)
        while True:
            before = len(got)
            try:
                await self._attempt(client, part, got)
                return bytes(got)
            except (httpx.TransportError, httpx.StreamError, _Again) as error:
                if len(got) > before:
                    left = list(pauses)
                if not left:
                    raise _gave_up(self._url, error) from error
                await asyncio.sleep(left.pop(0))

    async def _attempt(self, client: httpx.AsyncClient, part: Area, got: bytearray) -> None:
        first, last = part.start + len(got), part.end - 1
        headers = {**await _headers(self._server), "Range": f"bytes={first}-{last}"}
        async with client.stream("GET", self._url, headers=headers) as response:
            if response.status_code in _PASSING:
                raise _Again(f"the server answered {response.status_code}")
            told = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
            if response.status_code != 206 or not told:
                raise VsphereDiskUnreadable(
                    f"the server gives no ranges of {_named(self._url)} (it answered {response.status_code})",
                    value=response.status_code,
                )
            if (int(told[1]), int(told[2])) != (first, last) or told[3] not in ("*", str(self._size)):
                raise VsphereDiskUnreadable(
                    f"{_named(self._url)} is not the {self._size} bytes of the disk", value=told[0]
                )
            async for chunk in response.aiter_raw():
                if len(got) + len(chunk) > part.length:
                    raise VsphereTransferFailed(
                        f"{_named(self._url)} sends more than was asked for", value=_named(self._url)
                    )
                got += chunk
        if len(got) < part.length:
            raise _Again("the server ended early")


class ExportStream:
    """One disk of a lease, as a streamOptimized VMDK."""

    def __init__(
        self, server: Server, url: str, size: int, lost: Callable[[], Awaitable[str | None]]
    ) -> None:
        """`lost` says why the lease is no more; None: it holds."""
        self._server = server
        self._url = url
        self._size = size
        self._lost = lost

    async def read(self, areas: Sequence[Area]) -> AsyncGenerator[Piece, None]:
        """Raises VsphereLeaseLost, VsphereTransferFailed, and what the format's damage raises."""
        pauses = list(self._server.patience.pauses)
        reached = 0
        async with self._server.client() as client:
            while True:
                before = reached
                try:
                    async with contextlib.aclosing(self._once(client)) as pieces:
                        async for piece in pieces:
                            for part in within(piece, areas, reached):
                                yield part
                            reached = max(reached, piece.offset + len(piece.data))
                    return
                except (httpx.TransportError, httpx.StreamError, _Again) as error:
                    await self._require_lease()
                    if reached > before:
                        pauses = list(self._server.patience.pauses)
                    if not pauses:
                        raise _gave_up(self._url, error) from error
                    await asyncio.sleep(pauses.pop(0))

    async def _require_lease(self) -> None:
        why = await self._lost()
        if why is not None:
            raise VsphereLeaseLost(
                f"the server ended the export: {why}",
                value=why,
                cure="Import the VM again, and see the server's tasks and events for why.",
            )

    async def _once(self, client: httpx.AsyncClient) -> AsyncGenerator[Piece, None]:
        grains = GrainPush(self._size)
        async with client.stream("GET", self._url, headers=await _headers(self._server)) as response:
            if response.status_code != 200:
                await self._require_lease()
                said = _Again(f"the server answered {response.status_code}")
                raise said if response.status_code in _PASSING else _gave_up(self._url, said)
            async for chunk in response.aiter_raw():
                for place, data in await asyncio.to_thread(grains.feed, chunk):
                    yield Piece(place, data)
        if not grains.ended:
            raise _Again("the server ended before the end of the disk")


async def _headers(server: Server) -> dict[str, str]:
    cookie = await server.cookie()
    return {"Accept-Encoding": "identity", **({"Cookie": cookie} if cookie else {})}


class _Again(Exception):
    """This try is over, the next may do better."""


async def _first(waiting: "deque[tuple[Area, asyncio.Task[bytes]]]") -> Piece:
    area, task = waiting[0]
    data = await task
    waiting.popleft()
    return Piece(area.start, data)


def within(piece: Piece, areas: Sequence[Area], reached: int) -> list[Piece]:
    """What of a piece lies in the areas, at `reached` or behind it."""
    end = piece.offset + len(piece.data)
    if end <= reached:
        return []
    low, high = 0, len(areas)
    while low < high:  # the first area that ends behind the piece's beginning
        middle = (low + high) // 2
        if areas[middle].end <= piece.offset:
            low = middle + 1
        else:
            high = middle
    found: list[Piece] = []
    view = memoryview(piece.data)
    while low < len(areas) and areas[low].start < end:
        start, stop = max(areas[low].start, piece.offset), min(areas[low].end, end)
        found.append(Piece(start, view[start - piece.offset : stop - piece.offset]))
        low += 1
    return found


def _named(url: str) -> str:
    """Without what may be a ticket in its query."""
    return url.partition("?")[0][:300]


def _gave_up(url: str, error: Exception) -> VsphereTransferFailed:
    return VsphereTransferFailed(
        f"{_named(url)} could not be read: {type(error).__name__.lstrip('_')}: {str(error)[:200]}",
        value=_named(url),
        cure="Check the network between this host and vSphere's hosts, and try again.",
    )
