"""The guest agent's client against fakes: slow ones, broken ones, hostile ones."""

import asyncio
import base64
import json
import time
from collections.abc import Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from holdfast.qmp.agent import AgentLost, AgentNonsense, AgentRefused, AgentTimedOut, GuestAgent
from holdfast.spec.vm_requests import ExecRequest

Answers = Callable[[str, dict[str, Any]], bytes | None]


class FakeAgent:
    """Answers synchronizations as the real one does, other commands with what the test wants."""

    def __init__(self, answers: Answers, deaf: int = 0, copies: int = 1) -> None:
        self.answers = answers
        self.deaf = deaf  # synchronizations that are not answered
        self.copies = copies  # answers to one synchronization
        self.asked: list[str] = []
        self.connections = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while line := await reader.readline():
                asked = json.loads(line.lstrip(b"\xff"))
                name, arguments = asked["execute"], asked.get("arguments", {})
                self.asked.append(name)
                if name == "guest-sync-delimited":
                    self.deaf -= 1
                    if self.deaf < 0:
                        told = b"\xff" + json.dumps({"return": arguments["id"]}).encode() + b"\n"
                        writer.write(told * self.copies)
                elif (answer := self.answers(name, arguments)) is not None:
                    writer.write(answer)
        except OSError:
            pass
        finally:
            writer.close()


@asynccontextmanager
async def served(path: Path, fake: FakeAgent) -> Any:
    server = await asyncio.start_unix_server(fake.serve, path / "a", limit=1 << 24)
    agent = GuestAgent(path / "a")
    try:
        yield agent
    finally:
        await agent.close()
        server.close()


def returns(value: Any) -> Callable[[str, dict[str, Any]], bytes]:
    return lambda *_: json.dumps({"return": value}).encode() + b"\n"


def says(text: bytes) -> Answers:
    return lambda *_: text


async def test_one_connection_serves_many_commands(tmp_path: Path) -> None:
    fake = FakeAgent(returns({"host-name": "a"}))
    async with served(tmp_path, fake) as agent:
        for _ in range(3):
            assert await agent.host_name(5) == "a"
    assert fake.connections == 1


@pytest.mark.parametrize(
    "text",
    [
        b"[" * 100_000 + b"\n",
        b"garbage\n",
        b"[1]\n",
        b"{}\n",
        b'{"return": ' + b"1" * 5000 + b"}\n",
        b'{"return": "' + b"\xc3\x28" + b'"}\n',
        b"[" + b"1," * 5_000_000 + b"1]\n",
    ],
)
async def test_what_is_no_answer_is_said_to_be_none(tmp_path: Path, text: bytes) -> None:
    async with served(tmp_path, FakeAgent(says(text))) as agent:
        with pytest.raises(AgentNonsense):
            await agent.call("guest-info", 10)


@pytest.mark.parametrize("value", [7, "a", None, [1], {"pid": "x" * 10}])
async def test_answers_of_a_wrong_shape(tmp_path: Path, value: Any) -> None:
    async with served(tmp_path, FakeAgent(returns(value))) as agent:
        asked = [
            agent.os_info(5),
            agent.host_name(5),
            agent.addresses(5),
            agent.read_file("/a", 10, 5),
            agent.execute(ExecRequest(argv=("a",), timeout_seconds=0.2)),
        ]
        for question in asked:
            with suppress(AgentNonsense, AgentTimedOut):
                assert isinstance(await question, dict | list | str | bytes)


async def test_errors_are_bounded(tmp_path: Path) -> None:
    error = json.dumps({"error": {"class": "C" * 9999, "desc": "D" * 9999}}).encode() + b"\n"
    async with served(tmp_path, FakeAgent(says(error))) as agent:
        with pytest.raises(AgentRefused) as caught:
            await agent.call("guest-info", 5)
    assert len(str(caught.value.as_dict())) < 3000


async def test_silence_ends_at_the_limit(tmp_path: Path) -> None:
    fake = FakeAgent(lambda *_: None)
    async with served(tmp_path, fake) as agent:
        before = time.monotonic()
        with pytest.raises(AgentTimedOut):
            await agent.call("guest-info", 0.3)
        assert 0.25 < time.monotonic() - before < 1
        fake.answers = returns(1)
        assert await agent.call("guest-info", 5) == 1


async def test_a_guest_that_never_stops_talking(tmp_path: Path) -> None:
    async def babble(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                writer.write(b'\xff{"return": 1}\n' * 500)
                await writer.drain()
        except OSError:
            writer.close()

    async with await asyncio.start_unix_server(babble, tmp_path / "a"):
        agent = GuestAgent(tmp_path / "a")
        before = time.monotonic()
        with pytest.raises((AgentTimedOut, AgentNonsense)):
            await agent.call("guest-info", 0.5)
        assert time.monotonic() - before < 5
        await agent.close()


async def test_what_nobody_asked_for_ends_the_connection(tmp_path: Path) -> None:
    fake = FakeAgent(says(b'{"return": 1}\n{"return": 2}\n'))
    async with served(tmp_path, fake) as agent:
        assert [await agent.call("guest-info", 5) for _ in range(3)] == [1, 1, 1]


async def test_an_answer_to_a_repeated_synchronization_is_not_the_commands(tmp_path: Path) -> None:
    async with served(tmp_path, FakeAgent(returns("mine"), deaf=1, copies=3)) as agent:
        assert await agent.call("guest-info", 5) == "mine"


async def test_ping_returns_as_soon_as_the_guest_answers(tmp_path: Path) -> None:
    fake = FakeAgent(returns({}), deaf=2)
    async with served(tmp_path, fake) as agent:
        before = time.monotonic()
        await agent.ping(10)
        assert 0.5 < time.monotonic() - before < 2
    assert len(fake.asked) == 3
    assert fake.connections == 1


async def test_ping_waits_for_the_channel_too(tmp_path: Path) -> None:
    agent = GuestAgent(tmp_path / "a")
    waiting = asyncio.create_task(agent.ping(10))
    await asyncio.sleep(0.1)
    async with served(tmp_path, FakeAgent(returns({}))):
        await waiting
        await agent.close()


async def test_ping_does_not_hammer_and_gives_up(tmp_path: Path) -> None:
    fake = FakeAgent(returns({}), deaf=1000)
    async with served(tmp_path, fake) as agent:
        with pytest.raises(AgentTimedOut):
            await agent.ping(1.5)
    assert len(fake.asked) <= 3
    with pytest.raises(AgentTimedOut):
        await GuestAgent(tmp_path / "absent").ping(0.3)


async def test_a_call_without_a_channel_fails_at_once(tmp_path: Path) -> None:
    with pytest.raises(AgentLost):
        await GuestAgent(tmp_path / "absent").host_name(60)


async def test_a_channel_that_closes_in_the_middle(tmp_path: Path) -> None:
    async def close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.close()

    async with await asyncio.start_unix_server(close, tmp_path / "a"):
        with pytest.raises(AgentLost):
            await GuestAgent(tmp_path / "a").host_name(60)


async def test_shutting_down(tmp_path: Path) -> None:
    fake = FakeAgent(lambda *_: None)
    async with served(tmp_path, fake) as agent:
        before = time.monotonic()
        await agent.shut_down(10)
        assert time.monotonic() - before < 0.5
        fake.answers = says(b'{"error": {"class": "GenericError", "desc": "no"}}\n')
        with pytest.raises(AgentRefused):
            await agent.shut_down(10)
    assert fake.asked.count("guest-shutdown") == 2


async def test_a_guest_that_goes_down_at_once_has_taken_it_up(tmp_path: Path) -> None:
    fake = FakeAgent(lambda *_: None)

    def answers(name: str, _: dict[str, Any]) -> None:
        fake.deaf = 100

    fake.answers = answers
    async with served(tmp_path, fake) as agent:
        before = time.monotonic()
        await agent.shut_down(10)
        assert time.monotonic() - before < 2


async def test_addresses_are_those_that_others_can_reach(tmp_path: Path) -> None:
    told = ["fe80::1", "2001:db8::1", "127.0.0.1", "169.254.1.1", "10.0.2.15", "0.0.0.0", "ff02::1"]
    told += [
        "fec0::5054:ff:fe12:3456",
        "feff::1",
        "fd00::1",
        "::1",
        "nonsense",
        "10.0.2.15",
        "192.168.1.1",
        "10.0.0.1",
    ]
    entries = [{"ip-address": each} for each in told]
    value = [{"name": "lo"}, {"name": "eth0", "ip-addresses": entries}]
    async with served(tmp_path, FakeAgent(returns(value))) as agent:
        found = await agent.addresses(5)
    assert found == ["10.0.2.15", "192.168.1.1", "10.0.0.1", "2001:db8::1", "fd00::1"]


async def test_a_file_without_end_is_read_up_to_its_bound(tmp_path: Path) -> None:
    def answers(name: str, _: dict[str, Any]) -> bytes:
        chunk = base64.b64encode(b"x" * 900_000).decode()
        return returns(3 if name == "guest-file-open" else {"buf-b64": chunk, "eof": False})(name, {})

    fake = FakeAgent(answers)
    async with served(tmp_path, fake) as agent:
        assert await agent.read_file("/a", 600_000, 20) == b"x" * 600_000
    assert fake.asked[-1] == "guest-file-close"


async def test_a_program_is_looked_after_ever_less_often(tmp_path: Path) -> None:
    def answers(name: str, _: dict[str, Any]) -> bytes:
        return returns({"pid": 1} if name == "guest-exec" else {"exited": False})(name, {})

    fake = FakeAgent(answers)
    async with served(tmp_path, fake) as agent:
        with pytest.raises(AgentTimedOut):
            await agent.execute(ExecRequest(argv=("a",), timeout_seconds=2))
    assert 3 < fake.asked.count("guest-exec-status") < 16
