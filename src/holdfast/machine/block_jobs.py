"""QEMU's background jobs on disks (mirror, commit, stream, create): begun or found, followed, ended.

    created ▶ running ▶ ready ──job-complete──▶ waiting ▶ pending ▶ concluded ──job-dismiss──▶ null
    (QEMU, docs/interop and qapi/job.json; only mirror and a commit of the active layer become ready)

A job belongs to QEMU: it outlives the daemon, and is found again by its id.

What a job had put into a chain has no child any more from its end until it is dismissed, and QEMU (10.0.2)
ends in a segmentation fault where nodes are listed then. So a job waits for us (`pending`) before it ends,
and nobody lists nodes (`QmpSession.node_list`) from there on until it is dismissed.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any

from holdfast.qmp.errors import QmpRefused, QmpTimedOut
from holdfast.qmp.session import Listener, QmpSession
from holdfast.spec.errors import Failed, HoldfastError

Progress = Callable[[int, int], None]
"""Told how far a job is: done and total, in the job's own unit (bytes, for jobs on disks)."""

Alone = Callable[[], AbstractAsyncContextManager[None]]
_LOOK = 0.5  # seconds between two looks at how far it is
_CANCEL_SECONDS = 60.0
_ENDS_WITH_US = {"auto-finalize": False, "auto-dismiss": False}


class BlockJobFailed(Failed):
    id = "block-job-failed"


@dataclass(frozen=True)
class JobState:
    """One job as QEMU tells of it (qapi/job.json, JobInfo)."""

    id: str
    kind: str
    status: str
    done: int
    total: int
    error: str | None


class BlockJobs:
    """The jobs of one QEMU."""

    def __init__(self, session: QmpSession, alone: Alone = contextlib.nullcontext) -> None:
        """`alone` lasts while a job begins: nobody is shown the disks then.

        QEMU (10.0.2) may hang for ever where a job ends below a node that copies before it writes. Once there
        is a job, no snapshot is taken.
        """
        self._session, self._alone = session, alone

    async def all(self) -> dict[str, JobState]:
        found = await self._session.execute("query-jobs")
        return {
            job["id"]: JobState(
                job["id"],
                job["type"],
                job["status"],
                job["current-progress"],
                job["total-progress"],
                job.get("error"),
            )
            for job in found
        }

    async def run(
        self, job_id: str, command: str, arguments: dict[str, Any], progress: Progress = lambda *_: None
    ) -> None:
        """Begin a job and return once it has ended well; where we are cancelled, so is the job.

        Args:
            job_id: also given to `command` as `job-id`; `auto-dismiss` is switched off for it.

        Raises:
            BlockJobFailed: it ended with an error; the value is what QEMU said.
            QmpRefused: it could not begin.
        """
        async with self._session.listen("JOB_STATUS_CHANGE") as listener:
            await self.begin(job_id, command, arguments)
            async with self._ended_with_us(job_id):
                await self._to_its_end(job_id, listener, progress)

    async def run_until_ready(
        self, job_id: str, command: str, arguments: dict[str, Any], progress: Progress = lambda *_: None
    ) -> bool:
        """As `run`, but return True as soon as the job is ready; `follow` then completes it.

        False: it has ended well without ever being ready.
        """
        async with self._session.listen("JOB_STATUS_CHANGE") as listener:
            await self.begin(job_id, command, arguments)
            async with self._ended_with_us(job_id):
                if await self._is_ready(job_id, listener, progress):
                    return True
                await self._to_its_end(job_id, listener, progress)
                return False

    async def follow(self, job_id: str, progress: Progress = lambda *_: None) -> None:
        """As `run`, for a job that is under way or has ended without having been dismissed."""
        async with self._session.listen("JOB_STATUS_CHANGE") as listener, self._ended_with_us(job_id):
            await self._to_its_end(job_id, listener, progress)

    async def follow_until_ready(self, job_id: str, progress: Progress = lambda *_: None) -> None:
        """Follow a job that is under way until it is ready; `follow` then completes it.

        Raises:
            BlockJobFailed: it has ended, and is dismissed.
        """
        async with self._session.listen("JOB_STATUS_CHANGE") as listener:
            if not await self._is_ready(job_id, listener, progress):
                job = (await self.all()).get(job_id)
                await self._dismiss(job_id)
                raise _failed("copy", (job and job.error) or "it ended early")

    async def cancel(self, job_id: str) -> None:
        """End a job and dismiss it; nothing happens where there is none of that id.

        What a mirror had copied stays in its target, which is not switched to.
        """
        async with self._session.listen("JOB_STATUS_CHANGE") as listener, self._session.node_list:
            job = (await self.all()).get(job_id)
            if job is None:
                return
            if job.status != "concluded":
                with contextlib.suppress(QmpRefused):  # it may just have ended
                    await self._session.execute("block-job-cancel", {"device": job_id, "force": True})
                async with asyncio.timeout(_CANCEL_SECONDS):
                    while (job := (await self.all()).get(job_id)) and job.status != "concluded":
                        with contextlib.suppress(QmpTimedOut):
                            await listener.get(_LOOK)
            await self._dismiss(job_id)

    async def begin(self, job_id: str, command: str, arguments: dict[str, Any]) -> None:
        """Begin a job that is followed later. Raises QmpRefused: it could not begin."""
        async with self._alone(), self._session.block_graph:
            await self._session.execute(command, {**arguments, "job-id": job_id, **_ENDS_WITH_US})

    @contextlib.asynccontextmanager
    async def _ended_with_us(self, job_id: str) -> AsyncIterator[None]:
        """Where we fail or are cancelled, the job is cancelled too."""
        try:
            yield
        except BaseException:
            with contextlib.suppress(HoldfastError, TimeoutError):
                await asyncio.shield(self.cancel(job_id))
            raise

    async def _is_ready(self, job_id: str, listener: Listener, progress: Progress) -> bool:
        """True once it is; False: it has ended, and nothing of that is taken in yet."""
        while (job := (await self.all()).get(job_id)) and job.status not in ("pending", "concluded"):
            progress(job.done, job.total)
            if job.status == "ready":
                return True
            with contextlib.suppress(QmpTimedOut):
                await listener.get(_LOOK)
        return False

    async def _to_its_end(self, job_id: str, listener: Listener, progress: Progress) -> None:
        completed = False
        while job := (await self.all()).get(job_id):
            progress(job.done, job.total)
            if job.status in ("pending", "concluded"):
                job = await self._ended(job, listener)
                if job.error:
                    raise _failed(job.kind, job.error)
                return
            if job.status == "ready" and not completed:
                await self._session.execute("job-complete", {"id": job_id})
                completed = True
            with contextlib.suppress(QmpTimedOut):
                await listener.get(_LOOK)

    async def _ended(self, job: JobState, listener: Listener) -> JobState:
        """How it ended, and nothing is left of it."""
        async with self._session.node_list:
            if job.status == "pending":
                await self._session.execute("job-finalize", {"id": job.id})
            while (now := (await self.all()).get(job.id)) and now.status != "concluded":
                with contextlib.suppress(QmpTimedOut):
                    await listener.get(_LOOK)
            await self._dismiss(job.id)
            return now or job

    async def _dismiss(self, job_id: str) -> None:
        with contextlib.suppress(QmpRefused):
            await self._session.execute("job-dismiss", {"id": job_id})


def _failed(kind: str, error: str) -> BlockJobFailed:
    return BlockJobFailed(
        f"QEMU could not finish the {kind} of a disk: {error}",
        value=error,
        cure="See that the disk's storage works and has space left, and try again.",
    )
