"""What every kind of pool must do: one life of volumes, each step's content verified by qemu-io."""

import json
import os
import subprocess
from collections.abc import Sequence

import pytest
from storage_rooms import Rooms

from holdfast.spec.attachment import Layer
from holdfast.spec.vm import Disk
from holdfast.storage.pools.pool import VolumesInTheWay
from holdfast.storage.pools.rbd import keys_of
from holdfast.storage.volumes import VolumeMissing, VolumeShrunk

MIB = 1 << 20
SHOWN = ("read -P 5 0 1M", "read -P 9 1M 64k", "read -P 0 8M 24M")


def nothing(_: float, __: str) -> None:
    pass


def described(layers: Sequence[Layer]) -> dict[str, object]:
    top, below = layers[0], layers[1:]
    node: dict[str, object] = {"driver": top.format, "file": top.place.protocol()}
    return node | ({"backing": described(below) if below else None} if top.format == "qcow2" else {})


async def io(layers: Sequence[Layer], *commands: str, write: bool = False) -> bool:
    """Whether qemu-io carries out commands on a chain; what it reads is compared."""
    arguments = [part for command in commands for part in ("-c", command)]
    secrets = await keys_of([layer.place for layer in layers])
    fds = {name: os.memfd_create(name) for name in secrets}
    for name, fd in fds.items():
        os.write(fd, secrets[name])
    arguments += [f"--object=secret,id={name},file=/dev/fd/{fd}" for name, fd in fds.items()]
    mode = () if write else ("-r",)
    done = _run(
        "qemu-io", *mode, *arguments, f"json:{json.dumps(described(layers))}", fds=tuple(fds.values())
    )
    for fd in fds.values():
        os.close(fd)
    return done.returncode == 0 and "failed" not in done.stdout + done.stderr


def _run(*argv: str, fds: tuple[int, ...]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, capture_output=True, text=True, pass_fds=fds)


async def live_through(rooms: Rooms, pool: str) -> None:
    """Blank, layered, cloned, carried over to files and back, grown, renamed, removed."""
    volumes, identity = rooms.volumes, rooms.identity
    disk = Disk(id="disk0", volume="disk0", size=32 * MIB, pool=pool)
    for _ in range(2):
        await volumes.create("one_1", disk, copy_of=None, identity=identity, operation="x", progress=nothing)
    assert await io(volumes.chain("one_1", disk), "write -P 5 0 8M", write=True)
    assert await volumes.stored_size("one_1", disk) >= 8 * MIB
    layer = await volumes.create_overlay("one_1", disk, "disk0-1", identity=identity, operation="x")
    assert await io([layer, *volumes.chain("one_1", disk)], "read -P 5 0 8M")
    disk = disk.model_copy(update={"volume": "disk0-1", "below": ("disk0",)})
    assert volumes.chain("one_1", disk)[0] == layer
    assert await io(volumes.chain("one_1", disk), "write -P 9 1M 64k", write=True)
    await volumes.require("one_1", disk)

    clone = Disk(id="disk0", volume="disk0", size=32 * MIB, pool=pool)
    await volumes.clone("one_1", disk, "two", clone, identity=identity, operation="x", progress=nothing)
    assert await io(volumes.chain("two", clone), *SHOWN)
    await volumes.clone("two", clone, "three", clone, identity=identity, operation="x", progress=nothing)
    assert await io(volumes.chain("three", clone), *SHOWN)

    rooms.state.vm("one_1").mkdir()
    carried = disk.model_copy(update={"pool": None})
    for name in ("disk0-1", "disk0"):
        await volumes.copy_layer(
            "one_1", disk, name, None, identity=identity, operation="x", progress=nothing
        )
    assert await io(volumes.chain("one_1", carried), *SHOWN)
    assert await volumes.listed("one_1", None) == ["disk0-1.qcow2", "disk0.qcow2"]
    await volumes.delete("one_1", disk)
    with pytest.raises(VolumeMissing):
        await volumes.require("one_1", disk)
    for name in ("disk0-1", "disk0"):
        await volumes.copy_layer(
            "one_1", carried, name, pool, identity=identity, operation="x", progress=nothing
        )
    assert await io(volumes.chain("one_1", disk), *SHOWN)

    with pytest.raises(VolumeShrunk):
        await volumes.resize("one_1", disk, 16 * MIB, operation="x")
    await volumes.resize("one_1", disk, 160 * MIB, operation="x")
    disk = disk.model_copy(update={"size": 160 * MIB})
    assert await io(volumes.chain("one_1", disk), *SHOWN[:2], "read -P 0 32M 128M")

    for _ in range(2):
        await volumes.rename("one_1", "uno two", [disk])
    await volumes.require("uno two", disk)
    assert len(await volumes.listed("uno two", pool)) == 2
    with pytest.raises(VolumesInTheWay):
        await volumes.rename("uno two", "two", [disk])
    with pytest.raises(VolumeMissing):
        await volumes.require("one_1", disk)
    await volumes.delete_layers("uno two", disk, ["disk0"])
    with pytest.raises(VolumeMissing) as caught:
        await volumes.require("uno two", disk)
    assert "disk0" in str(caught.value.value)
    for vm, each in (("uno two", disk), ("two", clone), ("three", clone)):
        await volumes.delete(vm, each)
        await volumes.delete(vm, each)
        assert await volumes.listed(vm, pool) == []
