"""A thread that is cancelled from outside is waited for."""

import asyncio
import threading

import pytest

from holdfast.host.threads import to_its_end


async def test_a_cancelled_caller_goes_on_when_the_thread_has_ended() -> None:
    begun, go, done = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        go.wait(10)
        done.set()

    task = asyncio.create_task(to_its_end(work))
    await asyncio.to_thread(begun.wait, 10)
    task.cancel()
    await asyncio.sleep(0.05)
    assert not task.done()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert done.is_set()


async def test_results_and_errors_come_through() -> None:
    assert await to_its_end(lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        await to_its_end(lambda: 1 // 0)
