"""Serial console and VNC of a VM: WebSockets whose binary messages are the bytes of a UNIX socket."""

import asyncio
import contextlib
from pathlib import Path

from fastapi import APIRouter, WebSocket, WebSocketDisconnect

from holdfast.api.access import Operator, With
from holdfast.spec.errors import Failed

router = APIRouter(prefix="/v1/vms", tags=["vms"])
_CHUNK = 64 * 1024


class ConsoleGone(Failed):
    id = "console-gone"


async def _bridge(websocket: WebSocket, path: Path) -> None:
    try:
        reader, writer = await asyncio.open_unix_connection(path)
    except OSError as error:
        raise ConsoleGone(
            "the machine's socket does not answer", cure="Look at `holdfast vm log`."
        ) from error
    offered = websocket.scope.get("subprotocols", [])
    await websocket.accept(subprotocol="binary" if "binary" in offered else None)

    async def outward() -> None:
        while data := await reader.read(_CHUNK):
            await websocket.send_bytes(data)

    async def inward() -> None:
        while True:
            message = await websocket.receive()
            if message["type"] == "websocket.disconnect":
                return
            writer.write(message.get("bytes") or (message.get("text") or "").encode())
            await writer.drain()

    tasks = {asyncio.create_task(outward()), asyncio.create_task(inward())}
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            with contextlib.suppress(WebSocketDisconnect, ConnectionError):
                task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        writer.close()
        with contextlib.suppress(RuntimeError, WebSocketDisconnect, ConnectionError):
            await websocket.close()


@router.websocket("/{name}/console")
async def console(websocket: WebSocket, services: With, _: Operator, name: str) -> None:
    await _bridge(websocket, await services.vms.console_path(name))


@router.websocket("/{name}/vnc")
async def vnc(websocket: WebSocket, services: With, _: Operator, name: str) -> None:
    await _bridge(websocket, await services.vms.vnc_path(name))
