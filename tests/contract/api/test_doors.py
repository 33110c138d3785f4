"""The doors as the kernel and OpenSSL keep them: other users, tokens, old TLS, slow peers."""

import datetime
import os
import shutil
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from holdfast.api import doors
from holdfast.api.client import Client, Place, WrongFingerprint
from holdfast.spec.access import Role
from holdfast.spec.errors import RemoteError
from holdfast.spec.token import TokenCreate

ASK = """
import socket, sys
s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])
s.sendall(b"GET /v1/health HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n")
print(b"".join(iter(lambda: s.recv(65536), b"")).decode())
"""


def as_user(path: Path, *identity: str) -> str:
    python = shutil.which("python3", path="/usr/bin") or sys.executable
    done = subprocess.run(
        ["setpriv", *identity, python, "-c", ASK, path],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    return done.stdout + done.stderr


@pytest.fixture
def open_socket(daemon: Any) -> Any:
    """Anybody may connect, so that what refuses is the check of the peer, not the file's mode."""
    daemon.socket.chmod(0o666)
    for folder in daemon.socket.parents:
        if str(folder).startswith("/tmp/"):
            folder.chmod(folder.stat().st_mode | 0o011)
    return daemon


@pytest.mark.skipif(os.getuid() != 0, reason="changes its user")
def test_another_user_is_refused_and_a_member_of_the_group_admitted(
    open_socket: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doors, "group_id", lambda: 4242)
    stranger = as_user(open_socket.socket, "--reuid=65534", "--regid=65534", "--clear-groups")
    assert "HTTP/1.1 403" in stranger
    assert "not-admitted" in stranger
    member = as_user(open_socket.socket, "--reuid=65534", "--regid=65534", "--groups=4242")
    assert "HTTP/1.1 200" in member, member
    first_group = as_user(open_socket.socket, "--reuid=65534", "--regid=4242", "--clear-groups")
    assert "HTTP/1.1 200" in first_group, first_group


def test_the_socket_is_closed_to_others(daemon: Any) -> None:
    assert daemon.socket.stat().st_mode & 0o007 == 0


def token(daemon: Any, role: Role, days: float | None = None) -> str:
    request = TokenCreate(name=f"t-{role}", role=role, days=days)
    secret: str = daemon.call(daemon.tokens.create(request))[1]
    return secret


def ask(daemon: Any, secret: str | None, method: str = "GET", path: str = "/v1/vms") -> httpx.Response:
    context = ssl.create_default_context(cafile=str(daemon.folder / "api.crt"))
    headers = {"Authorization": f"Bearer {secret}"} if secret else {}
    return httpx.request(method, daemon.url + path, headers=headers, verify=context, json=None)


def test_tokens_and_their_roles(tls_daemon: Any) -> None:
    assert ask(tls_daemon, None).json()["id"] == "no-token"
    assert ask(tls_daemon, "hf_wrong").status_code == 401
    secret = token(tls_daemon, Role.VIEWER)
    assert ask(tls_daemon, secret).status_code == 200
    refused = ask(tls_daemon, secret, "POST", "/v1/vms/a/start")
    assert (refused.status_code, refused.json()["id"]) == (403, "role-too-low")
    tls_daemon.call(tls_daemon.tokens.delete("t-viewer"))
    assert ask(tls_daemon, secret).json()["id"] == "bad-token"


def test_an_expired_token(tls_daemon: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = token(tls_daemon, Role.ADMIN, days=1)
    assert ask(tls_daemon, secret).status_code == 200
    later = datetime.datetime.now(datetime.UTC).replace(tzinfo=None) + datetime.timedelta(days=2)
    monkeypatch.setattr("holdfast.api.tokens.now", lambda: later)
    assert ask(tls_daemon, secret).json()["id"] == "token-expired"


def test_the_secret_is_stored_nowhere(tls_daemon: Any) -> None:
    secret = token(tls_daemon, Role.ADMIN)
    ask(tls_daemon, secret)
    for path in tls_daemon.folder.rglob("*"):
        if path.is_file():
            assert secret.encode() not in path.read_bytes(), path


def test_a_pinned_fingerprint_is_kept_to(
    tls_daemon: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "token"
    file.write_text(token(tls_daemon, Role.VIEWER))
    monkeypatch.setenv("HOLDFAST_TOKEN_FILE", str(file))
    with Client(Place(url=tls_daemon.url, fingerprint=tls_daemon.fingerprint)) as client:
        assert client.vms().total == 0
        with pytest.raises(RemoteError) as caught:
            client.websocket("a", "console")
        assert caught.value.wire_id == "role-too-low"
    with pytest.raises(WrongFingerprint):
        Client(Place(url=tls_daemon.url, fingerprint="sha256:" + "0" * 64))


def test_tls_1_2_is_refused(tls_daemon: Any) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with (
        socket.create_connection(("127.0.0.1", tls_daemon.server.tcp_ports[0]), timeout=5) as raw,
        pytest.raises(ssl.SSLError),
    ):
        context.wrap_socket(raw)


def test_slow_headers_are_cut_off(daemon: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doors, "HEADER_SECONDS", 0.3)
    with socket.socket(socket.AF_UNIX) as slow:
        slow.connect(str(daemon.socket))
        slow.settimeout(5)
        slow.sendall(b"GET /v1/health HTTP/1.1\r\nHost: x\r\nX: ")
        began = time.monotonic()
        with pytest.raises(ConnectionResetError):
            if slow.recv(1) == b"":
                raise ConnectionResetError
        assert time.monotonic() - began < 4


def test_a_reader_that_takes_nothing_is_cut_off(daemon: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("holdfast.api.gate.STALL_SECONDS", 0.5)
    for number in range(60):
        daemon.call(daemon.events.emit("test", "x", {"blob": "y" * 50_000, "number": number}))
    with socket.socket(socket.AF_UNIX) as slow:
        slow.connect(str(daemon.socket))
        slow.sendall(b"GET /v1/events?after=0 HTTP/1.1\r\nHost: x\r\n\r\n")
        time.sleep(2)
        slow.settimeout(5)
        taken = 0
        try:
            while data := slow.recv(65536):
                taken += len(data)
        except ConnectionResetError:
            pass
        assert taken < 2_900_000


def test_a_socket_that_somebody_serves_is_left_alone(daemon: Any) -> None:
    from holdfast.api.server import ApiServer, SocketInUse

    with pytest.raises(SocketInUse):
        daemon.call(ApiServer(daemon.app, daemon.socket).start())
    assert daemon.socket.exists()


def test_a_stale_socket_is_replaced(daemon: Any, tmp_path: Path) -> None:
    from holdfast.api.server import ApiServer

    path = tmp_path / "stale.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    second = ApiServer(daemon.app, path)
    daemon.call(second.start())
    with Client(Place(socket=path)) as client:
        assert client.vms().total == 0
    daemon.call(second.stop(0.1))
    assert not path.exists()
