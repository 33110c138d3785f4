"""`vm import`: several at once and Ctrl-C, licence agreements with and without a terminal, secrets."""

import json
import os
import pty
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from command_line import RUN, env, run

from holdfast.spec.appliance import ImportPlan, VmImport
from holdfast.spec.operation import Operation
from holdfast.vm.import_admission import EulaNotAccepted


@pytest.fixture
def archives(tmp_path: Path) -> list[str]:
    paths = [tmp_path / f"{name}.ova" for name in ("a", "b", "c")]
    for path in paths:
        path.write_bytes(b"x")
    return [str(path) for path in paths]


def batch(daemon: Any, archives: list[str]) -> subprocess.Popen[str]:
    """Two of three are under way, and Ctrl-C is pressed."""
    daemon.operations.hold.clear()
    process = subprocess.Popen(
        [*RUN, "vm", "import", *archives, "--at-once", "2"],
        env=env(daemon),
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stderr
    begun = 0
    while begun < 2:
        begun += "begun as" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    while "Interrupted: 1 are not begun" not in process.stderr.readline():
        assert process.poll() is None
    return process


def test_several_are_imported_each_by_an_operation_of_its_own(daemon: Any, archives: list[str]) -> None:
    done = run(daemon, "vm", "import", *archives, "--format", "json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert [each["source"] for each in told] == ["a.ova", "b.ova", "c.ova"]
    assert len({each["operation"]["id"] for each in told}) == 3


def test_ctrl_c_drops_what_waits_and_cancels_what_is_under_way(daemon: Any, archives: list[str]) -> None:
    process = batch(daemon, archives)
    _, rest = process.communicate(timeout=20)
    assert process.returncode == 10, rest
    assert "3 of 3 were not imported" in rest and "operation-cancelled" in rest
    assert [each.state for each in daemon.operations.known.values()] == ["cancelled"] * 2


def test_a_second_ctrl_c_leaves_them_and_names_them(daemon: Any, archives: list[str]) -> None:
    daemon.operations.undone_at_once = False
    process = batch(daemon, archives)
    assert process.stderr
    for _ in range(2):
        assert "cancelling operation" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=20)
    assert process.returncode == 10 and "left-running" in rest, rest
    assert "2 imports" in rest and "holdfast operation list" in rest


def test_pools_are_for_all_disks_or_for_one(daemon: Any, archives: list[str]) -> None:
    done = run(daemon, "vm", "import", archives[0], "--pool", "fast", "--pool", "disk 1=slow=er")
    assert done.returncode == 0, done.stderr
    assert daemon.imports.asked[-1].pools == {"*": "fast", "disk 1=slow": "er"}
    assert "pool-not-mapped" in run(daemon, "vm", "import", archives[0], "--pool", "=x").stderr


def test_a_file_that_is_not_there_is_told_from_one_that_cannot_be_imported(
    daemon: Any, archives: list[str], tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    for arguments, refusal in (
        ((str(tmp_path / "none.ova"),), "no-such-file"),
        ((archives[0], "--with", str(tmp_path / "none.vmdk")), "no-such-file"),
        ((str(tmp_path / "empty"),), "nothing-to-import"),
    ):
        done = run(daemon, "vm", "import", *arguments)
        assert done.returncode == 2 and refusal in done.stderr, done.stderr
    assert daemon.imports.asked == []


@pytest.fixture
def licensed(daemon: Any, monkeypatch: pytest.MonkeyPatch) -> list[VmImport]:
    """What came with a licence agreement; the requests that were accepted."""
    accepted: list[VmImport] = []
    plan, begin = daemon.imports.plan, daemon.imports.begin

    async def planned(request: VmImport) -> ImportPlan:
        found: ImportPlan = await plan(request)
        return found.model_copy(update={"eulas": ("Thou shalt pay.\x1b[2J",)})

    async def begun(request: VmImport, actor: str) -> Operation:
        if not request.accept_eulas:
            raise EulaNotAccepted("not accepted", value=1, cure="Accept them with --accept-eulas.")
        accepted.append(request)
        operation: Operation = await begin(request, actor)
        return operation

    monkeypatch.setattr(daemon.imports, "plan", planned)
    monkeypatch.setattr(daemon.imports, "begin", begun)
    return accepted


def test_a_licence_agreement_is_refused_without_a_terminal(
    daemon: Any, archives: list[str], licensed: list[VmImport]
) -> None:
    refused = run(daemon, "vm", "import", archives[0], typed="y\n")
    assert refused.returncode != 0 and "eula-not-accepted" in refused.stderr
    assert "--accept-eulas" in refused.stderr and licensed == []
    assert "Thou shalt pay." in run(daemon, "vm", "import", archives[0], "--plan").stdout
    done = run(daemon, "vm", "import", archives[0], "--accept-eulas")
    assert done.returncode == 0 and len(licensed) == 1, done.stderr


@pytest.mark.parametrize(("answer", "accepted"), [("y", 1), ("n", 0), ("", 0)])
def test_a_licence_agreement_is_shown_on_a_terminal_and_asked_about(
    daemon: Any, archives: list[str], licensed: list[VmImport], answer: str, accepted: int
) -> None:
    leader, follower = pty.openpty()
    os.write(leader, answer.encode() + b"\n")
    done = subprocess.run(
        [*RUN, "vm", "import", archives[0]],
        env=env(daemon),
        stdin=follower,
        capture_output=True,
        text=True,
        timeout=30,
    )
    os.close(leader)
    os.close(follower)
    assert "Thou shalt pay." in done.stderr and "\x1b[2J" not in done.stderr
    assert (done.returncode == 0) is bool(accepted) and len(licensed) == accepted, done.stderr
    assert accepted or "eula-not-accepted" in done.stderr


def test_a_passphrase_comes_from_a_file_or_standard_input(
    daemon: Any, archives: list[str], tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("five plain words\nand more\n")
    for source, typed in ((str(secret), ""), ("-", "five plain words\n")):
        done = run(daemon, "vm", "import", archives[0], "--passphrase-file", source, typed=typed)
        assert done.returncode == 0, done.stderr
        request = daemon.imports.asked[-1]
        assert request.passphrase.get_secret_value() == "five plain words"
        assert "five" not in repr(request)
    refused = run(daemon, "vm", "import", archives[0], "--private-key", str(secret))
    assert "no-state-for-key" in refused.stderr
