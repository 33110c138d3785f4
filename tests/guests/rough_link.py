"""A TCP link as it is between far places: late, now and then a segment lost, cut, or its bytes changed.

For kernels without netem. A relay of bytes cannot lose one, so a lost segment costs what TCP makes of it:
what follows comes a round trip later.
"""

import queue
import random
import socket
import threading
import time

_CHUNK = 16 * 1024
_SEGMENT = 1448  # bytes of TCP in an Ethernet frame
_QUEUED = 64


class RoughLink:
    """Relays connections to its own port to another; every thread ends with its connection.

    Args:
        target: host and port.
        delay: seconds that each byte is late, in each direction.
        loss: share of the segments, 0 to 1.
    """

    def __init__(
        self, target: tuple[str, int], chance: random.Random, *, delay: float = 0.02, loss: float = 0.001
    ) -> None:
        self._target = target
        self._chance = chance
        self._delay = delay
        self._loss = loss
        self._cut_after: int | None = None
        self._corrupt = False
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, name="rough-link", daemon=True).start()

    def cut_after(self, size: int) -> None:
        """Cut all connections once so many bytes more have gone to the target."""
        with self._lock:
            self._cut_after = size

    def corrupt_next(self) -> None:
        """Change one byte of what goes to the target next."""
        with self._lock:
            self._corrupt = True

    @property
    def armed(self) -> bool:
        """Whether what was asked for has not happened yet."""
        with self._lock:
            return self._corrupt or self._cut_after is not None

    def close(self) -> None:
        for each in (self._listener, *self._open):
            _part(each)

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(self._target, timeout=10)
            except OSError:
                near.close()
                continue
            far.settimeout(None)
            self._open |= {near, far}
            for one, other, out in ((near, far, True), (far, near, False)):
                line: queue.Queue[tuple[float, bytes]] = queue.Queue(_QUEUED)
                threading.Thread(target=self._take, args=(one, other, line, out), daemon=True).start()
                threading.Thread(target=self._give, args=(one, other, line), daemon=True).start()

    def _take(
        self, one: socket.socket, other: socket.socket, line: "queue.Queue[tuple[float, bytes]]", out: bool
    ) -> None:
        try:
            while data := one.recv(_CHUNK):
                late = self._delay
                if self._chance.random() < self._loss * len(data) / _SEGMENT:
                    late += 2 * self._delay
                line.put((time.monotonic() + late, self._spoilt(data) if out else data))
        except OSError:
            pass
        line.put((0.0, b""))
        _part(one)

    def _spoilt(self, data: bytes) -> bytes:
        with self._lock:
            if self._corrupt:
                self._corrupt = False
                at = self._chance.randrange(len(data))
                data = data[:at] + bytes([data[at] ^ 1 << self._chance.randrange(8)]) + data[at + 1 :]
            if self._cut_after is not None:
                self._cut_after -= len(data)
                if self._cut_after < 0:
                    self._cut_after = None
                    for each in list(self._open):
                        _part(each)
        return data

    def _give(
        self, one: socket.socket, other: socket.socket, line: "queue.Queue[tuple[float, bytes]]"
    ) -> None:
        while (item := line.get())[1]:
            due, data = item
            time.sleep(max(0.0, due - time.monotonic()))
            try:
                other.sendall(data)
            except OSError:
                _part(one)
        _part(other)
        self._open.discard(other)
        other.close()


def _part(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        connection.close()
