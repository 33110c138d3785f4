"""Firmware state as one object, with real TPMs: what was sealed opens where the object goes, only there."""

import asyncio
import hashlib
import hmac
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa, x25519
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from tpm_bench import IDENTITY, Bench, permall

from holdfast.host.folders import StateFolder
from holdfast.spec.errors import HoldfastError
from holdfast.spec.ids import new_id
from holdfast.trust import firmware_state, state_key
from holdfast.trust.endorsement import AUTHORITY_FILE
from holdfast.trust.envelope import FirmwareStateDamaged, Lock, Opener
from holdfast.trust.firmware import choose_firmware
from holdfast.trust.firmware_folder import settle_folder
from holdfast.trust.firmware_state import FirmwareState, opened, read_header
from holdfast.trust.host_key import HostKeys
from holdfast.trust.key_changes import KeyChange
from holdfast.trust.key_stores import KeyStores
from holdfast.trust.protection import (
    HostLock,
    LockedForAnother,
    PassphraseLock,
    RecipientLock,
    RecipientOpener,
    WrongPassphrase,
)
from holdfast.trust.rotation import VmFolder, finish, rotate
from holdfast.trust.swtpm_state import VtpmStateDamaged, VtpmStateNewer, VtpmStateOtherKey
from holdfast.trust.vtpm import VtpmMissing, VtpmRunning

pytestmark = pytest.mark.skipif(
    not all(shutil.which(tool) for tool in ("swtpm", "swtpm_setup", "tpm2_nvread")),
    reason="swtpm, swtpm-tools and tpm2-tools are needed",
)
SEALED = "opens-with-these-registers-only"
SEAL = f"""
set -e; cd "$0"
tpm2_startauthsession -S trial.ctx
tpm2_policypcr -Q -S trial.ctx -l sha256:0,7 -L policy
tpm2_flushcontext trial.ctx
tpm2_createprimary -Q -C o -c primary.ctx
tpm2_flushcontext -t
printf %s {SEALED} | tpm2_create -Q -C primary.ctx -L policy -i - -u pub -r priv
tpm2_flushcontext -t
tpm2_load -Q -C primary.ctx -u pub -r priv -c sealed.ctx
tpm2_flushcontext -t
tpm2_evictcontrol -Q -C o -c sealed.ctx 0x81000100
"""
UNSEAL = "tpm2_unseal -c 0x81000100 -p pcr:sha256:0,7"


async def made(bench: Bench) -> None:
    """A VM with a variable store and a TPM that keeps a secret sealed to its registers."""
    await bench.vtpm.manufacture(bench.id, bench.folder, IDENTITY)
    store = bench.folder / "firmware" / "variables.fd"
    shutil.copy(choose_firmware(True).template, store)
    work = bench.runtime / "work"
    work.mkdir()
    await bench.tool("sh", "-c", SEAL, str(work))


async def unsealed(bench: Bench, vm_id: str, folder: Path) -> str:
    bench.id, bench.folder = vm_id, folder
    return (await bench.tool("sh", "-c", UNSEAL)).decode()


async def taken(bench: Bench) -> FirmwareState:
    return await bench.firmware.take(bench.id, bench.folder, has_tpm=True)


def key_pairs() -> list[Any]:
    return [
        x25519.X25519PrivateKey.generate(),
        ec.generate_private_key(ec.SECP256R1()),
        rsa.generate_private_key(65537, 2048),
    ]


def for_recipient(private: Any) -> tuple[Lock, Opener]:
    public = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    secret = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return RecipientLock.of_pem(public), RecipientOpener.of_pem(secret)


async def test_what_was_sealed_opens_where_the_object_was_put(bench: Bench) -> None:
    await made(bench)
    state = await taken(bench)
    assert state.tpm and state.tpm.identity == bench.id and state.tpm.format.version >= 3
    data = state.sealed(PassphraseLock("five plain words for this"))
    assert state.tpm.key not in data and state.tpm.state not in data and state.variables[:4096] not in data
    other, folder = new_id(), bench.make("two")
    await bench.firmware.put(
        opened(data, PassphraseLock("five plain words for this")), other, folder, IDENTITY
    )
    assert permall(folder) == permall(bench.folder)
    again = await bench.firmware.take(other, folder, has_tpm=True)
    assert again.tpm and again.tpm.identity == bench.id and again.vm_id == other
    if IDENTITY:
        assert (folder / "firmware" / "tpm" / "tpm2-00.permall").stat().st_uid == IDENTITY.uid
        assert (folder / "firmware" / "variables.fd").stat().st_uid == IDENTITY.uid
        assert (folder / "firmware" / "tpm.key.json").stat().st_uid == 0
    assert [path.name for path in folder.iterdir()] == ["firmware"]
    await bench.vtpm.start(other, folder, bench.runtime, IDENTITY)
    with pytest.raises(VtpmRunning):
        await bench.firmware.take(other, folder, has_tpm=True)
    with pytest.raises(VtpmRunning):
        await bench.firmware.put(state, other, folder)
    await bench.vtpm.stop(other)
    assert await unsealed(bench, other, folder) == SEALED


async def test_a_tpm_of_its_own_opens_nothing_of_the_other(bench: Bench) -> None:
    await made(bench)
    other, folder = new_id(), bench.make("two")
    await bench.vtpm.manufacture(other, folder, IDENTITY)
    with pytest.raises(AssertionError):
        await unsealed(bench, other, folder)


async def test_each_lock_opens_for_its_owner_only(bench: Bench) -> None:
    await made(bench)
    state, ring = await taken(bench), await bench.keys.ring()
    elsewhere = bench.state.root / "elsewhere"
    elsewhere.mkdir()
    strange = await HostKeys(elsewhere).ring()
    recipients = [
        (*for_recipient(mine), for_recipient(his)[1])
        for mine, his in zip(key_pairs(), key_pairs(), strict=True)
    ]
    pairs: list[tuple[Lock, Opener, Opener]] = [
        (HostLock(ring), HostLock(ring), HostLock(strange)),
        (PassphraseLock("a passphrase"), PassphraseLock("a passphrase"), PassphraseLock("another one.")),
        *recipients,
    ]
    for lock, opener, wrong in pairs:
        data = state.sealed(lock)
        assert opened(data, opener) == state
        for closed in (wrong, *(each[1] for each in pairs if type(each[1]) is not type(opener))):
            with pytest.raises((LockedForAnother, WrongPassphrase, HoldfastError)):
                opened(data, closed)
        taken_apart = read_header(data)[1]
        assert opened(taken_apart.locked_for(opener, HostLock(ring)), HostLock(ring)) == state


async def test_no_cut_and_no_change_of_an_object_gets_in(bench: Bench) -> None:
    await made(bench)
    state, lock = await taken(bench), HostLock(await bench.keys.ring())
    data = state.sealed(lock)
    assert opened(data, lock) == state
    head = len(data) - len(read_header(data)[1].body)
    places = {*range(0, head, 7), *range(head, len(data), 9973), len(data) - 1}
    for at in places:
        for changed in (data[:at], data[:at] + bytes([data[at] ^ 0x40]) + data[at + 1 :]):
            with pytest.raises(HoldfastError):
                opened(changed, lock)
    step = 64 * 1024 + 16
    body = data[head:]
    swapped = body[step : 2 * step] + body[:step] + body[2 * step :]
    for wrong in (data + b"\0", data[:head] + swapped, data[:head] + body[:step], b"", b"\x89HFS\n"):
        with pytest.raises(FirmwareStateDamaged):
            opened(wrong, lock)


def changed_state(data: bytes, key: bytes, change: Callable[[bytearray], None]) -> bytes:
    """A state file as swtpm writes it, with something else inside; what a newer libtpms would leave."""
    size, encrypted, vector = struct.unpack_from(">L", data, 12)[0], b"", data[-32:]
    encrypted = data[16 : 16 + size]
    cipher = Cipher(algorithms.AES256(key), modes.CBC(vector[:16]))
    decryptor, encryptor = cipher.decryptor(), cipher.encryptor()
    inner = bytearray(decryptor.update(encrypted) + decryptor.finalize())
    change(inner)
    encrypted = encryptor.update(bytes(inner)) + encryptor.finalize()
    tag = hmac.new(key, encrypted + vector, hashlib.sha256).digest()
    parts = [data[:16], encrypted, struct.pack(">HL", 3, 32), tag, struct.pack(">HL", 6, 32), vector]
    return b"".join(parts)


def newer(inner: bytearray) -> None:
    struct.pack_into(">H", inner, 0, 9)
    struct.pack_into(">H", inner, 6, 9)


async def test_the_state_of_a_newer_swtpm_is_refused_before_anything_changes(bench: Bench) -> None:
    await made(bench)
    state = await taken(bench)
    assert state.tpm
    path = bench.folder / "firmware" / "tpm" / "tpm2-00.permall"
    whole = path.read_bytes()
    assert changed_state(whole, state.tpm.key, lambda inner: None) == whole
    path.write_bytes(changed_state(whole, state.tpm.key, newer))
    late = await taken(bench)
    assert late.tpm and (late.tpm.format.version, late.tpm.format.least) == (9, 9)
    for empty in (False, True):
        with pytest.raises(VtpmStateNewer) as caught:
            await bench.vtpm.start(bench.id, bench.folder, bench.runtime, IDENTITY, empty=empty)
        assert caught.value.value == 9 and caught.value.detail["readable"] == 3
    folder = bench.make("two")
    with pytest.raises(VtpmStateNewer):
        await bench.firmware.put(late, new_id(), folder, IDENTITY)
    assert list(folder.iterdir()) == []
    # The program itself says the same, so the refusal is no invention of ours.
    with pytest.raises(AssertionError):
        await bench.tool("tpm2_getrandom", "4")
    path.write_bytes(b"\x03\x03" + whole[2:])
    with pytest.raises(VtpmStateNewer):
        await taken(bench)
    path.write_bytes(whole)
    assert await taken(bench) == state


async def test_damaged_states_are_refused_at_take_and_at_start(bench: Bench) -> None:
    await made(bench)
    other, folder = new_id(), bench.make("two")
    await bench.vtpm.manufacture(other, folder, IDENTITY)
    path = bench.folder / "firmware" / "tpm" / "tpm2-00.permall"
    whole, foreign = path.read_bytes(), permall(folder)
    cases = [
        (VtpmStateOtherKey, foreign),
        (VtpmStateOtherKey, whole[:20] + bytes([whole[20] ^ 1]) + whole[21:]),
        *((VtpmStateDamaged, whole[:cut]) for cut in (0, 5, 10, 100, len(whole) - 1)),
        (VtpmStateDamaged, whole + b"\0"),
        (VtpmStateDamaged, b"\0" * len(whole)),
        (VtpmStateDamaged, os.urandom(3 * 1024 * 1024)),
    ]
    for error, content in cases:
        path.write_bytes(content)
        with pytest.raises(error):
            await taken(bench)
        with pytest.raises(error):
            await bench.vtpm.start(bench.id, bench.folder, bench.runtime, IDENTITY)
        assert path.read_bytes() == content
    path.unlink()
    with pytest.raises(VtpmMissing):
        await bench.vtpm.start(bench.id, bench.folder, bench.runtime, IDENTITY)
    path.symlink_to("/dev/zero")
    with pytest.raises(VtpmStateDamaged):
        await taken(bench)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(VtpmStateDamaged):
        await taken(bench)


class Killed(BaseException):
    pass


class Death:
    """Lets the process do so many changes to the file system, and not one more: as kill -9 would."""

    STEPS = ("mkdir", "rename", "replace", "fsync", "unlink", "rmdir", "chmod", "chown", "write")

    def __init__(self, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
        self.left = after
        for name in self.STEPS:
            monkeypatch.setattr(os, name, self._mortal(getattr(os, name)))

    def _mortal(self, function: Any) -> Any:
        def call(*args: Any, **named: Any) -> Any:
            if self.left <= 0:
                raise Killed
            self.left -= 1
            return function(*args, **named)

        return call


async def test_a_put_is_whole_or_never_was_wherever_it_is_killed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    await made(bench)
    before = await taken(bench)
    other, folder = new_id(), bench.make("two")
    await bench.vtpm.manufacture(other, folder, IDENTITY)
    shutil.copy(choose_firmware(False).template, folder / "firmware" / "variables.fd")
    after = await bench.firmware.take(other, folder, has_tpm=True)
    ring = await bench.keys.ring()
    assert before.tpm and after.tpm
    seen: list[bool] = []
    for steps in range(200):
        target, vm_id = bench.make(f"t{steps}"), new_id()
        firmware_state._put(before, vm_id, target, ring, IDENTITY, bench.vtpm.authority)
        with monkeypatch.context() as dying:
            Death(dying, steps)
            try:
                firmware_state._put(after, vm_id, target, ring, IDENTITY, bench.vtpm.authority)
                finished = True
            except Killed:
                finished = False
        settle_folder(target)
        found = firmware_state._take(vm_id, target, ring, bench.vtpm.authority)
        assert found.tpm and [path.name for path in target.iterdir()] == ["firmware"]
        new = found.tpm.state == after.tpm.state
        assert found.tpm.state in (before.tpm.state, after.tpm.state)
        assert found.tpm.key == (after if new else before).tpm.key  # type: ignore[union-attr]
        assert found.variables == (after if new else before).variables
        seen.append(new)
        if finished:
            break
    assert finished and seen[-1] and not seen[0]
    assert seen == sorted(seen) and len(seen) > 10


async def test_a_rotation_loses_no_key_wherever_it_is_killed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    vms = [VmFolder(new_id(), name, bench.make(name)) for name in ("a", "b", "c")]
    keys = {vm.id: os.urandom(32) for vm in vms}
    ring = await bench.keys.ring()
    for vm in vms:
        (vm.path / "firmware").mkdir()
        state_key.store(vm.path / "firmware", vm.id, keys[vm.id], ring)
    shown = state_key.make_recovery_key(vms[0].path / "firmware", vms[0].id, ring, new=False)

    async def every() -> list[VmFolder]:
        return vms

    container = vms[1].path / "point.hfstate"
    held = FirmwareState(vms[1].id, choose_firmware(True).template.read_bytes(), None)
    container.write_bytes(held.sealed(HostLock(ring)))
    finished, steps, seen = False, 0, set()
    while not finished:
        with monkeypatch.context() as dying:
            Death(dying, steps)
            try:
                await rotate(bench.keys, every)
                finished = True
            except Killed:
                steps += 1
        later = HostKeys(bench.state.keys)
        ring = await later.ring()
        seen.add(ring.current.id)
        for vm in vms:
            assert state_key.load(vm.path / "firmware", vm.id, ring) == keys[vm.id]
        assert opened(container.read_bytes(), HostLock(ring)) == held
        done = await finish(later, every)
        assert done.unreadable == () and await later.earlier() == ()
        bench.keys = later
    assert steps > 15 and len(seen) > 5
    state_key.recover(vms[0].path / "firmware", vms[0].id, shown, await bench.keys.ring())


async def test_rotations_and_writers_at_once_lose_nothing(bench: Bench) -> None:
    vms = [VmFolder(new_id(), f"v{number}", bench.make(f"v{number}")) for number in range(6)]
    keys = {vm.id: os.urandom(32) for vm in vms}

    async def every() -> list[VmFolder]:
        return vms

    async def write(vm: VmFolder) -> str:
        (vm.path / "firmware").mkdir()
        async with bench.keys.wrapping() as ring:
            await asyncio.sleep(0.01)  # long enough for a rotation to come in between
            await asyncio.to_thread(state_key.store, vm.path / "firmware", vm.id, keys[vm.id], ring)
        async with bench.keys.wrapping() as ring:
            make = state_key.make_recovery_key
            return await asyncio.to_thread(make, vm.path / "firmware", vm.id, ring, False)

    done = await asyncio.gather(*(write(vm) for vm in vms), *(rotate(bench.keys, every) for _ in range(4)))
    await finish(bench.keys, every)
    assert await bench.keys.earlier() == ()
    ring = await HostKeys(bench.state.keys).ring()
    for vm, shown in zip(vms, done, strict=False):
        assert state_key.load(vm.path / "firmware", vm.id, ring) == keys[vm.id]
        state_key.recover(vm.path / "firmware", vm.id, str(shown), ring)


async def test_a_recovery_key_goes_along_and_an_older_export_brings_none_back(bench: Bench) -> None:
    await made(bench)
    firmware, ring = bench.folder / "firmware", await bench.keys.ring()
    first = state_key.make_recovery_key(firmware, bench.id, ring, new=False)
    old = await taken(bench)
    second = state_key.make_recovery_key(firmware, bench.id, ring, new=True)
    await bench.firmware.put(old, bench.id, bench.folder, IDENTITY)
    state_key.recover(firmware, bench.id, second, ring)
    with pytest.raises(state_key.RecoveryKeyWrong):
        state_key.recover(firmware, bench.id, first, ring)
    shutil.rmtree(firmware)
    await bench.firmware.put(old, bench.id, bench.folder, IDENTITY)
    state_key.recover(firmware, bench.id, first, ring)


async def test_who_vouches_for_a_tpm_goes_along_to_another_host(bench: Bench) -> None:
    await made(bench)
    state = await taken(bench)
    own = bench.vtpm.authority.certificates(bench.folder)
    assert own[0] == own[1] and not (bench.folder / "firmware" / AUTHORITY_FILE).exists()
    place = bench.state.root.parent
    elsewhere = StateFolder(place / "s2", place / "r2")
    elsewhere.prepare()
    other = Bench(elsewhere)
    lock = PassphraseLock("five plain words for this")
    await other.firmware.put(opened(state.sealed(lock), lock), other.id, other.folder, IDENTITY)
    theirs, made_it = other.vtpm.authority.certificates(other.folder)
    assert made_it == own[0] != theirs
    again = await other.firmware.take(other.id, other.folder, has_tpm=True)
    assert again.tpm and state.tpm and again.tpm.authority == state.tpm.authority
    # Back on the host that made it, nothing beside its own authority is kept.
    await bench.firmware.put(again, bench.id, bench.folder, IDENTITY)
    assert not (bench.folder / "firmware" / AUTHORITY_FILE).exists()


async def test_keys_that_wait_outlive_the_store_and_those_kept_for_it_do_not(bench: Bench) -> None:
    store = choose_firmware(True).template.read_bytes()
    state, firmware = FirmwareState(bench.id, store, None), bench.folder / "firmware"
    await bench.firmware.put(state, bench.id, bench.folder, IDENTITY)
    assert [path.name for path in firmware.iterdir()] == ["variables.fd"]
    change = KeyChange(successors=True)
    KeyStores.record(bench.folder, change, "1")
    (firmware / "variables.previous.fd").write_bytes(store)
    await bench.firmware.put(state, bench.id, bench.folder, IDENTITY)
    assert KeyStores.pending(bench.folder) == (change,)
    assert not KeyStores.has_previous(bench.folder)
    assert (firmware / "keys.pending").stat().st_mode & 0o777 == 0o600
