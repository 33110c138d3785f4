"""Digests of bytes that flow by, made on a thread beside the work on them. No state."""

import hashlib
import queue
import threading

_WAITING = 4
"""Pieces that wait for their digest."""


class Digests:
    def __init__(self, algorithms: tuple[str, ...]) -> None:
        """`algorithms`: by hashlib's names."""
        self._hashes = {name: hashlib.new(name, usedforsecurity=False) for name in algorithms}
        self._waiting: queue.Queue[memoryview | bytes | None] = queue.Queue(_WAITING)
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def hear(self, data: memoryview | bytes) -> None:
        """The next bytes, which nobody changes any more. Waits while too many are waiting."""
        if self._hashes:
            self._waiting.put(data)

    def ended(self) -> dict[str, str]:
        """In hex, once all has been heard."""
        self._waiting.put(None)
        self._thread.join()
        return {name: each.hexdigest() for name, each in self._hashes.items()}

    def _work(self) -> None:
        while (data := self._waiting.get()) is not None:
            for each in self._hashes.values():
                each.update(data)
