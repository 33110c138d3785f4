"""Events as a stream: Server-Sent Events (WHATWG HTML, section 9.2) or JSON Lines.

A reader that was away goes on from the last id it saw. Nothing is queued for a slow one: it reads
from the stored log at its own pace, and the gate cuts it off when it takes nothing for long.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Literal

from fastapi import APIRouter, Header, Query
from fastapi.responses import StreamingResponse

from holdfast.api.access import Viewer, With
from holdfast.spec.event import Event

router = APIRouter(prefix="/v1/events", tags=["events"])
HEARTBEAT_SECONDS = 15.0


def _sse(event: Event) -> bytes:
    return f"id: {event.id}\nevent: {event.kind}\ndata: {event.model_dump_json()}\n\n".encode()


def _line(event: Event) -> bytes:
    return event.model_dump_json().encode() + b"\n"


async def _stream(
    source: AsyncIterator[Event], subject: str | None, format_: Literal["sse", "jsonl"]
) -> AsyncIterator[bytes]:
    write, beat = (_sse, b": still here\n\n") if format_ == "sse" else (_line, b"\n")
    yield beat
    following = asyncio.ensure_future(anext(source))
    try:
        while True:
            done, _ = await asyncio.wait({following}, timeout=HEARTBEAT_SECONDS)
            if not done:
                yield beat
                continue
            try:
                event = following.result()
            except StopAsyncIteration:
                return
            following = asyncio.ensure_future(anext(source))
            if subject is None or subject in (event.subject, event.data.get("id")):
                yield write(event)
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


@router.get("", response_class=StreamingResponse)
async def follow_events(
    services: With,
    _: Viewer,
    after: Annotated[
        int | None, Query(ge=0, description="Go on after this id; absent: only new ones.")
    ] = None,
    subject: Annotated[str | None, Query(max_length=128, description="A name or id.")] = None,
    format: Literal["sse", "jsonl"] = "sse",
    last_event_id: Annotated[int | None, Header(ge=0)] = None,
) -> StreamingResponse:
    """Follows for ever. Events after the moment of the answer's headers are never missed."""
    start = last_event_id if last_event_id is not None else after
    if start is None:
        start = await services.events.last_id()
    media = "text/event-stream" if format == "sse" else "application/jsonl"
    return StreamingResponse(
        _stream(services.events.follow(start), subject, format),
        media_type=media,
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


@router.get("/recent")
async def recent_events(
    services: With, _: Viewer, limit: Annotated[int, Query(ge=1, le=1000)] = 50, subject: str | None = None
) -> list[Event]:
    """The newest events, oldest first."""
    return await services.events.recent(limit, subject)
