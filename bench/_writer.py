"""A synthetic writer: random writes to a file, at a rate or as fast as they are done, one after another.

A process of its own, so that what it measures is not held up by who asked for it. It prints one JSON object:
`bytes`, `seconds`, and the `latencies` of its writes in seconds, as measured from when each was due where
there is a rate. Run as `python -m bench._writer PATH SIZE BLOCK RATE SECONDS SEED`.
"""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

_POOL = 64 * 1024 * 1024
"""Bytes of noise that blocks are cut from: nothing in it can be compressed."""


class Writer:
    """The process that writes."""

    def __init__(self, path: Path, size: int, *, block: int, rate: float, seconds: float, seed: int = 0):
        """`rate`: bytes a second; 0: as fast as they are done."""
        argv = [sys.executable, "-m", "bench._writer", str(path)]
        argv += [str(each) for each in (size, block, rate, seconds, seed)]
        self._process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)

    def result(self) -> dict:
        """Once it has ended."""
        said, _ = self._process.communicate()
        if self._process.returncode:
            raise RuntimeError(f"a writer ended with {self._process.returncode}")
        return json.loads(said)

    def end(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()


def main(path: str, size: int, block: int, rate: float, seconds: float, seed: int) -> None:
    chance = random.Random(seed)
    noise = memoryview(chance.randbytes(min(_POOL, 64 * block)) + os.urandom(block))
    latencies, written = [], 0
    fd = os.open(path, os.O_RDWR)
    begun = time.perf_counter()
    due = begun
    while (now := time.perf_counter()) < begun + seconds:
        if rate:
            if now < due:
                time.sleep(due - now)
            asked, due = due, due + block / rate
        else:
            asked = now
        at = chance.randrange(len(noise) - block)
        os.pwrite(fd, noise[at : at + block], chance.randrange(size // block) * block)
        latencies.append(time.perf_counter() - asked)
        written += block
    done = time.perf_counter() - begun
    os.close(fd)
    print(json.dumps({"bytes": written, "seconds": done, "latencies": latencies}))


if __name__ == "__main__":
    _path, *_numbers = sys.argv[1:]
    _size, _block, _rate, _seconds, _seed = (float(each) for each in _numbers)
    main(_path, int(_size), int(_block), _rate, _seconds, int(_seed))
