"""The host key: what it wraps opens for its own context only, and no step of a change can lose it."""

import json
from pathlib import Path

import pytest

from holdfast.spec.errors import Failed
from holdfast.spec.firmware_state import HostKeyKind
from holdfast.trust.host_key import (
    HostKeyDamaged,
    HostKeys,
    HostKeySealed,
    NoHostTpm,
    WrappedByAnotherHost,
    WrappedDamaged,
)

SECRET = bytes(range(32))


class Refused(Failed):
    id = "test-tpm-refuses"


class Chip:
    """A sealer with a switch: what a TPM does where the boot state is another one."""

    def __init__(self) -> None:
        self.opens = True

    async def seal(self, secret: bytes) -> bytes:
        if not self.opens:
            raise Refused("the TPM is locked out")
        return b"sealed" + bytes(each ^ 0x55 for each in secret)

    async def unseal(self, blob: bytes) -> bytes:
        if not self.opens or not blob.startswith(b"sealed"):
            raise Refused("PCR 7 differs")
        return bytes(each ^ 0x55 for each in blob.removeprefix(b"sealed"))


async def test_what_is_wrapped_opens_again_also_for_the_next_daemon(tmp_path: Path) -> None:
    wrapped = (await HostKeys(tmp_path).ring()).wrap(SECRET, "the vTPM of VM a")
    assert (tmp_path / "host.key").stat().st_mode & 0o777 == 0o600
    ring = await HostKeys(tmp_path).ring()
    assert ring.unwrap(wrapped, "the vTPM of VM a") == SECRET
    assert SECRET.hex() not in wrapped.model_dump_json() and "secret" not in repr(ring)


async def test_another_context_another_host_and_a_changed_bit_are_refused(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    ring = await HostKeys(tmp_path).ring()
    wrapped = ring.wrap(SECRET, "the vTPM of VM a")
    with pytest.raises(WrappedDamaged):
        ring.unwrap(wrapped, "the vTPM of VM b")
    changed = wrapped.model_copy(update={"sealed": "00" + wrapped.sealed[2:]})
    assert changed != wrapped
    with pytest.raises(WrappedDamaged):
        ring.unwrap(changed, "the vTPM of VM a")
    with pytest.raises(WrappedByAnotherHost) as caught:
        (await HostKeys(tmp_path / "other").ring()).unwrap(wrapped, "the vTPM of VM a")
    assert caught.value.value == ring.current.id


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff" * 64, b"a" * 200_000])
async def test_a_damaged_key_is_told_without_its_content(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "host.key").write_bytes(content)
    with pytest.raises(HostKeyDamaged) as caught:
        await HostKeys(tmp_path).ring()
    assert caught.value.__cause__ is None
    assert (tmp_path / "host.key").read_bytes() == content
    keys = HostKeys(tmp_path)
    await keys.renew()
    (aside,) = tmp_path.glob("host.key.damaged-*")
    assert aside.read_bytes() == content


async def test_a_key_that_does_not_fit_its_name_is_damaged(tmp_path: Path) -> None:
    await HostKeys(tmp_path).ring()
    stored = json.loads((tmp_path / "host.key").read_text())
    (tmp_path / "host.key").write_text(json.dumps({**stored, "secret": "00" * 32}))
    with pytest.raises(HostKeyDamaged):
        await HostKeys(tmp_path).ring()


async def test_in_a_tpm_the_file_does_not_hold_it(tmp_path: Path) -> None:
    chip = Chip()
    ring = await HostKeys(tmp_path, chip).ring()
    assert ring.current.kind is HostKeyKind.TPM
    assert ring.current.secret.hex() not in (tmp_path / "host.key").read_text()
    wrapped = ring.wrap(SECRET, "a")
    chip.opens = False
    later = HostKeys(tmp_path, chip)
    with pytest.raises(HostKeySealed) as caught:
        await later.ring()
    assert "PCR 7 differs" in caught.value.message
    with pytest.raises(HostKeySealed):
        await HostKeys(tmp_path).ring()
    assert await later.kind() is HostKeyKind.TPM
    chip.opens = True
    assert (await later.ring()).unwrap(wrapped, "a") == SECRET


async def test_a_tpm_that_cannot_seal_leaves_the_key_in_a_file(tmp_path: Path) -> None:
    chip = Chip()
    chip.opens = False
    keys = HostKeys(tmp_path, chip)
    assert (await keys.ring()).current.kind is HostKeyKind.FILE
    with pytest.raises(Refused):
        await keys.renew(HostKeyKind.TPM)
    with pytest.raises(NoHostTpm):
        await HostKeys(tmp_path).renew(HostKeyKind.TPM)
    assert (await keys.ring()).current.kind is HostKeyKind.FILE


async def test_a_renewed_key_leaves_the_one_before_until_nothing_needs_it(tmp_path: Path) -> None:
    keys = HostKeys(tmp_path)
    before = await keys.ring()
    wrapped = before.wrap(SECRET, "a")
    after = await keys.renew()
    for ring in (after, await HostKeys(tmp_path).ring()):
        assert ring.current.id != before.current.id and ring.unwrap(wrapped, "a") == SECRET
    assert await keys.earlier() == (before.current.id,)
    await keys.drop_earlier(set())
    assert (await keys.ring()).unwrap(wrapped, "a") == SECRET
    await keys.drop_earlier({before.current.id})
    assert await keys.earlier() == ()
    for ring in (await keys.ring(), await HostKeys(tmp_path).ring()):
        with pytest.raises(WrappedByAnotherHost):
            ring.unwrap(wrapped, "a")


async def test_a_sealed_key_is_set_aside_and_serves_again_when_it_opens(tmp_path: Path) -> None:
    chip = Chip()
    wrapped = (await HostKeys(tmp_path, chip).ring()).wrap(SECRET, "a")
    chip.opens = False
    keys = HostKeys(tmp_path, chip)
    ring = await keys.renew()
    assert ring.current.kind is HostKeyKind.FILE
    with pytest.raises(WrappedByAnotherHost):
        ring.unwrap(wrapped, "a")
    chip.opens = True
    assert (await HostKeys(tmp_path, chip).ring()).unwrap(wrapped, "a") == SECRET
