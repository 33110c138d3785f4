"""Operations: done, undone, cancelled, and resumed after kill -9."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from holdfast.catalog.events import EventLog
from holdfast.catalog.store import Catalog
from holdfast.operations.engine import Operations
from holdfast.operations.procedure import Job, Procedure
from holdfast.operations.records import OperationNotFound
from holdfast.spec.errors import Conflict
from holdfast.spec.operation import OperationState
from holdfast.spec.paging import PageQuery


class Refused(Conflict):
    id = "refused-for-test"


class Write:
    """Appends a line to a file; `fail` raises after it, `hang` waits until somebody cancels."""

    weight = 1.0

    def __init__(self, line: str, then: str = "") -> None:
        self.title = f"write {line}"
        self.line = line
        self.then = then

    async def do(self, job: Job) -> None:
        self._log(job, f"do {self.line}")
        job.notes[self.line] = True
        job.progress(0.5, "half")
        if self.then.startswith("fail"):
            raise Refused("it failed on purpose", value=self.line)
        if self.then == "bug":
            raise ZeroDivisionError
        if self.then == "hang":
            await asyncio.Event().wait()
        if self.then == "die" and not (Path(job.params["log"] + ".died")).exists():
            Path(job.params["log"] + ".died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if self.then == "hang once":
            await self._hang_once(job)

    async def undo(self, job: Job) -> None:
        self._log(job, f"undo {self.line}")
        if self.then == "fail, and hang once in undo":
            await self._hang_once(job)

    @staticmethod
    async def _hang_once(job: Job) -> None:
        """Also makes something else of its cancellation, as a phase well might."""
        mark = Path(job.params["log"] + ".hung")
        if mark.exists():
            return
        mark.touch()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise Refused("it was told to stop") from None

    def _log(self, job: Job, text: str) -> None:
        with Path(job.params["log"]).open("a") as file:
            file.write(text + "\n")


def procedures() -> list[Procedure]:
    return [
        Procedure("good", (Write("a"), Write("b")), result=lambda job: {"notes": sorted(job.notes)}),
        Procedure("bad", (Write("a"), Write("b", "fail"), Write("c"))),
        Procedure("bug", (Write("a", "bug"),)),
        Procedure("hang", (Write("a"), Write("b", "hang"))),
        Procedure("die", (Write("a"), Write("b", "die"), Write("c"))),
        Procedure("hang-once", (Write("a"), Write("b", "hang once"), Write("c"))),
        Procedure("hang-once-in-undo", (Write("a"), Write("b", "fail, and hang once in undo"))),
        Procedure("die-in-undo", (Write("a", "die"), Write("b", "fail"))),
    ]


async def engine_in(folder: Path) -> tuple[Operations, Catalog]:
    catalog = Catalog.open(folder / "c")
    operations = Operations(catalog, EventLog(catalog), folder / "o", idle_poll=0.05)
    for procedure in procedures():
        operations.register(procedure)
    await operations.launch()
    return operations, catalog


@pytest.fixture
async def operations(tmp_path: Path) -> AsyncIterator[Operations]:
    engine, catalog = await engine_in(tmp_path)
    yield engine
    await engine.close()
    catalog.close()


def lines(tmp_path: Path) -> list[str]:
    return (tmp_path / "log").read_text().split("\n")[:-1]


async def run(operations: Operations, kind: str, tmp_path: Path) -> object:
    begun = await operations.submit(kind, "x", {"log": str(tmp_path / "log")}, "test")
    return await asyncio.wait_for(operations.wait(begun.id), 20)


async def test_phases_run_in_order_and_the_result_is_kept(operations: Operations, tmp_path: Path) -> None:
    ended = await run(operations, "good", tmp_path)
    assert ended.state is OperationState.SUCCEEDED and ended.progress == 1.0
    assert ended.result == {"notes": ["a", "b"]} and ended.ended is not None
    assert lines(tmp_path) == ["do a", "do b"]


async def test_a_failure_undoes_in_reverse_and_keeps_its_error(
    operations: Operations, tmp_path: Path
) -> None:
    ended = await run(operations, "bad", tmp_path)
    assert ended.state is OperationState.FAILED
    assert ended.error["id"] == "refused-for-test" and ended.error["value"] == "b"
    assert lines(tmp_path) == ["do a", "do b", "undo b", "undo a"]


async def test_a_bug_fails_the_operation_not_the_engine(operations: Operations, tmp_path: Path) -> None:
    ended = await run(operations, "bug", tmp_path)
    assert ended.state is OperationState.FAILED and ended.error["id"] == "internal-error"
    assert (await run(operations, "good", tmp_path)).state is OperationState.SUCCEEDED


async def test_cancel_undoes(operations: Operations, tmp_path: Path) -> None:
    begun = await operations.submit("hang", "x", {"log": str(tmp_path / "log")}, "test")
    while not (tmp_path / "log").exists() or "do b" not in lines(tmp_path):
        await asyncio.sleep(0.01)
    await operations.cancel(begun.id)
    ended = await asyncio.wait_for(operations.wait(begun.id), 20)
    assert ended.state is OperationState.CANCELLED and ended.error["id"] == "cancelled"
    assert lines(tmp_path) == ["do a", "do b", "undo b", "undo a"]
    assert (await operations.cancel(begun.id)).state is OperationState.CANCELLED


async def test_a_refused_admission_leaves_no_record(operations: Operations, tmp_path: Path) -> None:
    def refuse(session: object, operation_id: str) -> None:
        raise Refused("no")

    with pytest.raises(Refused):
        await operations.submit("good", "x", {}, "test", admit=refuse)
    assert (await operations.list(PageQuery())).total == 0
    with pytest.raises(OperationNotFound):
        await operations.get("nothing")


@pytest.mark.parametrize(
    ("kind", "state", "expected"),
    [
        ("die", OperationState.SUCCEEDED, ["do a", "do b", "do b", "do c"]),
        ("die-in-undo", OperationState.FAILED, ["do a", "do a", "do b", "undo b", "undo a"]),
    ],
)
async def test_after_kill_9_the_interrupted_phase_runs_again(
    tmp_path: Path, kind: str, state: OperationState, expected: list[str]
) -> None:
    program = (
        "import asyncio,sys;sys.path.insert(0,sys.argv[1]);import test_engine as t;from pathlib import Path\n"
        "async def main():\n"
        "  engine,_=await t.engine_in(Path(sys.argv[2]))\n"
        f"  await t.run(engine,{kind!r},Path(sys.argv[2]))\n"
        "asyncio.run(main())"
    )
    argv = [sys.executable, "-c", program, str(Path(__file__).parent), str(tmp_path)]
    done = await asyncio.to_thread(subprocess.run, argv, check=False, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    engine, catalog = await engine_in(tmp_path)
    only = (await engine.list(PageQuery())).items[0]
    ended = await asyncio.wait_for(engine.wait(only.id), 20)
    assert ended.state is state
    assert lines(tmp_path) == expected
    await engine.close()
    catalog.close()


async def closed_in_the_middle(kind: str, folder: Path) -> None:
    """Run by a process of its own: DBOS cannot be launched twice in one."""
    engine, catalog = await engine_in(folder)
    await engine.submit(kind, "x", {"log": str(folder / "log")}, "test")
    while not (folder / "log.hung").exists():
        await asyncio.sleep(0.01)
    await asyncio.wait_for(engine.close(), 15)
    only = (await engine.list(PageQuery())).items[0]
    # Long enough for whatever DBOS would still make of it.
    await asyncio.sleep(0.3)
    assert (await engine.list(PageQuery())).items[0] == only
    (folder / "before").write_text(f"{only.state.value} {(only.error or {}).get('message')}")
    catalog.close()


@pytest.mark.parametrize(
    ("kind", "before", "state", "expected"),
    [
        ("hang-once", "running None", OperationState.SUCCEEDED, ["do a", "do b", "do b", "do c"]),
        (
            "hang-once-in-undo",
            "undoing it failed on purpose",
            OperationState.FAILED,
            ["do a", "do b", "undo b", "undo b", "undo a"],
        ),
    ],
)
async def test_an_orderly_close_leaves_what_is_under_way_to_the_next_launch(
    tmp_path: Path, kind: str, before: str, state: OperationState, expected: list[str]
) -> None:
    program = (
        "import asyncio,sys;sys.path.insert(0,sys.argv[1]);import test_engine as t;from pathlib import Path\n"
        f"asyncio.run(t.closed_in_the_middle({kind!r},Path(sys.argv[2])))"
    )
    argv = [sys.executable, "-c", program, str(Path(__file__).parent), str(tmp_path)]
    done = await asyncio.to_thread(subprocess.run, argv, check=False, capture_output=True, timeout=40)
    assert done.returncode == 0, done.stderr.decode()
    assert (tmp_path / "before").read_text() == before
    engine, catalog = await engine_in(tmp_path)
    only = (await engine.list(PageQuery())).items[0]
    ended = await asyncio.wait_for(engine.wait(only.id), 20)
    assert ended.state is state
    assert lines(tmp_path) == expected
    await engine.close()
    catalog.close()
