"""Runs procedures durably, on DBOS: a workflow an operation, a recorded step a phase.

DBOS (operations.sqlite) owns which phases have ended and runs the rest again after a crash; the
catalog owns what a person sees (state, progress, result) and the notes. Phases run as tasks of the
daemon's own loop, whatever thread DBOS calls from, so they may touch VM owners and sockets.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import Context
from pathlib import Path
from typing import Any, TypeVar

import structlog
from dbos import DBOS, SetWorkflowID
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from holdfast.catalog.clock import now
from holdfast.catalog.events import EventLog
from holdfast.catalog.store import Catalog, CatalogFull
from holdfast.catalog.tables import OperationRow
from holdfast.host.reserve import SpaceReserve
from holdfast.operations import records
from holdfast.operations.procedure import Job, Phase, Procedure
from holdfast.operations.step_store import step_engine
from holdfast.spec.errors import Cancelled, HoldfastError
from holdfast.spec.ids import new_id
from holdfast.spec.operation import Operation, OperationState
from holdfast.spec.paging import Page, PageQuery

log = structlog.get_logger(__name__)
T = TypeVar("T")

_KEPT_OPERATIONS = 2000
_PROGRESS_INTERVAL = 0.5  # seconds between two stored reports of one operation
_ROOM_PAUSE = 2.0  # seconds between two attempts to write on a full disk: nothing reports that it has room
_CLOSING_PATIENCE = 10.0  # seconds for phases to let go when they are cancelled
_CANCEL_WIRE = Cancelled("cancelled on request").as_dict()


class _Running:
    """What is only in memory about an operation under way."""

    def __init__(self) -> None:
        self.task: asyncio.Task[None] | None = None
        self.stored_at = 0.0
        self.ended = asyncio.Event()


class Operations:
    """Owner of all operations of this daemon. Register every procedure, then `launch`."""

    def __init__(
        self,
        catalog: Catalog,
        events: EventLog,
        path: Path,
        reserve: SpaceReserve | None = None,
        idle_poll: float = 3600.0,
    ) -> None:
        """`idle_poll`: seconds between DBOS's own look-ups for notices, which nothing here sends.

        `reserve` is given up where DBOS finds the disk full.
        """
        self._idle_poll = idle_poll
        self._catalog = catalog
        self._events = events
        self._path = path
        self._reserve = reserve
        self._engine: Engine | None = None
        self._procedures: dict[str, Procedure] = {}
        self._running: dict[str, _Running] = {}
        self._background: set[asyncio.Task[None]] = set()
        self._steps: set[asyncio.Task[Any]] = set()
        self._work: set[asyncio.Future[None]] = set()
        self._closing = False
        self._loop = asyncio.get_running_loop()
        self.before_finish: list[Callable[[Session, OperationRow], None]] = []
        """Called in the transaction that ends an operation."""

    def register(self, procedure: Procedure) -> None:
        self._procedures[procedure.kind] = procedure

    async def launch(self) -> None:
        """Start the engine; everything that a crash interrupted goes on."""
        logging.getLogger("dbos").setLevel(logging.WARNING)
        self._engine = step_engine(self._path, self._reserve)
        DBOS(
            config={
                "name": "holdfast",
                "system_database_url": f"sqlite:///{self._path}",
                "system_database_engine": self._engine,
                "application_version": "holdfast",  # an upgraded daemon resumes what the old one began
                "log_level": "WARNING",
                "notification_listener_polling_interval_sec": self._idle_poll,
                "scheduler_polling_interval_sec": 3600.0,
            }
        )

        @DBOS.step(name="phase")
        async def step(operation_id: str, index: int, what: str) -> dict[str, Any]:
            return await self._step(operation_id, index, what)

        @DBOS.workflow(name="operation", max_recovery_attempts=None)
        async def workflow(operation_id: str, phases: int) -> None:
            for index in range(phases):
                outcome = await step(operation_id, index, "do")
                if outcome.get("error"):
                    for earlier in range(index, -1, -1):
                        await step(operation_id, earlier, "undo")
                    await step(operation_id, 0, "fail")
                    return
            await step(operation_id, 0, "succeed")

        self._workflow = workflow
        await asyncio.to_thread(DBOS.launch)
        for operation_id in await self._catalog.read(records.unfinished):
            self._running.setdefault(operation_id, _Running())
            if await DBOS.get_workflow_status_async(operation_id) is None:
                await self._begin(operation_id)
        await self._forget_old()

    async def close(self) -> None:
        """Leave everything as a crash would: what is under way goes on at the next launch."""
        self._closing = True
        for work in self._work:
            work.cancel()
        # A step that is only storing its outcome ends by itself.
        ending = {*self._steps, *self._background}
        if ending:
            await asyncio.wait(ending, timeout=_CLOSING_PATIENCE)
        await asyncio.to_thread(DBOS.destroy, destroy_registry=True)
        if self._engine:
            self._engine.dispose()

    async def submit(
        self,
        kind: str,
        subject: str,
        params: dict[str, Any],
        actor: str,
        admit: Callable[[Session, str], None] | None = None,
    ) -> Operation:
        """Record the operation and begin it.

        `admit(session, operation_id)` runs in the transaction that records it: it may refuse by
        raising, and reserve what the operation needs; both or neither are stored.
        """
        procedure = self._procedures[kind]
        row = OperationRow(
            id=new_id(),
            kind=kind,
            subject=subject,
            state=OperationState.RUNNING,
            phase=procedure.phases[0].title,
            actor=actor,
            params=params,
            notes={},
            progress=0.0,
            text="",
            created=now(),
        )

        def store(session: Session) -> None:
            if admit:
                admit(session, row.id)
            session.add(row)
            self._events.append(session, "operation.started", subject, {"id": row.id, "kind": kind})

        await self._catalog.write(store)
        self._running[row.id] = _Running()
        await self._begin(row.id)
        return records.to_operation(row)

    async def _begin(self, operation_id: str) -> None:
        row = await self._catalog.read(lambda session: records.load(session, operation_id))

        async def start() -> None:
            with SetWorkflowID(operation_id):
                await DBOS.start_workflow_async(
                    self._workflow, operation_id, len(self._procedures[row.kind].phases)
                )

        # One that a phase of another begins is its own: DBOS would take it for a child of that phase's step.
        await asyncio.create_task(start(), context=Context())

    async def get(self, operation_id: str) -> Operation:
        return await self._catalog.read(
            lambda session: records.to_operation(records.load(session, operation_id))
        )

    async def list(self, query: PageQuery, running_only: bool = False) -> Page[Operation]:
        return await self._catalog.read(lambda session: records.page(session, query, running_only))

    async def unfinished(self) -> dict[str, dict[str, Any]]:
        """The operations that have not ended: id to what was asked for."""
        return await self._catalog.read(
            lambda session: {
                each: dict(records.load(session, each).params) for each in records.unfinished(session)
            }
        )

    async def wait(self, operation_id: str) -> Operation:
        """The operation as it is once it has ended."""
        running = self._running.get(operation_id)
        if running:
            await running.ended.wait()
        return await self.get(operation_id)

    async def cancel(self, operation_id: str) -> Operation:
        """Ask it to stop and be undone. Nothing happens where it has ended already."""

        def mark(session: Session) -> Operation:
            row = records.load(session, operation_id)
            if row.state == OperationState.RUNNING:
                row.state = OperationState.UNDOING
                row.error = _CANCEL_WIRE
            return records.to_operation(row)

        operation = await self._catalog.write(mark)
        running = self._running.get(operation_id)
        if operation.state is OperationState.UNDOING and running and running.task:
            running.task.cancel()
        return operation

    async def _step(self, operation_id: str, index: int, what: str) -> dict[str, Any]:
        """One recorded step. Runs in DBOS's loop; the work itself runs in the daemon's."""
        handlers: dict[str, Callable[[str, int], Awaitable[dict[str, Any]]]] = {
            "do": self._do,
            "undo": self._undo,
            "fail": self._fail,
            "succeed": self._succeed,
        }
        handled = self._handled(handlers[what], operation_id, index)
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(handled, self._loop))

    async def _handled(
        self, handler: Callable[[str, int], Awaitable[dict[str, Any]]], operation_id: str, index: int
    ) -> dict[str, Any]:
        self._stay_open()
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  (for the type checker: coroutines run in tasks)
        self._steps.add(task)
        try:
            return await handler(operation_id, index)
        finally:
            self._steps.discard(task)

    def _stay_open(self) -> None:
        """Raises CancelledError while closing: of a step that ends with it DBOS records nothing."""
        if self._closing:
            raise asyncio.CancelledError

    def _worked(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """A phase's work as a task that `close` cancels."""
        task = asyncio.ensure_future(work)
        self._work.add(task)
        task.add_done_callback(self._work.discard)
        return task

    async def _do(self, operation_id: str, index: int) -> dict[str, Any]:
        job, phase = await self._job(operation_id, index)
        running = self._running.setdefault(operation_id, _Running())
        if (await self.get(operation_id)).state is OperationState.UNDOING:
            return {"error": True}
        self._stay_open()
        running.task = self._worked(phase.do(job))
        error: dict[str, Any] | None = None
        try:
            await asyncio.shield(running.task)
        except asyncio.CancelledError:
            error = _CANCEL_WIRE
        except Exception as failure:
            error = self._told(failure, job, phase)
        finally:
            running.task = None
        self._stay_open()

        def store(session: Session) -> bool:
            row = records.load(session, operation_id)
            row.notes = dict(job.notes)
            if error and row.state == OperationState.RUNNING:
                row.state = OperationState.UNDOING
                row.error = error
            return row.state == OperationState.UNDOING

        return {"error": await self._stored(store)}

    async def _stored(self, store: Callable[[Session], T]) -> T:
        """Write what must be written before an operation can go on; waits for room on a full disk."""
        while True:
            try:
                return await self._catalog.write(store)
            except CatalogFull as error:
                log.warning("an operation waits for room", error=error.message, cure=error.cure)
                await asyncio.sleep(_ROOM_PAUSE)
                self._stay_open()

    @staticmethod
    def _told(failure: Exception, job: Job, phase: Phase) -> dict[str, Any]:
        """A failure in wire form; what is no refusal of ours is a defect, and the log has all of it."""
        refusal = _refusal(failure)
        if refusal is None:
            log.error("phase failed", operation=job.id, kind=job.kind, phase=phase.title, exc_info=failure)
            refusal = HoldfastError(
                f"{phase.title} failed: {failure}",
                value=job.id,
                cure="Look in the daemon's log for this operation's id and report what stands there.",
                detail={"operation": job.id},
            )
        return refusal.as_dict()

    async def _undo(self, operation_id: str, index: int) -> dict[str, Any]:
        job, phase = await self._job(operation_id, index)
        self._stay_open()
        while not await self._undone(job, phase):
            await asyncio.sleep(_ROOM_PAUSE)
            self._stay_open()
        self._stay_open()
        return {}

    async def _undone(self, job: Job, phase: Phase) -> bool:
        """False: the records have no room, and the same undo is to run again."""
        try:
            await self._worked(phase.undo(job))
        except Exception as failure:
            if isinstance(_refusal(failure), CatalogFull):
                log.warning("an undo waits for room", operation=job.id, kind=job.kind, phase=phase.title)
                return False
            # The remaining undos still run: each leftover less is worth it.
            log.exception("undo failed", operation=job.id, kind=job.kind, phase=phase.title)
        return True

    async def _fail(self, operation_id: str, _: int) -> dict[str, Any]:
        def state(row: OperationRow) -> OperationState:
            cancelled = row.error is not None and row.error.get("id") == Cancelled.id
            return OperationState.CANCELLED if cancelled else OperationState.FAILED

        await self._finish(operation_id, state)
        return {}

    async def _succeed(self, operation_id: str, _: int) -> dict[str, Any]:
        job, _phase = await self._job(operation_id, 0)
        make = self._procedures[job.kind].result
        result = make(job) if make else None

        def state(row: OperationRow) -> OperationState:
            row.result, row.progress, row.error = result, 1.0, None
            return OperationState.SUCCEEDED

        await self._finish(operation_id, state)
        return {}

    async def _finish(self, operation_id: str, decide: Callable[[OperationRow], OperationState]) -> None:
        def store(session: Session) -> None:
            row = records.load(session, operation_id)
            row.state = decide(row)
            row.ended = now()
            row.text = ""
            for hook in self.before_finish:
                hook(session, row)
            data = {"id": row.id, "kind": row.kind, "state": row.state, **records.wire_error(row.error)}
            self._events.append(session, "operation.ended", row.subject, data)

        await self._stored(store)
        running = self._running.pop(operation_id, None)
        if running:
            running.ended.set()

    async def _job(self, operation_id: str, index: int) -> tuple[Job, Phase]:
        row = await self._catalog.read(lambda session: records.load(session, operation_id))
        procedure = self._procedures[row.kind]
        phase = procedure.phases[index]
        total = sum(each.weight for each in procedure.phases) or 1.0
        before = sum(each.weight for each in procedure.phases[:index])

        def report(fraction: float, text: str) -> None:
            self._report(operation_id, phase.title, (before + fraction * phase.weight) / total, text)

        async def keep() -> None:
            def store(session: Session) -> None:
                records.load(session, operation_id).notes = dict(job.notes)

            await self._catalog.write(store)

        job = Job(row.id, row.kind, row.subject, row.actor, row.params, dict(row.notes), report, keep)
        report(0.0, "")
        return job, phase

    def _report(self, operation_id: str, phase: str, progress: float, text: str) -> None:
        running = self._running.get(operation_id)
        if running is None or time.monotonic() - running.stored_at < _PROGRESS_INTERVAL:
            return
        running.stored_at = time.monotonic()

        def store(session: Session) -> None:
            row = records.load(session, operation_id)
            if OperationState(row.state).ended:
                return
            row.phase, row.progress, row.text = phase, round(progress, 4), text[:256]
            data = {
                "id": row.id,
                "kind": row.kind,
                "phase": phase,
                "progress": row.progress,
                "text": row.text,
            }
            self._events.append(session, "operation.progress", row.subject, data)

        task = self._loop.create_task(self._catalog.write(store))
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _forget_old(self) -> None:
        forgotten = await self._catalog.write(lambda session: records.forget_old(session, _KEPT_OPERATIONS))
        if forgotten:
            await DBOS.delete_workflows_async(forgotten)


def _refusal(failure: BaseException) -> HoldfastError | None:
    """The first refusal in a failure, which tasks side by side may have wrapped together."""
    if isinstance(failure, BaseExceptionGroup):
        return next((found for each in failure.exceptions if (found := _refusal(each))), None)
    return failure if isinstance(failure, HoldfastError) else None
