"""Volumes as images of a Ceph cluster (RADOS block device): `<Ceph pool>/hf.<VM name>.<volume>`.

What is in each is qcow2, which finds room for all of its disk in its image from the beginning. QEMU's
own client speaks to the cluster; Ceph's `rbd` and `ceph` do what a client for disks cannot. An image
of our own carries the pool's id.
"""

import asyncio
import base64
import configparser
import json
from typing import Any

from holdfast.host.processes import Identity, Processes
from holdfast.spec.attachment import Place, RbdPlace
from holdfast.spec.errors import Conflict, Failed, HoldfastError, TimedOut
from holdfast.spec.pool import PoolHealth, PoolSpec, RbdPoolSpec
from holdfast.storage.pools.flat import FlatPool
from holdfast.storage.pools.names import PART, PREFIX, flat_name
from holdfast.storage.pools.pool import PoolState, VolumeId, device_size, state_of, vanished

_MARK = "holdfast-pool"
_ID = "id"
_QUICK = 10.0  # seconds; a cluster that is away never answers
_LONG = 3600.0
_LARGEST_KEYRING = 64 * 1024


class CephFailed(Failed):
    id = "ceph-failed"


class CephPoolTaken(Conflict):
    id = "ceph-pool-taken"


class RbdPool(FlatPool):
    """Fits `Pool`."""

    spec: PoolSpec

    def __init__(self, name: str, spec: RbdPoolSpec, pool_id: str, processes: Processes) -> None:
        self.name = name
        self.spec = spec
        self._pool = spec.ceph_pool
        self._ceph = spec
        self._id = pool_id
        self._processes = processes
        self._lengths: dict[str, int] = {}

    async def make(self) -> None:
        """Raises CephFailed, CephPoolTaken, ProgramMissing."""
        if _MARK in await self._listed():
            raise CephPoolTaken(
                f"the Ceph pool {self._pool!r} already belongs to a pool",
                value=self._pool,
                cure=f"Delete that pool first; if no daemon knows it any more: rbd rm {self._pool}/{_MARK}",
            )
        await self._rbd("create", "--size", "1M", f"{self._pool}/{_MARK}")
        await self._rbd("image-meta", "set", f"{self._pool}/{_MARK}", _ID, self._id)

    async def open(self) -> None:
        """Nothing: every command connects by itself."""

    async def unmake(self) -> None:
        await self._rbd("rm", "--no-progress", f"{self._pool}/{_MARK}")

    async def state(self) -> PoolState:
        try:
            marked = await self._rbd("image-meta", "get", f"{self._pool}/{_MARK}", _ID)
            figures = json.loads(await self._run("ceph", "df", "--format", "json"))
        except TimedOut:
            return PoolState(PoolHealth.VANISHED, f"the cluster has not answered for {_QUICK:g} seconds")
        except (HoldfastError, ValueError) as error:
            return PoolState(PoolHealth.VANISHED, str(error))
        if marked.strip() != self._id:
            return PoolState(PoolHealth.VANISHED, f"{self._pool} is not what the pool was made on")
        for each in figures.get("pools", ()):
            if each["name"] == self._pool:
                free = int(each["stats"]["max_avail"])
                return state_of(free + int(each["stats"]["stored"]), free)
        return PoolState(PoolHealth.VANISHED, f"the cluster tells nothing of its pool {self._pool}")

    def _place(self, image: str) -> RbdPlace:
        spec = self._ceph
        return RbdPlace(pool=self._pool, image=image, user=spec.user, conf=spec.conf, keyring=spec.keyring)

    def place(self, volume: VolumeId) -> Place:
        return self._place(flat_name(volume))

    def draft(self, volume: VolumeId) -> Place:
        return self._place(flat_name(volume) + PART)

    async def allocate(self, volume: VolumeId, size: int, length: int = 0) -> Place:
        """qemu-img makes the image itself; it is given its full length when it is published."""
        await self._begin(volume)
        self._lengths[flat_name(volume)] = max(device_size(size), length)
        return self.draft(volume)

    async def copy(self, source: Place, volume: VolumeId) -> bool:
        if not isinstance(source, RbdPlace) or source.secret != self._place("").secret:
            return False
        await self._begin(volume)
        target = f"{self._pool}/{flat_name(volume)}{PART}"
        await self._rbd("cp", "--no-progress", f"{source.pool}/{source.image}", target, limit=_LONG)
        return True

    async def grow(self, volume: VolumeId, size: int) -> None:
        await self._lengthen(flat_name(volume), device_size(size))

    async def _lengthen(self, image: str, length: int) -> None:
        """QEMU would stand still while it lengthens an image whose cluster is away; room costs nothing."""
        found = json.loads(await self._rbd("info", "--format", "json", f"{self._pool}/{image}"))
        if int(found["size"]) < length:
            await self._rbd("resize", "--no-progress", "--size", f"{length}B", f"{self._pool}/{image}")

    async def grant(self, volume: VolumeId, identity: Identity | None) -> None:
        """Nothing: who has the key may."""

    async def _complete(self, name: str) -> None:
        await self._lengthen(name + PART, self._lengths.pop(name, 0))

    async def used(self, volume: VolumeId) -> int:
        if not await self.has(volume):
            return 0
        said = await self._rbd("du", "--format", "json", f"{self._pool}/{flat_name(volume)}", limit=60.0)
        return sum(int(each["used_size"]) for each in json.loads(said)["images"])

    async def _move(self, before: str, after: str) -> None:
        await self._rbd("mv", f"{self._pool}/{before}", f"{self._pool}/{after}")

    async def _remove(self, image: str) -> None:
        await self._rbd("rm", "--no-progress", f"{self._pool}/{image}", limit=_LONG)

    async def _volumes(self) -> list[str]:
        """Ours. Raises PoolVanished."""
        try:
            return [name for name in await self._listed() if name.startswith(PREFIX)]
        except HoldfastError as error:
            raise vanished(self.name, error.message) from error

    async def _listed(self) -> list[str]:
        found: Any = json.loads(await self._rbd("ls", "--format", "json", self._pool))
        return [str(name) for name in found]

    async def _rbd(self, *arguments: str, limit: float = _QUICK) -> str:
        return await self._run("rbd", *arguments, limit=limit)

    async def _run(self, program: str, *arguments: str, limit: float = _QUICK) -> str:
        spec = self._ceph
        who = ("--conf", str(spec.conf), "--id", spec.user, "--keyring", str(spec.keyring))
        done = await self._processes.run([program, *who, *arguments], owner="host", timeout=limit)
        if done.returncode == 0:
            return done.stdout.decode(errors="replace")
        said = done.stderr.decode(errors="replace").strip()[-2000:]
        last = said.splitlines()[-1] if said else f"it ended with status {done.returncode}"
        raise CephFailed(
            f"{program} {arguments[0]} failed: {last}",
            value=self._pool,
            cure="See `ceph -s`, and that the client may use the pool (profile rbd) and read the monitors.",
            detail={"log": said},
        )


def read_key(place: RbdPlace) -> bytes:
    """The client's key, decoded, as QEMU wants a secret to be. Raises CephFailed."""
    try:
        with place.keyring.open(encoding="utf-8") as file:
            parser = configparser.ConfigParser(interpolation=None)
            parser.read_string("\n".join(line.strip() for line in file.read(_LARGEST_KEYRING).splitlines()))
        return base64.b64decode(parser[f"client.{place.user}"]["key"], validate=True)
    except (OSError, ValueError, KeyError, configparser.Error) as error:
        raise CephFailed(
            f"the keyring {place.keyring} holds no key of client.{place.user}",
            value=str(place.keyring),
            cure=f"Write it with `ceph auth get client.{place.user} -o {place.keyring}`.",
        ) from error


async def keys_of(places: list[Place]) -> dict[str, bytes]:
    """The secrets that QEMU needs for places, by their ids."""
    found = {place.secret: place for place in places if isinstance(place, RbdPlace)}
    return {name: await asyncio.to_thread(read_key, place) for name, place in found.items()}
