"""Sends cycles to a replica until it is killed; says each one's number once it is committed.

python cycles_writer.py FOLDER SEED FROM: what cycle n brings follows from n alone.
"""

import random
import sys
from datetime import UTC, datetime
from pathlib import Path

from holdfast.replication.store.record import Cycle
from holdfast.replication.store.replica import Replica

BLOCK = 4096
BLOCKS = 64


def changes(number: int) -> dict[int, bytes]:
    """Blocks of the one disk that cycle `number` writes."""
    chance = random.Random(number)
    return {chance.randrange(BLOCKS): chance.randbytes(BLOCK) for _ in range(8)}


def main(folder: Path) -> None:
    replica = Replica(folder, largest_file=400 * BLOCK)
    points = replica.points()
    newest = points[-1].cycle if points else 0
    while True:
        number = newest + 1
        taken = datetime.fromtimestamp(number, UTC)
        incoming = replica.begin(Cycle(number, taken, {"disk": BLOCKS * BLOCK}, base=newest))
        for block, data in changes(number).items():
            incoming.write("disk", block * BLOCK, data)
        incoming.commit()
        newest = number
        print(number, flush=True)
        if number % 7 == 0:
            kept = [each.number for each in replica.points()]
            replica.prune(kept[len(kept) // 2 :: 2])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
