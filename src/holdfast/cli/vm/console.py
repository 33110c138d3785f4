"""`holdfast vm console`: the terminal becomes the VM's serial console until Ctrl-]."""

import os
import select
import sys
import termios
import threading
import tty
from typing import Any

from holdfast.cli.names import VmArgument
from holdfast.spec.errors import InvalidInput

EXAMPLE = "holdfast vm console web"
ESCAPE = b"\x1d"


class NotATerminal(InvalidInput):
    id = "not-a-terminal"


def _outward(websocket: Any, out: int, ended: int) -> None:
    try:
        for message in websocket:
            data = message if isinstance(message, bytes) else message.encode()
            while data:
                data = data[os.write(out, data) :]
    finally:
        os.write(ended, b"x")


def _inward(websocket: Any, source: int, ended: int) -> None:
    """Keys to the VM until Ctrl-], the end of input, or a byte on `ended`."""
    while True:
        ready, _, _ = select.select([source, ended], [], [])
        if ended in ready:
            return
        keys = os.read(source, 4096)
        before, escape, _ = keys.partition(ESCAPE)
        if before:
            websocket.send(before)
        if escape or not keys:
            return


def command(name: VmArgument) -> None:
    """Use a VM's serial console here; Ctrl-] leaves it."""
    from websockets.exceptions import ConnectionClosed

    from holdfast.cli.output import say
    from holdfast.cli.session import connect

    source, out = sys.stdin.fileno(), sys.stdout.fileno()
    if not os.isatty(source):
        raise NotATerminal("the console needs a terminal", cure="Use `holdfast vm log` for its output.")
    with connect() as client, client.websocket(name, "console") as websocket:
        say(f"Console of {name}. Ctrl-] leaves it.")
        hear, tell = os.pipe()
        before = termios.tcgetattr(source)
        writer = threading.Thread(target=_outward, args=(websocket, out, tell), daemon=True)
        try:
            tty.setraw(source)
            writer.start()
            _inward(websocket, source, hear)
        except ConnectionClosed:
            pass
        finally:
            termios.tcsetattr(source, termios.TCSAFLUSH, before)
            websocket.close()
            writer.join(2)
    sys.stderr.write("\n")
    say("Left the console.")
