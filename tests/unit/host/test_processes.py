"""Children that outlive us are found again; tools end with their task."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from holdfast.host.folders import FolderInUse, PathTooLong, StateFolder
from holdfast.host.processes import Identity, Limits, Processes, ProgramMissing, ToolTimedOut


@pytest.fixture
def state(tmp_path: Path) -> StateFolder:
    folder = StateFolder(tmp_path / "state", tmp_path / "r")
    folder.root.mkdir()
    return folder


async def test_a_spawned_child_is_found_by_its_marks_and_ends(state: StateFolder, tmp_path: Path) -> None:
    processes = Processes(state)
    ref = await processes.spawn(["sleep", "60"], owner="vm:1", role="qemu", log=tmp_path / "log")
    found = processes.find(owner="vm:1")
    assert [(m.ref, m.role, m.argv) for m in found] == [(ref, "qemu", ("sleep", "60"))]
    assert Processes(StateFolder(tmp_path / "other", tmp_path / "r")).find() == []
    await processes.end(ref)
    assert not processes.alive(ref) and processes.find() == []
    await processes.wait(ref)  # returns at once for a process that is gone


async def test_a_spawned_child_survives_kill_of_its_parent(state: StateFolder, tmp_path: Path) -> None:
    program = (
        "import asyncio,sys,os,signal;from pathlib import Path;"
        "from holdfast.host.folders import StateFolder;from holdfast.host.processes import Processes\n"
        "async def main():\n"
        "  p=Processes(StateFolder(Path(sys.argv[1]),Path(sys.argv[2])))\n"
        "  await p.spawn(['sleep','60'],owner='vm:2',role='qemu',log=Path(sys.argv[3]))\n"
        "  t=asyncio.ensure_future(p.run(['sh','-c','sleep 61 & sleep 62'],owner='operation:1'))\n"
        "  await asyncio.sleep(0.5);os.kill(os.getpid(),signal.SIGKILL)\n"
        "asyncio.run(main())"
    )
    argv = [sys.executable, "-c", program, state.root, state.runtime, tmp_path / "log"]
    await asyncio.to_thread(subprocess.run, argv, check=False)
    processes = Processes(state)
    assert [m.role for m in processes.find(owner="vm:2")] == ["qemu"]
    # The tool itself died with its parent; what it had started is found by the inherited marks.
    left = sorted(m.argv for m in processes.find(owner="operation:1"))
    assert left == [("sleep", "61"), ("sleep", "62")]
    for marked in processes.find():
        await processes.end(marked.ref)
    assert processes.find() == []


async def test_a_term_proof_child_is_killed(state: StateFolder, tmp_path: Path) -> None:
    processes = Processes(state)
    ref = await processes.spawn(
        ["sh", "-c", "trap '' TERM; echo up; while :; do sleep 1; done"],
        owner="vm:3",
        role="qemu",
        log=tmp_path / "log",
    )
    while b"up" not in (tmp_path / "log").read_bytes():
        await asyncio.sleep(0.01)
    await processes.end(ref, grace=0.2)
    assert not processes.alive(ref)
    for marked in processes.find():
        await processes.end(marked.ref, grace=0.1)


async def test_run_returns_output_and_code(state: StateFolder) -> None:
    done = await Processes(state).run(["sh", "-c", "cat; echo err >&2; exit 3"], owner="host", stdin=b"hello")
    assert (done.returncode, done.stdout, done.stderr) == (3, b"hello", b"err\n")


async def test_converse_ends_a_program_that_goes_on(state: StateFolder) -> None:
    processes = Processes(state)
    argv = ["sh", "-c", "read word; echo heard $word; sleep 60"]
    done = await processes.converse(
        argv, owner="host", say=b"hello\n", heard=lambda said: said == b"heard hello\n", limit=10
    )
    assert done.stdout == b"heard hello\n" and processes.find() == []
    with pytest.raises(ToolTimedOut):
        await processes.converse(argv, owner="host", say=b"x\n", heard=lambda said: False, limit=0.3)
    assert processes.find() == []


async def test_run_keeps_the_tail_of_endless_output(state: StateFolder) -> None:
    done = await Processes(state).run(["sh", "-c", "head -c 5000000 /dev/zero; echo end"], owner="host")
    assert len(done.stdout) == 1024 * 1024 and done.stdout.endswith(b"end\n")


async def test_run_ends_the_whole_group_at_its_limit(state: StateFolder) -> None:
    processes = Processes(state)
    with pytest.raises(ToolTimedOut):
        await processes.run(["sh", "-c", "sleep 60 & sleep 60"], owner="operation:9", timeout=0.3)
    assert processes.find(owner="operation:9") == []


async def test_limits_hold(state: StateFolder, tmp_path: Path) -> None:
    target = tmp_path / "big"
    argv = ["dd", "if=/dev/zero", f"of={target}", "bs=1M", "count=10"]
    done = await Processes(state).run(argv, owner="host", limits=Limits(file_size=1024 * 1024))
    assert done.returncode != 0 and target.stat().st_size <= 1024 * 1024


async def test_a_missing_program_is_said(state: StateFolder, tmp_path: Path) -> None:
    processes = Processes(state)
    with pytest.raises(ProgramMissing):
        await processes.run(["no-such-program-here"], owner="host")
    with pytest.raises(ProgramMissing):
        await processes.spawn(["no-such-program-here"], owner="host", role="tool", log=tmp_path / "log")


@pytest.mark.skipif(os.getuid() != 0, reason="changing the user needs root")
async def test_a_child_runs_as_the_given_identity(state: StateFolder) -> None:
    identity = Identity(1_900_000_001, 1_900_000_001)
    done = await Processes(state).run(["sh", "-c", "id -u; id -g; id -G"], owner="host", identity=identity)
    assert done.stdout.split() == [b"1900000001"] * 3


def test_one_daemon_a_folder(state: StateFolder) -> None:
    lock = state.lock()
    with pytest.raises(FolderInUse) as refusal:
        state.lock()
    assert str(os.getpid()) in refusal.value.message
    lock.release()
    state.lock().release()


def test_a_long_runtime_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PathTooLong):
        StateFolder(tmp_path / "s", tmp_path / ("x" * 80)).prepare()
