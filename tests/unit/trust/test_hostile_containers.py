"""Containers, key slots and TPM states that somebody made up: each is refused in words, none opens."""

import json
import struct
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa, x25519
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.spec.errors import HoldfastError
from holdfast.spec.firmware_state import HostKeyKind
from holdfast.trust import envelope
from holdfast.trust.firmware_state import opened, read_header
from holdfast.trust.host_key import HostKey, KeyRing
from holdfast.trust.protection import ContentKey, HostLock, PassphraseLock, RecipientLock, RecipientOpener
from holdfast.trust.swtpm_state import state_format

KEY = bytes(range(32))
RING = KeyRing(HostKey(KEY, HostKeyKind.FILE), {})
PRIVATE = x25519.X25519PrivateKey.generate()
OPENERS: list[envelope.Opener] = [
    HostLock(RING),
    ContentKey(KEY),
    RecipientOpener(PRIVATE),
    RecipientOpener(ec.generate_private_key(ec.SECP256R1())),
    RecipientOpener(rsa.generate_private_key(65537, 2048)),
]
hexes = st.one_of(st.binary(max_size=80).map(bytes.hex), st.text(max_size=8))
values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), hexes),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
FIELDS = ("kind", "wrapped", "n", "salt", "nonce", "sealed", "recipient", "ephemeral", "key", "version", "vm")
objects = st.dictionaries(st.sampled_from(FIELDS), values, max_size=8)


def container(header: bytes, slot: bytes, body: bytes) -> bytes:
    parts = (struct.pack(">L", len(header)), header, struct.pack(">L", len(slot)), slot)
    return envelope.MAGIC + b"".join(parts) + body


def refused(data: bytes) -> None:
    for opener in OPENERS:
        with pytest.raises(HoldfastError):
            opened(data, opener)
        with pytest.raises(HoldfastError) as caught:
            envelope.parse(data).open(opener)
        assert KEY.hex() not in str(caught.value.as_dict())


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400))
def test_bytes_of_any_kind(data: bytes) -> None:
    for each in (data, envelope.MAGIC + data, container(data, b"{}", bytes(16))):
        refused(each)
    with pytest.raises(HoldfastError):
        state_format(data, KEY, "x")
    head = struct.pack(">BBHHL", 2, 1, 10, 9, 10 + len(data))
    with pytest.raises(HoldfastError):
        state_format(head + data, KEY, "x")


@settings(max_examples=300, deadline=None)
@given(objects, objects, st.sampled_from(["host", "passphrase", "recipient", "other"]))
def test_headers_and_slots_of_any_kind(header: dict[str, Any], slot: dict[str, Any], kind: str) -> None:
    for each in (slot, {**slot, "kind": kind}):
        refused(container(json.dumps(header).encode(), json.dumps(each).encode(), bytes(64)))


def good() -> bytes:
    facts = {
        "version": 1,
        "vm": "a",
        "written_by": "x",
        "tpm": None,
        "parts": [{"name": "tpm.key", "size": 4, "sha256": None}],
    }
    return envelope.seal(facts, b"four", RecipientLock(PRIVATE.public_key()))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_slots_that_are_nearly_right(data: st.DataObject) -> None:
    _, taken = read_header(good())
    assert taken.open(RecipientOpener(PRIVATE)) == b"four"
    name = data.draw(st.sampled_from(sorted(taken.slot)))
    slot = {**taken.slot, name: data.draw(values)}
    changed = container(taken.header, json.dumps(slot).encode(), taken.body)
    if slot != taken.slot:
        refused(changed)


def test_a_slot_that_asks_for_endless_work_is_refused_at_once() -> None:
    for n in (2**30, 2**19, 3 * 2**14, 0, -1):
        slot = {"kind": "passphrase", "n": n, "salt": "00" * 16, "nonce": "00" * 12, "sealed": "00" * 48}
        made = envelope.parse(container(b"{}", json.dumps(slot).encode(), bytes(16)))
        with pytest.raises(HoldfastError):
            made.open(PassphraseLock("a passphrase"))


def test_a_small_order_point_gives_no_shared_secret() -> None:
    _, taken = read_header(good())
    ephemeral = taken.slot["ephemeral"][:-64] + "00" * 32
    slot = {**taken.slot, "ephemeral": ephemeral}
    refused(container(taken.header, json.dumps(slot).encode(), taken.body))
