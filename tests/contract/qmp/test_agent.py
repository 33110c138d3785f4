"""The client of the guest agent with the real agent, run here on the host; harmless commands only."""

import asyncio
import contextlib
import os
import pty
import shutil
import time
import tty
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from holdfast.qmp.agent import AgentLost, AgentRefused, AgentTimedOut, GuestAgent
from holdfast.spec.vm_requests import ExecRequest

QEMU_GA = shutil.which("qemu-ga") or shutil.which("qemu-ga", path="/usr/sbin:/sbin")
pytestmark = pytest.mark.skipif(QEMU_GA is None, reason="needs qemu-ga")
HARMFUL = "guest-shutdown,guest-suspend-disk,guest-suspend-ram,guest-suspend-hybrid,guest-set-time"
HARMFUL += ",guest-set-user-password,guest-fsfreeze-freeze,guest-fstrim,guest-set-vcpus"

Start = Callable[[], Awaitable[asyncio.subprocess.Process]]


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    assert QEMU_GA
    begun: list[asyncio.subprocess.Process] = []

    async def run() -> asyncio.subprocess.Process:
        argv = [QEMU_GA, "-m", "unix-listen", "-p", str(tmp_path / "a"), "-t", str(tmp_path)]
        argv += ["-f", str(tmp_path / "pid"), "-b", HARMFUL]
        (tmp_path / "a").unlink(missing_ok=True)
        begun.append(await asyncio.create_subprocess_exec(*argv))
        return begun[-1]

    yield run
    for process in begun:
        if process.returncode is None:
            process.kill()
        await process.wait()


@pytest.fixture
async def agent(tmp_path: Path, start: Start) -> AsyncIterator[GuestAgent]:
    await start()
    made = GuestAgent(tmp_path / "a")
    await made.ping(20)
    yield made
    await made.close()


async def test_it_tells_of_its_guest(agent: GuestAgent) -> None:
    assert (await agent.os_info(5))["kernel-release"]
    assert await agent.host_name(5)
    for address in await agent.addresses(5):
        assert not address.startswith(("127.", "fe80", "::1", "169.254."))
    with pytest.raises(AgentRefused) as caught:
        await agent.call("guest-no-such-command", 5)
    assert caught.value.detail["class"] == "CommandNotFound"
    with pytest.raises(AgentRefused):
        await agent.shut_down(5)  # this agent was told not to


async def test_files(agent: GuestAgent, tmp_path: Path) -> None:
    content = bytes(range(256)) * 2500
    path = str(tmp_path / "file")
    await agent.write_file(path, content, 20)
    assert await agent.read_file(path, 1 << 20, 20) == content
    assert await agent.read_file(path, 300_000, 20) == content[:300_000]
    await agent.write_file(path, b"", 5)
    assert await agent.read_file(path, 10, 5) == b""
    with pytest.raises(AgentRefused):
        await agent.read_file(str(tmp_path / "absent"), 10, 5)


async def test_programs(agent: GuestAgent) -> None:
    result = await agent.execute(ExecRequest(argv=("/bin/cat",), stdin="zwölf"))
    assert (result.exit_code, result.signal, result.stdout, result.stderr) == (0, None, "zwölf", "")
    result = await agent.execute(ExecRequest(argv=("/bin/sh", "-c", "echo no >&2; exit 3")))
    assert (result.exit_code, result.stderr) == (3, "no\n")
    result = await agent.execute(ExecRequest(argv=("/bin/sh", "-c", "kill -9 $$")))
    assert (result.exit_code, result.signal) == (None, 9)
    with pytest.raises(AgentRefused):
        await agent.execute(ExecRequest(argv=("/no/such/program",)))


async def test_much_output_is_cut(agent: GuestAgent) -> None:
    argv = ("/usr/bin/head", "-c", "12000000", "/dev/zero")
    result = await agent.execute(ExecRequest(argv=argv))
    assert (result.exit_code, len(result.stdout), result.truncated) == (0, 1 << 20, True)
    await agent.ping(1)
    exact = await agent.execute(ExecRequest(argv=("/usr/bin/head", "-c", "1048576", "/dev/zero")))
    assert (len(exact.stdout), exact.truncated) == (1 << 20, False)


async def test_a_program_that_does_not_end(agent: GuestAgent) -> None:
    before = time.monotonic()
    with pytest.raises(AgentTimedOut, match="sleep"):
        await agent.execute(ExecRequest(argv=("/bin/sleep", "3"), timeout_seconds=0.5))
    assert time.monotonic() - before < 2
    await agent.ping(2)


async def test_a_restarted_agent_is_found_again(tmp_path: Path, start: Start) -> None:
    agent = GuestAgent(tmp_path / "a")
    with pytest.raises(AgentLost):
        await agent.host_name(5)
    first = await start()
    await agent.ping(20)
    first.kill()
    await first.wait()
    with pytest.raises(AgentLost):
        await agent.host_name(5)
    waiting = asyncio.create_task(agent.ping(20))
    await asyncio.sleep(0.3)
    await start()
    await waiting
    assert await agent.host_name(5)
    await agent.close()


async def test_callers_wait_for_one_another(agent: GuestAgent) -> None:
    names = await asyncio.gather(*(agent.host_name(10) for _ in range(20)))
    assert len(set(names)) == 1


async def test_a_cancelled_call_leaves_nothing_behind(agent: GuestAgent, start: Start) -> None:
    for pause in (0, 0.0005, 0.001, 0.002, 0.004):
        task = asyncio.create_task(agent.os_info(5))
        await asyncio.sleep(pause)
        task.cancel()
        # On a socket of its own this agent ends where a client leaves before the answer.
        await start()
        await agent.ping(10)
        assert await agent.host_name(5)


def opened_by(process: asyncio.subprocess.Process, path: str) -> int:
    """Descriptors beyond the standard three that the agent has open on a file."""
    folder = Path(f"/proc/{process.pid}/fd")
    return sum(int(each.name) > 2 and str(each.readlink()) == path for each in folder.iterdir())


@contextlib.asynccontextmanager
async def behind_a_device(tmp_path: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """An agent on a serial device whose other side is served on `a`, as QEMU does it.

    It notices nothing of clients that come and go, where one on a socket of its own may end.
    """
    assert QEMU_GA
    outer, inner = pty.openpty()
    tty.setraw(inner)
    os.set_blocking(outer, False)
    clients: list[asyncio.StreamWriter] = []
    loop = asyncio.get_running_loop()

    def from_agent() -> None:
        answer = os.read(outer, 65536)
        if clients:
            clients[-1].write(answer)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        clients.append(writer)
        while question := await reader.read(4096):
            os.write(outer, question)
        clients.remove(writer)
        writer.close()

    argv = [QEMU_GA, "-m", "isa-serial", "-p", os.ttyname(inner), "-t", str(tmp_path)]
    argv += ["-f", str(tmp_path / "pid"), "-b", HARMFUL]
    server = await asyncio.start_unix_server(serve, tmp_path / "a")
    loop.add_reader(outer, from_agent)
    process = await asyncio.create_subprocess_exec(*argv)
    try:
        yield process
    finally:
        process.kill()
        await process.wait()
        server.close()
        loop.remove_reader(outer)
        os.close(inner)
        os.close(outer)


async def test_nothing_stays_open_in_the_agent(tmp_path: Path) -> None:
    async with behind_a_device(tmp_path) as process:
        await nothing_stays_open(GuestAgent(tmp_path / "a"), process)


async def nothing_stays_open(agent: GuestAgent, process: asyncio.subprocess.Process) -> None:
    await agent.ping(20)
    # A device that never answers: the limit passes, and later the caller goes away.
    with pytest.raises(AgentTimedOut):
        await agent.exchange("/dev/null", b"question", 100, 0.5)
    await agent.ping(20)
    asking = asyncio.create_task(agent.exchange("/dev/null", b"question", 100, 20))
    await asyncio.sleep(0.5)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await agent.ping(20)
    assert opened_by(process, "/dev/null") == 0
    # What a daemon that was killed left open is closed by the next one.
    for _ in range(3):
        await agent.call("guest-file-open", path="/dev/zero", mode="r")
    assert opened_by(process, "/dev/zero") == 3
    await agent.close_forgotten(20)
    assert opened_by(process, "/dev/zero") == 0
    await agent.close()
