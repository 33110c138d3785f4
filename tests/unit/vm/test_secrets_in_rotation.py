"""A rotation of the host key brings nothing back that is replaced or removed while it is at work.

Each test lets the other side begin at the worst moment: after a file was read, before it is written.
"""

import asyncio
import base64
import concurrent.futures
import contextlib
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from holdfast.spec.released import SecretAdd
from holdfast.trust import rotation, state_key
from holdfast.trust.bounded import read_bounded
from holdfast.trust.firmware_folder import replace_folder
from holdfast.trust.host_key import HostKeys
from holdfast.trust.rotation import VmFolder, rotate
from holdfast.vm import guest_secrets
from holdfast.vm.guest_secrets import GuestSecrets, SecretNotFound

_CHANCE = 0.3  # seconds that the other side gets, which is all it needs where nothing holds it back


class Host:
    """One VM `web`, and what keeps secrets for it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "keys").mkdir()
        (root / "web/firmware").mkdir(parents=True)
        self.keys = HostKeys(root / "keys")
        rooms: Any = SimpleNamespace(state=self, host_keys=self.keys, events=self)
        nothing: Any = None
        self.secrets = GuestSecrets(rooms, nothing, nothing, self.named)
        self.begun: list[concurrent.futures.Future[Any]] = []
        self.loop = asyncio.get_running_loop()

    def vm(self, name: str) -> Path:
        return self.root / name

    async def named(self, name: str) -> Any:
        return SimpleNamespace(record=SimpleNamespace(id="1", name=name))

    async def emit(self, *_: Any) -> None:
        pass

    async def add(self, text: bytes) -> None:
        await self.secrets.add("web", SecretAdd(name="pin", content=base64.b64encode(text).decode()))

    async def content(self) -> bytes:
        return await self.secrets._content(await self.secrets._kept("web", "pin"), "web")

    async def rotate(self) -> rotation.Rotated:
        async def vms() -> list[VmFolder]:
            return [VmFolder("1", "web", self.vm("web"))]

        return await rotate(self.keys, vms)

    def after_reading(self, other: Callable[[], Coroutine[Any, Any, Any]]) -> Callable[[Path, int], bytes]:
        """`read_bounded` for one thread, during whose first run `other` begins."""

        def read(path: Path, most: int) -> bytes:
            data = read_bounded(path, most)
            if not self.begun:
                self.begun.append(asyncio.run_coroutine_threadsafe(other(), self.loop))
                with contextlib.suppress(TimeoutError):
                    self.begun[0].result(_CHANCE)
            return data

        return read

    async def settled(self) -> None:
        await asyncio.wrap_future(self.begun[0])


async def test_a_secret_that_is_deleted_meanwhile_stays_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = Host(tmp_path)
    await host.add(b"1234")
    monkeypatch.setattr(
        rotation, "read_bounded", host.after_reading(lambda: host.secrets.delete("web", "pin"))
    )
    await host.rotate()
    await host.settled()
    assert await host.secrets.list("web") == ()
    with pytest.raises(SecretNotFound):
        await host.content()


async def test_a_secret_that_is_replaced_meanwhile_stays_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = Host(tmp_path)
    await host.add(b"1234")
    monkeypatch.setattr(rotation, "read_bounded", host.after_reading(lambda: host.add(b"5678")))
    await host.rotate()
    await host.settled()
    assert await host.content() == b"5678"


async def test_a_secret_opens_where_the_key_changes_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = Host(tmp_path)
    await host.add(b"1234")

    def rotated_before(path: Path, most: int) -> bytes:
        host.after_reading(host.rotate)(path, most)
        return read_bounded(path, most)

    monkeypatch.setattr(guest_secrets, "read_bounded", rotated_before)
    assert await host.content() == b"1234"
    await host.settled()
    assert await host.content() == b"1234"


async def test_no_key_gets_into_a_folder_that_was_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = Host(tmp_path)
    firmware = host.vm("web") / "firmware"
    state_key.store(firmware, "1", bytes(32), await host.keys.ring())

    async def replace() -> None:
        await asyncio.to_thread(replace_folder, host.vm("web"), lambda new: (new / "new").touch())

    monkeypatch.setattr(state_key, "read_bounded", host.after_reading(replace))
    assert (await host.rotate()).unreadable == ()
    await host.settled()
    assert [path.name for path in firmware.iterdir()] == ["new"]


async def test_a_rotation_follows_a_vm_that_is_renamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = Host(tmp_path)
    await host.add(b"1234")

    async def rename() -> None:
        host.vm("web").rename(host.vm("shop"))

    monkeypatch.setattr(rotation, "read_bounded", host.after_reading(rename))
    assert await host.rotate() == rotation.Rotated(1, ())
    assert not host.vm("web").exists() and await host.keys.earlier() == ()
    host.vm("shop").rename(host.vm("web"))
    assert await host.content() == b"1234"
