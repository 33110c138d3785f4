"""What is kept of minutes and hours: bounded, whole after a kill, begun anew where it cannot be read."""

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from holdfast.replication.history import HOUR, HOURS_KEPT, MINUTE, MINUTES_KEPT, History
from holdfast.replication.intervals import Interval

START = 480_000 * HOUR
ONE = Interval(seconds=60, cycles=60, changed=6000, largest=200, latency=12.0, spread={20: 60.0})


@pytest.fixture
async def history(tmp_path: Path) -> AsyncIterator[History]:
    made = History(tmp_path / "history.sqlite")
    yield made
    await made.close()


async def test_minutes_are_joined_into_hours_and_old_ones_go(history: History) -> None:
    days = 4
    for minute in range(0, days * 24 * HOUR, 10 * MINUTE):
        await history.write(START + minute, {"a": ONE}, ["a"])
    end = START + days * 24 * HOUR
    recent = await history.read("a", end - 12 * HOUR, end)
    assert (len(recent), recent[0].span, recent[0].begin) == (72, MINUTE, end - 12 * HOUR)
    everything = await history.read("a", START, end)
    assert [each.span for each in everything] == [HOUR] * (24 * days)
    assert sum(each.interval.cycles for each in everything) == 60 * 6 * 24 * days
    assert [each.begin for each in everything] == list(range(START, end, HOUR))
    assert await history.read("a", START, START + 12 * HOUR) == ()  # those minutes are gone
    last = START + HOURS_KEPT + 24 * HOUR
    await history.write(last, {"a": ONE}, ["a"])
    kept = await history.read("a", START, last + HOUR)
    assert kept[0].begin == START + 24 * HOUR
    assert len(kept) == 24 * (days - 1) + 1
    assert MINUTES_KEPT > 24 * HOUR


async def test_hours_are_joined_though_nobody_ran_when_they_ended(tmp_path: Path) -> None:
    history = History(tmp_path / "history.sqlite")
    await history.write(START + HOUR - MINUTE, {"a": ONE}, ["a"])
    await history.close()
    again = History(tmp_path / "history.sqlite")
    await again.write(START + 30 * HOUR, {"a": ONE}, ["a"])
    found = await again.read("a", START, START + 31 * HOUR)
    assert [(each.begin, each.span) for each in found] == [(START, HOUR), (START + 30 * HOUR, HOUR)]
    await again.close()


async def test_what_is_reset_or_of_nobody_is_gone(history: History) -> None:
    for name in ("a", "b", "c"):
        await history.write(START, {name: ONE}, ["a", "b", "c"])
    await history.reset("a")
    assert await history.read("a", START, START + HOUR) == ()
    await history.write(START + HOUR, {}, ["b"])
    assert len(await history.read("b", START, START + HOUR)) == 1
    assert await history.read("c", START, START + HOUR) == ()


async def test_a_minute_written_twice_is_there_once(history: History) -> None:
    for _ in range(2):
        await history.write(START, {"a": ONE}, ["a"])
    (kept,) = await history.read("a", START, START + MINUTE)
    assert kept.interval == ONE


async def test_a_file_that_cannot_be_read_is_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "history.sqlite"
    for content in (b"nonsense" * 1000, b""):
        path.write_bytes(content)
        history = History(path)
        await history.write(START, {"a": ONE}, ["a"])
        assert len(await history.read("a", START, START + MINUTE)) == 1
        await history.close()
    assert path.stat().st_mode & 0o077 == 0 or content == b""


_WRITER = """
import asyncio, sys
from pathlib import Path
from holdfast.replication.history import History
from holdfast.replication.intervals import Interval
async def main():
    history = History(Path(sys.argv[1]))
    for minute in range(10**6):
        rows = {each: Interval(cycles=minute) for each in ("a", "b")}
        await history.write(minute * 60, rows, rows)
        print(minute, flush=True)
asyncio.run(main())
"""


def written_until_killed(path: Path) -> int:
    with subprocess.Popen([sys.executable, "-c", _WRITER, path], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        for line in writer.stdout:
            if int(line) == 200:
                os.kill(writer.pid, signal.SIGKILL)
        return int(line)


async def test_every_minute_that_was_written_outlives_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "history.sqlite"
    last = written_until_killed(path)
    history = History(path)
    for name in ("a", "b"):
        found = await history.read(name, 0, 24 * HOUR)
        assert {each.interval.cycles for each in found} >= set(range(last + 1))
    await history.close()
