"""Files of a source that exist in memory only."""

import os

from holdfast.storage.appliances.source import HeldFile


def held(name: str, data: bytes) -> HeldFile:
    fd = os.memfd_create(name.rpartition("/")[2][:200])
    os.write(fd, data)
    return HeldFile(name, fd, 0, len(data))
