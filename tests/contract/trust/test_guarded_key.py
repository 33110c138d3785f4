"""The key of a vTPM that opens only with a verifier's part of it."""

from pathlib import Path

import pytest

from holdfast.spec.ids import new_id
from holdfast.trust import state_key
from holdfast.trust.host_key import HostKeys
from holdfast.trust.state_key import VtpmKeyGuarded

PART, OTHER = b"\1" * 32, b"\2" * 32


async def test_a_guarded_key_opens_with_the_verifiers_part_only(tmp_path: Path) -> None:
    keys, vm, key = HostKeys(tmp_path), new_id(), state_key.new_state_key()
    ring = await keys.ring()
    state_key.store(tmp_path, vm, key, ring)
    assert not state_key.is_guarded(tmp_path)
    for _ in range(2):
        state_key.guard(tmp_path, vm, ring, PART)
    assert state_key.is_guarded(tmp_path)
    assert state_key.load(tmp_path, vm, ring, PART) == key
    for wrong in (None, OTHER, b""):
        with pytest.raises(VtpmKeyGuarded):
            state_key.load(tmp_path, vm, ring, wrong)
        if wrong is not None:
            with pytest.raises(VtpmKeyGuarded):
                state_key.unguard(tmp_path, vm, ring, wrong)
    # The host key is changed without the verifier.
    renewed = await keys.renew()
    assert state_key.rewrap(tmp_path, vm, renewed)
    assert state_key.is_guarded(tmp_path)
    assert state_key.load(tmp_path, vm, renewed, PART) == key
    for _ in range(2):
        state_key.unguard(tmp_path, vm, renewed, PART)
    assert state_key.load(tmp_path, vm, renewed) == key


async def test_a_recovery_key_from_before_opens_it_anyway(tmp_path: Path) -> None:
    ring, vm, key = await HostKeys(tmp_path).ring(), new_id(), state_key.new_state_key()
    state_key.store(tmp_path, vm, key, ring)
    text = state_key.make_recovery_key(tmp_path, vm, ring, new=False)
    state_key.guard(tmp_path, vm, ring, PART)
    state_key.recover(tmp_path, vm, text, ring)
    assert not state_key.is_guarded(tmp_path)
    assert state_key.load(tmp_path, vm, ring) == key
