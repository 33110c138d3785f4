"""Downloads from a server of our own that drops, lies, changes its file, and leads elsewhere."""

import asyncio
import hashlib
import json
import random
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from holdfast.host.space import NoSpace
from holdfast.storage.catalogue import (
    BadChecksum,
    Checksum,
    ChecksumNotListed,
    NotInCatalogue,
    UrlNotAllowed,
    find_origin,
    known,
    listed_checksum,
    parse_checksum,
    redacted,
    require_allowed,
)
from holdfast.storage.download import ChecksumMismatch, Downloader, DownloadFailed, Patience

DATA = random.Random(3).randbytes(5 << 20)
SHA = Checksum("sha256", hashlib.sha256(DATA).hexdigest())
QUICK = Patience(connect=2, read=0.5, pauses=(0.01, 0.02, 0.03), reserve=0)


@dataclass
class Server:
    """Answers each request by the next of `answers`; the last one stays."""

    port: int = 0
    requests: list[dict[str, str]] = field(default_factory=list)
    answers: list[Callable[[dict[str, str]], tuple[bytes, bytes]]] = field(default_factory=list)
    hang: bool = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/a/disk.qcow2"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in lines[1:] if line)}
            headers["path"] = lines[0].split()[1]
            self.requests.append(headers)
            answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
            head, body = answer(headers)
            writer.write(head + b"\r\n\r\n" + body)
            await writer.drain()
            if self.hang:
                await asyncio.sleep(3)
        writer.close()


def whole(
    data: bytes = DATA, tag: str = '"1"', until: int | None = None
) -> Callable[[dict[str, str]], tuple[bytes, bytes]]:
    """A server that honours ranges; `until` bytes of the whole are sent, then the line drops."""

    def answer(headers: dict[str, str]) -> tuple[bytes, bytes]:
        start = 0
        head = "HTTP/1.1 200 OK"
        if "range" in headers and headers.get("if-range") == tag:
            start = int(headers["range"].removeprefix("bytes=").rstrip("-"))
            head = f"HTTP/1.1 206 Partial\r\nContent-Range: bytes {start}-{len(data) - 1}/{len(data)}"
        head += f"\r\nETag: {tag}\r\nConnection: close\r\nContent-Length: {len(data) - start}"
        return head.encode(), data[start:until]

    return answer


def plain(status: str, *headers: str, body: bytes = b"") -> Callable[[dict[str, str]], tuple[bytes, bytes]]:
    lines = [f"HTTP/1.1 {status}", "Connection: close", *headers]
    return lambda _: ("\r\n".join(lines).encode(), body)


@pytest.fixture
async def server(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Server]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    made = Server()
    listener = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.port = listener.sockets[0].getsockname()[1]
    yield made
    listener.close()


async def fetch(
    server: Server, target: Path, checksum: Checksum | None = SHA, patience: Patience = QUICK
) -> list[str]:
    said: list[str] = []
    await Downloader(patience).fetch(server.url, target, checksum, lambda _, text: said.append(text))
    return said


async def test_whole(server: Server, tmp_path: Path) -> None:
    server.answers = [whole()]
    said = await fetch(server, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == DATA
    assert any("of 5 MiB" in text and text.endswith("/s") for text in said)
    assert [entry.name for entry in tmp_path.iterdir()] == ["f"]


async def test_it_goes_on_where_the_line_dropped(server: Server, tmp_path: Path) -> None:
    server.answers = [whole(until=2_000_000), whole(until=4_000_000), whole()]
    await fetch(server, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == DATA
    assert [request.get("range") for request in server.requests] == [
        None,
        "bytes=2000000-",
        "bytes=4000000-",
    ]


async def test_it_goes_on_after_the_daemon_ended(server: Server, tmp_path: Path) -> None:
    server.answers, server.hang = [whole(until=3_000_000)], True
    task = asyncio.ensure_future(fetch(server, tmp_path / "f", patience=Patience(read=30, reserve=0)))
    while not (tmp_path / "f.part").exists() or (tmp_path / "f.part").stat().st_size < 2 << 20:
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    server.answers, server.hang = [whole()], False
    await fetch(server, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == DATA
    assert server.requests[-1]["range"].startswith("bytes=")


async def test_what_was_not_safe_is_fetched_again(server: Server, tmp_path: Path) -> None:
    (tmp_path / "f.part").write_bytes(DATA[:1_000_000] + bytes(1_000_000))
    (tmp_path / "f.json").write_text(json.dumps({"validator": '"1"', "total": len(DATA), "safe": 1_000_000}))
    server.answers = [whole()]
    await fetch(server, tmp_path / "f")
    assert server.requests[0]["range"] == "bytes=1000000-"
    assert (tmp_path / "f").read_bytes() == DATA


@pytest.mark.parametrize("note", [b"", b"{}", b"[]", b'{"x": 1}', b"\xff"])
async def test_a_damaged_note_begins_anew(server: Server, tmp_path: Path, note: bytes) -> None:
    (tmp_path / "f.part").write_bytes(b"x" * 100)
    (tmp_path / "f.json").write_bytes(note)
    server.answers = [whole()]
    await fetch(server, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == DATA


async def test_a_changed_file_begins_anew(server: Server, tmp_path: Path) -> None:
    other = bytes(reversed(DATA))
    server.answers = [whole(other, '"0"', until=2_000_000), whole()]
    await fetch(server, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == DATA


async def test_a_range_of_another_file_is_not_mixed_in(server: Server, tmp_path: Path) -> None:
    """A server that ignores If-Range."""
    wrong = plain(
        "206 Partial",
        f"Content-Range: bytes 2000000-{len(DATA) - 1}/{len(DATA)}",
        'ETag: "2"',
        body=bytes(100),
    )
    server.answers = [whole(until=2_000_000), wrong, whole()]
    await fetch(server, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == DATA
    assert "range" not in server.requests[-1]


async def test_a_wrong_content_is_removed(server: Server, tmp_path: Path) -> None:
    server.answers = [whole(b"other" * 1000)]
    with pytest.raises(ChecksumMismatch):
        await fetch(server, tmp_path / "f")
    assert list(tmp_path.iterdir()) == []


async def test_a_length_that_is_a_lie(server: Server, tmp_path: Path) -> None:
    server.answers = [plain("200 OK", f"Content-Length: {len(DATA) * 2}", 'ETag: "1"', body=DATA)]
    with pytest.raises(DownloadFailed):
        await fetch(server, tmp_path / "f", None)
    assert not (tmp_path / "f").exists()
    assert len(server.requests) <= 6


async def test_more_room_than_there_is(server: Server, tmp_path: Path) -> None:
    server.answers = [plain("200 OK", f"Content-Length: {1 << 60}")]
    with pytest.raises(NoSpace):
        await fetch(server, tmp_path / "f")


async def test_a_slow_server_is_given_up(server: Server, tmp_path: Path) -> None:
    server.answers, server.hang = [whole(until=0)], True
    with pytest.raises(DownloadFailed) as caught:
        await fetch(server, tmp_path / "f", patience=Patience(read=0.05, pauses=(0.01,), reserve=0))
    assert "ReadTimeout" in caught.value.message


async def test_a_refusal_is_final_and_trouble_is_not(server: Server, tmp_path: Path) -> None:
    server.answers = [plain("503 Busy"), plain("429 Slow"), whole()]
    await fetch(server, tmp_path / "f")
    server.requests.clear()
    server.answers = [plain("404 Not Found")]
    with pytest.raises(DownloadFailed) as caught:
        await fetch(server, tmp_path / "g")
    assert caught.value.detail == {"status": 404}
    assert len(server.requests) == 1


async def test_redirects(server: Server, tmp_path: Path) -> None:
    server.answers = [plain("302 Found", "Location: /b"), whole()]
    await fetch(server, tmp_path / "f")
    assert server.requests[1]["path"] == "/b"
    server.answers = [plain("302 Found", "Location: /b")]
    with pytest.raises(DownloadFailed):
        await fetch(server, tmp_path / "g")
    for onward in ("file:///etc/shadow", "ftp://x/y", "http://example.invalid/x", "http://[bad"):
        server.answers = [plain("302 Found", f"Location: {onward}")]
        with pytest.raises((UrlNotAllowed, DownloadFailed)):
            await fetch(server, tmp_path / "g", None)
        assert not (tmp_path / "g").exists()


async def test_a_small_text(server: Server) -> None:
    server.answers = [plain("500 Oops"), plain("200 OK", body=b"x" * 100)]
    assert await Downloader(QUICK).text(server.url) == "x" * 100
    with pytest.raises(DownloadFailed):
        await Downloader(QUICK).text(server.url, longest=50)


@pytest.mark.parametrize(
    ("url", "checksum", "before"),
    [
        ("http://example.com/x", False, None),
        ("http://127.0.0.1/x", True, "https://example.com/x"),
        ("https://user:secret@example.com/x", True, None),
        ("https://secret@example.com/x", True, None),
        ("file:///etc/shadow", True, None),
        ("https:///x", True, None),
        ("https://h:99999/x", True, None),
    ],
)
def test_urls_that_are_not_fetched(url: str, checksum: bool, before: str | None) -> None:
    with pytest.raises(UrlNotAllowed) as caught:
        require_allowed(url, checksum, before)
    assert "secret" not in json.dumps(caught.value.as_dict())


def test_urls_that_are_fetched() -> None:
    require_allowed("https://example.com/x", False, "http://127.0.0.1/x")
    require_allowed("http://example.com/x", True)
    for host in ("127.0.0.1", "[::1]", "localhost"):
        require_allowed(f"http://{host}:80/x", False)
    assert redacted("https://u:p@h:1/a?sig=secret#x") == "https://h:1/a"


def test_the_catalogue() -> None:
    assert {"debian-12", "debian-13", "ubuntu-24.04", "rocky-9", "alma-9"} <= set(known())
    for name, origin in known().items():
        assert find_origin(name.upper(), None) == origin
        require_allowed(origin.url, False)
        if name == "virtio-win":
            continue  # its maker lists no checksums
        assert origin.checksums_url is not None
        require_allowed(origin.checksums_url, False)
        assert find_origin(name, str(SHA)).checksums_url is None
    with pytest.raises(NotInCatalogue):
        find_origin("nonesuch", None)
    assert find_origin("https://h/a/My%20disk.qcow2?x=1", None).name == "My-disk"
    assert find_origin("https://h/", None).name == "image"


def test_an_entry_without_a_list_of_checksums_takes_one_that_is_given() -> None:
    plain = find_origin("virtio-win", None)
    assert plain.url.startswith("https://")
    assert (plain.checksum, plain.checksums_url) == (None, None)
    assert find_origin("virtio-win", str(SHA)).checksum == SHA


def test_checksums() -> None:
    assert parse_checksum(str(SHA).upper().replace("SHA256", "sha256")) == SHA
    for bad in ("", "md5:00", "sha256:12", f"sha512:{SHA.digest}", SHA.digest):
        with pytest.raises(BadChecksum):
            parse_checksum(bad)
    text = f"# c\n{'0' * 64}  other\n{SHA.digest} *disk.img\nSHA256 (d.qcow2) = {SHA.digest}\n"
    assert listed_checksum(text, "disk.img", "sha256") == SHA
    assert listed_checksum(text, "d.qcow2", "sha256") == SHA
    for name, algorithm in (("nope", "sha256"), ("disk.img", "sha512")):
        with pytest.raises(ChecksumNotListed):
            listed_checksum(text, name, algorithm)
