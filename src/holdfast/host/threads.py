"""Work off the event loop that must not be left half watched."""

import asyncio
import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


async def to_its_end(work: Callable[P, T], *args: P.args, **named: P.kwargs) -> T:
    """Run `work` in a thread. Where the caller is cancelled, it goes on once the thread has ended.

    `asyncio.to_thread` would let go of the thread at once, and what follows would meet it at work.
    """
    running = asyncio.ensure_future(asyncio.to_thread(work, *args, **named))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait({running})
        running.exception()  # told to nobody any more
        raise


async def stoppable(work: Callable[[threading.Event], None]) -> None:
    """As `to_its_end`, but where the caller is cancelled the event tells `work` to end at once."""
    stop = threading.Event()
    running = asyncio.ensure_future(asyncio.to_thread(work, stop))
    try:
        await asyncio.shield(running)
    except asyncio.CancelledError:
        stop.set()
        await asyncio.wait({running})
        running.exception()  # told to nobody any more
        raise
