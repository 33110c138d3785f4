"""The guest agent's client against a fake that is hostile."""

import asyncio
import json
from pathlib import Path

import pytest

from holdfast.qmp.agent import AgentNonsense, AgentSilent, GuestAgent


@pytest.mark.parametrize(
    ("answer", "error"),
    [(b'{"return": 7}\n', None), (b"[" * 100_000 + b"\n", AgentNonsense), (b"", AgentSilent)],
)
async def test_answers(tmp_path: Path, answer: bytes, error: type[Exception] | None) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sync = json.loads((await reader.readline()).lstrip(b"\xff"))
        writer.write(b'garbage\n\xff{"return": 1}\n\xff')
        writer.write(json.dumps({"return": sync["arguments"]["id"]}).encode() + b"\n")
        await reader.readline()
        writer.write(answer)
        await reader.read()
        writer.close()

    server = await asyncio.start_unix_server(serve, tmp_path / "a")
    agent = GuestAgent(tmp_path / "a")
    try:
        if error is None:
            assert await agent.call("guest-info") == 7
        else:
            with pytest.raises(error):
                await agent.call("guest-info", 0.5)
    finally:
        server.close()
