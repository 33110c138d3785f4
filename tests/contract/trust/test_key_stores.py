"""Stores changed by the real virt-fw-vars, and read back."""

import json
import uuid
from datetime import UTC, datetime
from pathlib import Path

import pytest

from holdfast.host.folders import StateFolder
from holdfast.host.processes import Processes
from holdfast.trust import key_changes
from holdfast.trust.enrollment import VariableStores
from holdfast.trust.key_changes import KeyChange
from holdfast.trust.key_stores import (
    KeyChangeFailed,
    KeyRecordDamaged,
    KeysTooLarge,
    KeyStores,
    rollback,
)
from holdfast.trust.microsoft import BY_FINGERPRINT, CERTIFICATES
from holdfast.trust.signature_lists import SHA256, Signature
from holdfast.trust.variables import VENDORS, parse

_UPDATE = KeyChange(successors=True)


class Bench:
    def __init__(self, folder: Path, store: bytes) -> None:
        state = StateFolder(folder / "state", folder / "run")
        state.prepare()
        self.state = state
        processes = Processes(state)
        self.keys = KeyStores(processes, state, VariableStores(processes, state))
        self.folder = folder / "vm"
        (self.folder / "firmware").mkdir(parents=True)
        self.path = self.folder / "firmware/variables.fd"
        self.path.write_bytes(store)

    async def make(self, *changes: KeyChange) -> list[str]:
        store = self.keys.read(self.folder)
        databases = key_changes.changed(store.keys, changes, await self.keys.authorities())
        await self.keys.make(self.folder, store, databases)
        return list(databases)

    def names(self, database: str) -> list[str]:
        return [each.name for each in self.keys.read(self.folder).keys.databases[database].certificates]


@pytest.fixture
def bench(tmp_path: Path, store_of_2011: bytes) -> Bench:
    return Bench(tmp_path, store_of_2011)


def test_the_distributions_own_store_holds_2011_alone(bench: Bench) -> None:
    found = bench.keys.read(bench.folder).keys
    known = {
        BY_FINGERPRINT[held.fingerprint].id
        for each in found.databases.values()
        for held in each.certificates
        if held.fingerprint in BY_FINGERPRINT
    }
    assert known == {each.id for each in CERTIFICATES if each.generation == 2011}
    assert key_changes.foreign_pk(found) is None
    # Read out of the certificates themselves.
    ends = {held.name: held.expires.date().isoformat() for held in found.databases["db"].certificates}
    assert ends["Microsoft Corporation UEFI CA 2011"] == "2026-06-27"
    assert ends["Microsoft Windows Production PCA 2011"] == "2026-10-19"
    assert "2026-06-24" in {held.expires.date().isoformat() for held in found.databases["KEK"].certificates}
    late = key_changes.expired(found, datetime(2026, 7, 1, tzinfo=UTC))
    assert {each.name for each in late} == {
        "Microsoft Corporation KEK CA 2011",
        "Microsoft Corporation UEFI CA 2011",
    }


async def test_an_update_adds_four_and_changes_nothing_else(bench: Bench, store_of_2011: bytes) -> None:
    assert await bench.make(_UPDATE) == ["db", "KEK"]
    assert bench.names("db")[2:] == [
        "Windows UEFI CA 2023",
        "Microsoft UEFI CA 2023",
        "Microsoft Option ROM UEFI CA 2023",
    ]
    assert bench.names("KEK")[2:] == ["Microsoft Corporation KEK 2K CA 2023"]
    old, new = (
        {(each.name, each.vendor): each for each in parse(data, bench.path)}
        for data in (store_of_2011, bench.path.read_bytes())
    )
    touched = {("db", VENDORS["db"]), ("KEK", VENDORS["KEK"])}
    assert old.keys() == new.keys()
    assert {key for key in old if old[key] != new[key]} == touched
    assert all(
        new[key].time == old[key].time and new[key].attributes == old[key].attributes for key in touched
    )
    assert bench.path.stat().st_mode & 0o777 == 0o600
    assert bench.path.with_name("variables.previous.fd").read_bytes() == store_of_2011
    assert list(bench.state.scratch.iterdir()) == []
    # Again, as after a crash: nothing to do, and what was kept stays.
    before = bench.path.read_bytes()
    assert await bench.make(_UPDATE) == [] and bench.path.read_bytes() == before
    assert bench.path.with_name("variables.previous.fd").read_bytes() == store_of_2011


async def test_revocations_are_added_once_and_rolled_back(bench: Bench, store_of_2011: bytes) -> None:
    hashes = tuple(Signature(SHA256, uuid.UUID(int=1), bytes([each]) * 32) for each in range(200))
    change = KeyChange(successors=True, added={"dbx": hashes})
    assert await bench.make(change) == ["db", "KEK", "dbx"]
    found = bench.keys.read(bench.folder).keys
    assert len(found.databases["dbx"].image_hashes) == 201
    assert await bench.make(change) == []
    previous = bench.keys.previous(bench.folder)
    assert previous is not None
    assert await bench.make(rollback(previous)) == ["db", "KEK", "dbx"]
    assert bench.keys.read(bench.folder).keys == previous
    assert {(each.name, each.value) for each in parse(bench.path.read_bytes(), bench.path)} == {
        (each.name, each.value) for each in parse(store_of_2011, bench.path)
    }


async def test_what_firmware_would_not_take_is_refused(bench: Bench, store_of_2011: bytes) -> None:
    hashes = tuple(Signature(SHA256, uuid.UUID(int=1), each.to_bytes(32, "big")) for each in range(800))
    with pytest.raises(KeysTooLarge):
        await bench.make(KeyChange(added={"dbx": hashes}))
    assert bench.path.read_bytes() == store_of_2011


async def test_a_store_that_looks_like_another_image_is_not_given_to_a_program(bench: Bench) -> None:
    data = bytearray(bench.path.read_bytes())
    data[:4] = b"QFI\xfb"
    bench.path.write_bytes(data)
    with pytest.raises(KeyChangeFailed, match="does not begin"):
        await bench.make(_UPDATE)
    assert bench.path.read_bytes() == data


async def test_a_variable_that_would_be_lost_is_a_reason_to_refuse(bench: Bench) -> None:
    """virt-fw-vars knows each name once, whatever its namespace: of two it would keep one."""
    data = bytearray(bench.path.read_bytes())
    # `ErrOut` becomes a second `ConOut`, in another namespace.
    at = data.rindex("ErrOut\0".encode("utf-16-le")) - 60
    data[at + 44 : at + 60] = VENDORS["db"].bytes_le
    data[at + 60 : at + 72] = "ConOut".encode("utf-16-le")
    bench.path.write_bytes(data)
    assert [each.name for each in parse(bytes(data), bench.path)].count("ConOut") == 2
    with pytest.raises(KeyChangeFailed, match="read back"):
        await bench.make(_UPDATE)
    assert bench.path.read_bytes() == data


def test_records_are_durable_ordered_and_each_once(bench: Bench) -> None:
    other = KeyChange(added={"dbx": (Signature(SHA256, uuid.UUID(int=1), bytes(32)),)}, force=True)
    for change, operation in ((_UPDATE, "1"), (other, "2"), (_UPDATE, "1"), (other, "3")):
        bench.keys.record(bench.folder, change, operation)
    assert bench.keys.pending(bench.folder) == (_UPDATE, other)
    record = bench.folder / "firmware/keys.pending"
    assert record.stat().st_mode & 0o777 == 0o600
    bench.keys.withdraw(bench.folder, "2")  # what 3 asked for stays
    assert bench.keys.pending(bench.folder) == (_UPDATE, other)
    bench.keys.withdraw(bench.folder, "1")
    bench.keys.withdraw(bench.folder, "1")
    assert bench.keys.pending(bench.folder) == (other,)
    bench.keys.withdraw(bench.folder, "3")
    assert not bench.keys.is_pending(bench.folder)
    # As an earlier version wrote it: nobody's own, so that nobody withdraws it.
    wire = {"version": 1, "changes": [_UPDATE.to_json()]}
    record.write_text(json.dumps(wire))
    bench.keys.record(bench.folder, _UPDATE, "4")
    for operation in ("4", "5"):
        bench.keys.withdraw(bench.folder, operation)
        assert bench.keys.pending(bench.folder) == (_UPDATE,)
    for junk in (b"", b"{}", b"[1]", b'{"version": 2, "changes": []}', b'{"version": 1, "changes": [{}]}'):
        record.write_bytes(junk)
        with pytest.raises(KeyRecordDamaged):
            bench.keys.pending(bench.folder)
