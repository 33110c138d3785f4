"""Downloads that go on where they were cut off, by a drop of the line or an end of the daemon.

Beside the partial file lies a note of what it is a part of (RFC 9110: entity tag or date, 13.1.5
If-Range) and of how much of it is on stable storage. Where the server's file has changed the
download begins anew; a checksum is verified over the whole file.
"""

import asyncio
import json
import logging
import os
import re
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urljoin

import httpx

from holdfast.host.files import write_atomic
from holdfast.host.space import require_space
from holdfast.spec.errors import Failed, HoldfastError
from holdfast.spec.units import GIB, MIB, format_size
from holdfast.storage.catalogue import Checksum, UrlNotAllowed, redacted, require_allowed
from holdfast.storage.qemu_img import Progress

_BATCH = MIB
_SAFE_EVERY = 64 * MIB
_REDIRECTS = (301, 302, 303, 307, 308)
_TRANSIENT = (408, 425, 429, 500, 502, 503, 504)
_MOST_REDIRECTS = 10
_MOST_TRIES = 500
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)", re.ASCII)

logging.getLogger("httpx").setLevel(logging.WARNING)  # it writes whole URLs at INFO


class DownloadFailed(Failed):
    id = "download-failed"


class ChecksumMismatch(Failed):
    id = "checksum-mismatch"


class _Broken(Exception):
    """This try is over, the next may do better."""


@dataclass(frozen=True)
class Patience:
    """Seconds. `pauses` are those between tries that brought nothing; their number is the limit."""

    connect: float = 20.0
    read: float = 60.0
    pauses: tuple[float, ...] = (1, 2, 4, 8, 15, 30, 60)
    reserve: int = GIB
    """Bytes of the file system left to others."""


@dataclass
class _Note:
    """What the partial file is a part of."""

    validator: str = ""
    total: int | None = None
    safe: int = 0
    """Bytes that are on stable storage."""


class Downloader:
    def __init__(self, patience: Patience | None = None) -> None:
        self._patience = patience or Patience()

    @asynccontextmanager
    async def _client(self) -> AsyncIterator[httpx.AsyncClient]:
        limits = httpx.Timeout(self._patience.read, connect=self._patience.connect)
        context = await asyncio.to_thread(ssl.create_default_context)  # the host's own authorities
        async with httpx.AsyncClient(timeout=limits, verify=context) as client:
            yield client

    async def fetch(self, url: str, target: Path, checksum: Checksum | None, progress: Progress) -> None:
        """Make `target` the content of `url`. Run again after a crash it goes on where it was.

        Raises:
            UrlNotAllowed: the address or one that it leads to must not be used.
            DownloadFailed: the server refused, or too many tries brought nothing.
            ChecksumMismatch: the content is not what was expected; it is removed.
            NoSpace: the file system has no room.
        """
        if target.exists():
            return
        transfer = _Transfer(url, target, checksum, progress, self._patience)
        failures = tries = 0
        async with self._client() as client:
            while True:
                before, tries = transfer.have, tries + 1
                try:
                    await transfer.attempt(client)
                    break
                except (httpx.TransportError, httpx.StreamError, _Broken) as error:
                    failures = 0 if transfer.have > before else failures + 1
                    if failures > len(self._patience.pauses) or tries >= _MOST_TRIES:
                        raise _gave_up(url, error) from error
                    pause = self._patience.pauses[max(failures - 1, 0)] if self._patience.pauses else 0
                    progress(transfer.part, f"interrupted; trying again in {pause:g} s")
                    await asyncio.sleep(pause)
        await asyncio.to_thread(transfer.finish)

    async def text(self, url: str, longest: int = MIB) -> str:
        """A small text, such as a list of checksums. Raises UrlNotAllowed, DownloadFailed."""
        pauses = iter(self._patience.pauses[:3])
        async with self._client() as client:
            while True:
                try:
                    async with _opened(client, url, {}, False) as response:
                        _require_success(response, url)
                        data = b""
                        async for chunk in response.aiter_bytes():
                            data += chunk
                            if len(data) > longest:
                                raise DownloadFailed(
                                    f"{redacted(url)} is longer than {format_size(longest)}",
                                    value=redacted(url),
                                )
                        return data.decode(errors="replace")
                except (httpx.TransportError, httpx.StreamError, _Broken) as error:
                    pause = next(pauses, None)
                    if pause is None:
                        raise _gave_up(url, error) from error
                    await asyncio.sleep(pause)


class _Transfer:
    """One file on its way, over as many tries as it takes."""

    def __init__(
        self, url: str, target: Path, checksum: Checksum | None, progress: Progress, patience: Patience
    ) -> None:
        self._url, self._target, self._checksum = url, target, checksum
        self._progress, self._patience = progress, patience
        self._file = target.with_name(f"{target.name}.part")
        self._note_file = target.with_name(f"{target.name}.json")
        self._note = self._load()
        self._fd = os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        # What was written later than this may be lost or zeros after a power failure.
        self.have = min(self._note.safe, os.fstat(self._fd).st_size)
        os.close(self._fd)

    @property
    def part(self) -> float:
        return self.have / self._note.total if self._note.total else 0.0

    def _load(self) -> _Note:
        try:
            return _Note(**json.loads(self._note_file.read_bytes()))
        except (OSError, ValueError, TypeError):
            return _Note()

    async def attempt(self, client: httpx.AsyncClient) -> None:
        """Get what is missing; returns once all is there."""
        headers = {"Accept-Encoding": "identity"}
        if self.have and self._note.validator:
            headers |= {"Range": f"bytes={self.have}-", "If-Range": self._note.validator}
        async with _opened(client, self._url, headers, self._checksum is not None) as response:
            if response.status_code == 416 and self.have == self._note.total:
                return
            if response.status_code == 416:
                self._begin_anew(_Note())
                raise _Broken("the server's file has changed")
            _require_success(response, self._url)
            self._agree(response)
            if self._note.total is not None:
                await asyncio.to_thread(
                    require_space, self._file.parent, self._note.total - self.have + self._patience.reserve
                )
            try:
                await asyncio.to_thread(os.truncate, self._file, self.have)
                await self._receive(response)
            finally:
                await asyncio.shield(asyncio.to_thread(self._make_safe))
        if self._note.total is not None and self.have < self._note.total:
            raise _Broken(f"the server ended after {self.have} of {self._note.total} bytes")

    def _agree(self, response: httpx.Response) -> None:
        """Whether this answer goes on where the file ends, or is the whole from its beginning."""
        if response.status_code != 206:
            length = response.headers.get("content-length", "")
            self._begin_anew(_Note(_validator(response), int(length) if length.isdigit() else None))
            return
        match = _RANGE.fullmatch(response.headers.get("content-range", ""))
        fits = match and int(match[1]) == self.have and match[3] in ("*", str(self._note.total))
        if not fits or _validator(response) not in ("", self._note.validator):
            self._begin_anew(_Note())
            raise _Broken("the server's file has changed")

    def _begin_anew(self, note: _Note) -> None:
        self._note, self.have = note, 0
        os.truncate(self._file, 0)
        write_atomic(self._note_file, json.dumps(asdict(note)).encode())

    async def _receive(self, response: httpx.Response) -> None:
        began, first, batch = time.monotonic(), self.have, bytearray()
        try:
            async for chunk in response.aiter_raw():
                batch += chunk
                self._require_honest(self.have + len(batch))
                if len(batch) >= _BATCH:
                    await self._store(batch)
                    rate = int((self.have - first) / max(time.monotonic() - began, 0.001))
                    total = f" of {format_size(self._note.total)}" if self._note.total else ""
                    self._progress(self.part, f"{format_size(self.have)}{total}, {format_size(rate)}/s")
        finally:
            await asyncio.shield(self._store(batch))

    async def _store(self, batch: bytearray) -> None:
        # Opened anew and written at its place: a cancelled write that still runs does no harm.
        data, offset = memoryview(bytes(batch)), self.have

        def write() -> None:
            require_space(self._file.parent, self._patience.reserve + len(data))
            with self._file.open("r+b", buffering=0) as file:
                done = 0
                while done < len(data):
                    done += os.pwrite(file.fileno(), data[done:], offset + done)

        if not data:
            return
        await asyncio.to_thread(write)
        self.have += len(data)
        batch.clear()
        if self.have - self._note.safe >= _SAFE_EVERY:
            await asyncio.to_thread(self._make_safe)

    def _require_honest(self, length: int) -> None:
        if self._note.total is not None and length > self._note.total:
            self._begin_anew(_Note())
            raise DownloadFailed(
                f"{redacted(self._url)} sends more than the {self._note.total} bytes it announced",
                value=redacted(self._url),
                cure="Use another source.",
            )

    def _make_safe(self) -> None:
        with self._file.open("rb") as file:
            os.fsync(file.fileno())
        self._note.safe = self.have
        write_atomic(self._note_file, json.dumps(asdict(self._note)).encode())

    def finish(self) -> None:
        """Verify all of it and give it its name."""
        if self._checksum is not None:
            digest = self._checksum.begin()
            with self._file.open("rb", buffering=0) as file:
                while chunk := file.read(4 * MIB):
                    digest.update(chunk)
            if digest.hexdigest() != self._checksum.digest:
                self._file.unlink()
                self._note_file.unlink(missing_ok=True)
                raise ChecksumMismatch(
                    f"the content of {redacted(self._url)} has the {self._checksum.algorithm} checksum"
                    f" {digest.hexdigest()}, not {self._checksum.digest}",
                    value=digest.hexdigest(),
                    cure="Try again: it may just have been replaced by a newer one.",
                )
        self._file.replace(self._target)
        self._note_file.unlink(missing_ok=True)


@asynccontextmanager
async def _opened(
    client: httpx.AsyncClient, url: str, headers: dict[str, str], has_checksum: bool
) -> AsyncIterator[httpx.Response]:
    """The answer at the end of the redirects, each of them allowed."""
    require_allowed(url, has_checksum)
    for _ in range(_MOST_REDIRECTS):
        async with client.stream("GET", _parsed(url), headers=headers) as response:
            if response.status_code not in _REDIRECTS:
                yield response
                return
            onward = _joined(url, response.headers.get("location", ""))
        require_allowed(onward, has_checksum, before=url)
        url = onward
    raise DownloadFailed(f"{redacted(url)} leads to ever more addresses", value=redacted(url))


def _joined(url: str, location: str) -> str:
    try:
        return urljoin(url, location)
    except ValueError:
        raise DownloadFailed(
            f"{redacted(url)} leads to what is not an address",
            value=redacted(url),
            cure="Use another source.",
        ) from None


def _parsed(url: str) -> httpx.URL:
    try:
        return httpx.URL(url)
    except httpx.InvalidURL:
        raise UrlNotAllowed(
            f"{redacted(url)!r} is not a URL", value=redacted(url), cure="Check it."
        ) from None


def _require_success(response: httpx.Response, url: str) -> None:
    if response.status_code in (200, 206):
        return
    said = f"{response.status_code} {response.reason_phrase}"
    if response.status_code in _TRANSIENT:
        raise _Broken(f"the server answered {said}")
    raise DownloadFailed(
        f"{redacted(url)} cannot be had: the server answered {said}",
        value=redacted(url),
        cure="Check the address.",
        detail={"status": response.status_code},
    )


def _validator(response: httpx.Response) -> str:
    """What identifies this very content; a weak tag does not (RFC 9110, 8.8.3)."""
    tag: str = response.headers.get("etag", "")
    if tag and not tag.startswith("W/"):
        return tag
    return str(response.headers.get("last-modified", ""))


def _gave_up(url: str, error: Exception) -> HoldfastError:
    return DownloadFailed(
        f"{redacted(url)} could not be downloaded: {type(error).__name__.lstrip('_')}: {str(error)[:200]}",
        value=redacted(url),
        cure="Check the network and try again; what was received is not lost while the operation runs.",
    )
