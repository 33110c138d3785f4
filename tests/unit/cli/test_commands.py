"""The command line as a person runs it: a process of its own, against a daemon with fake VMs."""

import json
import os
import pty
import re
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from command_line import RUN, env, run

from holdfast.cli.exit_codes import EXIT_CODES
from holdfast.cli.output import escape
from holdfast.spec.errors import KINDS


def test_create_list_show(daemon: Any) -> None:
    made = run(daemon, "vm", "create", "web", "--memory", "512MiB", "--disk", "8GiB", "--user", "me")
    assert made.returncode == 0, made.stderr
    assert daemon.vms.created[0].memory == 512 * 1024**2
    assert daemon.vms.created[0].cloud_init.user == "me"
    assert "web" in run(daemon, "vm", "list").stdout
    shown = json.loads(run(daemon, "vm", "show", "web", "--format", "json").stdout)
    assert shown["name"] == "web"
    assert shown["guest"]["agent"] == "unknown"


def test_create_with_more_disks_and_a_port_of_a_switch(daemon: Any) -> None:
    made = run(
        daemon,
        *("vm", "create", "db", "--image", "debian-12", "--disk", "8GiB", "--disk", "1TiB"),
        *("--switch", "lan", "--vlan", "12", "--mac", "52:54:00:00:00:01"),
    )
    assert made.returncode == 0, made.stderr
    request = daemon.vms.created[0]
    assert [(disk.image, disk.size) for disk in request.disks] == [("debian-12", 8 * 2**30), (None, 2**40)]
    assert [(nic.switch, nic.vlan, nic.mac) for nic in request.nics] == [("lan", 12, "52:54:00:00:00:01")]


def test_files_are_sent_not_named(daemon: Any, tmp_path: Path) -> None:
    disc = tmp_path / "installer.iso"
    disc.write_bytes(b"disc")
    assert run(daemon, "vm", "create", "a", "--disk", "1GiB", "--iso", str(disc)).returncode == 0
    name = daemon.vms.created[0].iso
    assert re.fullmatch("iso-[0-9a-f]{16}", name)
    assert name in daemon.images.known


@pytest.mark.parametrize(
    ("arguments", "code", "error_id"),
    [
        (("vm", "show", "nobody"), 3, "vm-not-found"),
        (("vm", "create", "../x"), 2, "bad-request"),
        (("vm", "create", "x", "--cpus", "0"), 2, "bad-request"),
        (("vm", "create", "x", "--iso", "/no/such.iso"), 2, "no-such-file"),
        (("vm", "create", "x", "--vlan", "5"), 2, "vlan-without-switch"),
        (("vm", "create", "x", "--initrd", "i"), 2, "initrd-without-kernel"),
        (("vm", "wait", "x"), 2, "nothing-to-wait-for"),
        (("vm", "wait", "x", "--state", "runing"), 2, "no-such-state"),
        (("vm", "show", "broken"), 1, "internal-error"),
    ],
)
def test_refusals(daemon: Any, arguments: tuple[str, ...], code: int, error_id: str) -> None:
    plain = run(daemon, *arguments)
    assert plain.returncode == code, plain.stderr
    assert f"id: {error_id}" in plain.stderr
    assert plain.stdout == ""


def test_a_refusal_as_json(daemon: Any) -> None:
    refused = run(daemon, "vm", "show", "nobody", "--format", "json")
    assert json.loads(refused.stderr)["id"] == "vm-not-found"


def test_waiting_for_an_address(daemon: Any) -> None:
    run(daemon, "vm", "create", "web")
    late = run(daemon, "vm", "wait", "web", "--address", "--timeout", "0.5")
    assert late.returncode == EXIT_CODES["TimedOut"], late.stderr
    daemon.vms._set("web", addresses=("10.0.2.15",))
    assert run(daemon, "vm", "wait", "web", "--address", "--timeout", "20").returncode == 0


def test_no_daemon(tmp_path: Path) -> None:
    class Nobody:
        socket = tmp_path / "none.sock"

    refused = run(Nobody, "vm", "list")
    assert refused.returncode == 11
    assert "./run up" in refused.stderr


def test_exec_gives_the_guests_code_and_no_control_characters(daemon: Any) -> None:
    done = run(daemon, "vm", "exec", "web", "--", "echo", "--format", "json")
    assert done.returncode == 7
    assert done.stdout.startswith("echo --format json\n")
    assert "\x1b" not in done.stdout
    assert "\x1b" not in run(daemon, "vm", "log", "web").stdout


def slow_creation(daemon: Any) -> subprocess.Popen[str]:
    daemon.operations.hold.clear()
    process = subprocess.Popen(
        [*RUN, "vm", "create", "slow"],
        env=env(daemon),
        stderr=subprocess.PIPE,
        text=True,
        # Tests that run in the background of a shell were born with SIGINT ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stderr
    assert "Working" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    return process


def test_ctrl_c_cancels_the_operation(daemon: Any) -> None:
    process = slow_creation(daemon)
    _, rest = process.communicate(timeout=20)
    assert process.returncode == 10, rest
    assert "cancel" in rest
    assert [each.state for each in daemon.operations.known.values()] == ["cancelled"]


def test_a_second_ctrl_c_no_longer_waits_for_the_undoing(daemon: Any) -> None:
    daemon.operations.undone_at_once = False
    process = slow_creation(daemon)
    assert process.stderr and "asking the daemon to cancel" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=20)
    assert process.returncode == 10 and "left-running" in rest and "holdfast operation show" in rest, rest
    assert [each.state for each in daemon.operations.known.values()] == ["running"]


def test_deletions_and_waits_tell_programs_what_came_of_them(daemon: Any) -> None:
    run(daemon, "vm", "create", "web")
    waited = run(daemon, "vm", "wait", "web", "--state", "off", "--format", "json")
    assert json.loads(waited.stdout)["name"] == "web", waited.stderr
    run(daemon, "token", "create", "ci", "--role", "viewer")
    deleted = run(daemon, "token", "delete", "ci", "--format", "json")
    assert json.loads(deleted.stdout) == {"deleted": "ci"}, deleted.stderr


def test_console_passes_bytes_and_gives_the_terminal_back(daemon: Any, tmp_path: Path) -> None:
    run(daemon, "vm", "create", "web")
    daemon.vms.console = tmp_path / "console.sock"
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(daemon.vms.console))
    server.listen(1)

    def guest() -> None:
        connection, _ = server.accept()
        with connection:
            while data := connection.recv(100):
                connection.sendall(b"<" + data.upper() + b">")

    thread = threading.Thread(target=guest)
    thread.start()
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [*RUN, "vm", "console", "web"],
        env=env(daemon),
        stdin=follower,
        stdout=follower,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr
    assert "Ctrl-]" in process.stderr.readline()
    time.sleep(0.3)
    os.write(leader, b"hi\x03")
    seen = b""
    while b">" not in seen:
        seen += os.read(leader, 100)
    assert b"<HI\x03>" in seen
    os.write(leader, b"\x1d")
    assert process.wait(20) == 0
    import termios

    assert termios.tcgetattr(follower)[3] & termios.ICANON
    process.stderr.close()
    thread.join(10)
    assert not thread.is_alive()
    server.close()
    os.close(leader)
    os.close(follower)


def test_the_table_of_exit_codes_is_whole_and_documented() -> None:
    assert set(EXIT_CODES) == {"HoldfastError", *(kind.__name__ for kind in KINDS)}
    text = (Path(__file__).resolve().parents[3] / "docs/guide/errors.md").read_text()
    documented = dict(re.findall(r"^\| `(\w+)` \| .* \| (\d+) \|$", text, re.MULTILINE))
    assert {kind: int(code) for kind, code in documented.items()} == EXIT_CODES


def test_escape() -> None:
    assert escape("a\x1b[0m\u202eb\n") == "a\\x1b[0m\\u202eb\\n"


@pytest.mark.parametrize(
    ("settings", "error_id"),
    [
        ({"HOLDFAST_URL": "http://127.0.0.1:1", "HOLDFAST_FINGERPRINT": "sha256:0"}, "not-https"),
        ({"HOLDFAST_URL": "{url}"}, "no-token-file"),
        ({"HOLDFAST_URL": "{url}", "HOLDFAST_TOKEN_FILE": "{token}"}, "certificate-not-trusted"),
        (
            {"HOLDFAST_URL": "{url}", "HOLDFAST_TOKEN_FILE": "{token}", "HOLDFAST_FINGERPRINT": "sha256:0"},
            "wrong-fingerprint",
        ),
    ],
)
def test_no_token_leaves_for_a_place_that_is_not_vouched_for(
    tls_daemon: Any, tmp_path: Path, settings: dict[str, str], error_id: str
) -> None:
    token = tmp_path / "token"
    token.write_text("hf_secret")
    places = {key: value.format(url=tls_daemon.url, token=token) for key, value in settings.items()}
    refused = subprocess.run(
        [*RUN, "vm", "list"], env={**os.environ, **places}, capture_output=True, text=True, check=False
    )
    assert f"id: {error_id}" in refused.stderr
    assert "hf_secret" not in refused.stderr


def test_a_screenshot_that_cannot_be_written(daemon: Any, tmp_path: Path) -> None:
    run(daemon, "vm", "create", "web")
    refused = run(daemon, "vm", "screenshot", "web", "-o", str(tmp_path / "no/such.png"))
    assert "id: cannot-write-file" in refused.stderr
    assert run(daemon, "vm", "screenshot", "web", "-o", str(tmp_path / "a.png")).returncode == 0
    assert (tmp_path / "a.png").exists()


def test_a_change_of_nothing_is_refused(daemon: Any) -> None:
    assert "id: nothing-to-change" in run(daemon, "vm", "set", "web").stderr
