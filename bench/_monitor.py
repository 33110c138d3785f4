"""A monitor or an agent as somebody at a shell would speak to it: one socket, one command after another."""

import json
import socket
import time
from pathlib import Path
from typing import Any


class Monitor:
    """QMP; every event is kept with QEMU's own time stamp."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(120)
        self._socket.connect(str(path))
        self._stream = self._socket.makefile("rwb")
        self.events: list[dict[str, Any]] = []
        self._read()
        self.do("qmp_capabilities")

    def _read(self) -> dict[str, Any]:
        said: dict[str, Any] = json.loads(self._stream.readline())
        return said

    def do(self, command: str, **arguments: Any) -> Any:
        """The answer; `_` in an argument's name stands for `-`."""
        sent = {name.replace("_", "-"): value for name, value in arguments.items()}
        self._stream.write(json.dumps({"execute": command, "arguments": sent}).encode() + b"\n")
        self._stream.flush()
        while True:
            said = self._read()
            if "event" in said:
                self.events.append(said)
            elif "error" in said:
                raise RuntimeError(f"{command}: {said['error']}")
            else:
                return said["return"]

    def until(self, event: str, **data: Any) -> None:
        """Until an event with these data has come; those before it are kept too."""
        seen = 0
        while True:
            while seen < len(self.events):
                found = self.events[seen]
                seen += 1
                if found["event"] == event and data.items() <= found.get("data", {}).items():
                    return
            self.events.append(self._read())

    def stall(self) -> float:
        """Seconds between the last STOP and the RESUME after it."""
        stamps = {
            each["event"]: each["timestamp"]["seconds"] + each["timestamp"]["microseconds"] / 1e6
            for each in self.events
            if each["event"] in ("STOP", "RESUME")
        }
        return float(stamps["RESUME"] - stamps["STOP"])

    def close(self) -> None:
        self._stream.close()
        self._socket.close()


def agent(path: Path, command: str, /, **arguments: Any) -> Any:
    """One command to the guest's agent."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(30)
        connection.connect(str(path))
        stream = connection.makefile("rwb")
        token = time.monotonic_ns() % 2**31
        ask = {"execute": "guest-sync-delimited", "arguments": {"id": token}}
        stream.write(b"\xff" + json.dumps(ask).encode() + b"\n")
        stream.flush()
        while f'"return": {token}'.encode() not in stream.readline():
            pass
        stream.write(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        stream.flush()
        return json.loads(stream.readline())["return"]
