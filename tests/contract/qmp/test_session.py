"""A monitor session with a real QEMU that has no machine."""

import asyncio
import os
import shutil
import signal
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from holdfast.qmp.errors import QmpLost, QmpRefused, QmpTimedOut
from holdfast.qmp.schema import Schema
from holdfast.qmp.session import QmpSession

QEMU = shutil.which("qemu-system-x86_64")
pytestmark = pytest.mark.skipif(QEMU is None, reason="needs qemu-system-x86_64")


class Qemu:
    def __init__(self, process: asyncio.subprocess.Process, path: Path) -> None:
        self.process = process
        self.path = path


@pytest.fixture
async def qemu(tmp_path: Path) -> AsyncIterator[Qemu]:
    assert QEMU
    path = tmp_path / "q"
    argv = [QEMU, "-machine", "none", "-nodefaults", "-display", "none", "-S"]
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(1)
        fd = listener.fileno()
        argv += ["-chardev", f"socket,id=q,fd={fd},server=on,wait=off", "-mon", "chardev=q,mode=control"]
        process = await asyncio.create_subprocess_exec(*argv, pass_fds=(fd,))
    try:
        yield Qemu(process, path)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@pytest.fixture
async def session(qemu: Qemu) -> AsyncIterator[QmpSession]:
    made = await QmpSession.connect(qemu.path, 30)
    yield made
    await made.close()


async def test_commands_are_answered_or_refused(session: QmpSession) -> None:
    assert (await session.execute("query-status"))["status"] == "prelaunch"
    with pytest.raises(QmpRefused) as caught:
        await session.execute("no-such-command", {"a": 1})
    assert caught.value.detail["class"] == "CommandNotFound"
    assert caught.value.value == "no-such-command"
    schema = Schema(await session.execute("query-qmp-schema"))
    assert schema.has_command("query-status")
    assert not schema.has_command("no-such-command")
    assert schema.has_event("STOP")
    assert schema.has_argument("blockdev-add", "file.filename")
    assert not schema.has_argument("blockdev-add", "file.no-such")
    assert schema.has_enum_value("migrate-set-capabilities", "capabilities.capability", "events")
    assert not schema.has_enum_value("migrate-set-capabilities", "capabilities.capability", "no-such")
    assert schema.has_enum_value("netdev_add", "type", "user")


async def test_events_are_kept_from_the_connection_on(session: QmpSession) -> None:
    async with session.listen("RESUME") as listener:
        await session.execute("cont")
        assert (await listener.get(5))["event"] == "RESUME"
        with pytest.raises(QmpTimedOut):
            await listener.get(0.05)
    await session.execute("stop")
    await session.execute("quit")
    async with asyncio.timeout(10):
        names = [event["event"] async for event in session.events()]
        await session.lost.wait()
    assert names == ["RESUME", "STOP", "SHUTDOWN"]


async def test_the_end_of_qemu_ends_whatever_waits(qemu: Qemu, session: QmpSession) -> None:
    async with session.listen("RESUME") as listener:
        waiting = asyncio.create_task(listener.get(60))
        await asyncio.sleep(0)
        qemu.process.kill()
        async with asyncio.timeout(10):
            with pytest.raises(QmpLost):
                await waiting
            await session.lost.wait()
    with pytest.raises(QmpLost):
        await session.execute("query-status")
    with pytest.raises(QmpLost):
        await session.send_fd(0, "a")
    async with session.listen("STOP") as late:
        with pytest.raises(QmpLost):
            await late.get(5)
    with pytest.raises(QmpLost):
        await QmpSession.connect(qemu.path, 5)


async def test_a_stopped_qemu_times_out_and_can_be_let_go(qemu: Qemu, session: QmpSession) -> None:
    qemu.process.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(QmpTimedOut):
            await session.execute("query-status", limit=0.1)
        waiting = asyncio.create_task(session.execute("query-status"))
        await asyncio.sleep(0)
        async with asyncio.timeout(10):
            await session.close()
            with pytest.raises(QmpLost):
                await waiting
    finally:
        qemu.process.send_signal(signal.SIGCONT)
    again = await QmpSession.connect(qemu.path, 10)
    assert (await again.execute("query-status"))["status"] == "prelaunch"
    await again.close()


async def test_a_late_answer_is_not_taken_for_the_next(qemu: Qemu, session: QmpSession) -> None:
    qemu.process.send_signal(signal.SIGSTOP)
    with pytest.raises(QmpTimedOut):
        await session.execute("query-version", limit=0.05)
    qemu.process.send_signal(signal.SIGCONT)
    assert "status" in await session.execute("query-status")


async def test_descriptors_arrive(session: QmpSession, tmp_path: Path) -> None:
    files = [(tmp_path / str(n)).open("w") for n in range(4)]
    await asyncio.gather(*(session.send_fd(file.fileno(), f"fd{n}") for n, file in enumerate(files)))
    for n, file in enumerate(files):
        file.close()
        await session.execute("closefd", {"fdname": f"fd{n}"})
    with pytest.raises(QmpRefused):
        await session.execute("closefd", {"fdname": "fd0"})


async def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(QmpLost):
        await QmpSession.connect(tmp_path / "absent", 5)


async def test_a_silent_monitor_times_out(tmp_path: Path) -> None:
    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    before = len(os.listdir("/proc/self/fd"))
    server = await asyncio.start_unix_server(hold, tmp_path / "s")
    async with server:
        with pytest.raises(QmpTimedOut):
            await QmpSession.connect(tmp_path / "s", 0.1)
        await asyncio.sleep(0.05)
    assert len(os.listdir("/proc/self/fd")) <= before


async def test_garbage_instead_of_a_greeting(tmp_path: Path) -> None:
    async def babble(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"[1, 2\n")
        writer.close()

    async with await asyncio.start_unix_server(babble, tmp_path / "s"):
        with pytest.raises(QmpLost):
            await QmpSession.connect(tmp_path / "s", 5)


async def test_an_idle_session_costs_nothing(session: QmpSession) -> None:
    follower = asyncio.ensure_future(anext(session.events()))
    before = time.process_time()
    await asyncio.sleep(1)
    assert time.process_time() - before < 0.02
    follower.cancel()


async def test_events_nobody_takes_are_bounded(session: QmpSession) -> None:
    for n in range(10_050):
        session._everything.add({"event": "E", "data": {"n": n}})
    events = session.events()
    assert (await anext(events))["data"] == {"n": 50}
