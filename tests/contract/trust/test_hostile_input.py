"""Damaged and hostile stores, lists, certificates, executables and disks: read or refused, in bounded time.

Each case begins with the real thing and changes it where its structure is. None may end in another
error than the reader's own, and no changed signature may count as one.
"""

import contextlib
import random
import struct
import subprocess
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
from boot_disks import boot_disk, boot_programs

from holdfast.spec.attachment import Layer
from holdfast.spec.errors import HoldfastError
from holdfast.storage.boot_files import volumes
from holdfast.storage.formats.fat import NotFat
from holdfast.storage.formats.qcow2_chain import open_chain
from holdfast.trust import pe_image
from holdfast.trust.authenticode import ImageSignature, Loader, Standing, judge, verified_signature
from holdfast.trust.boot_entries import boot_entries
from holdfast.trust.signature_lists import (
    SHA256,
    KeyDatabase,
    Signature,
    encode_lists,
    parse_lists,
    read_certificate,
    read_database,
    update_payload,
)
from holdfast.trust.variables import GLOBAL, Variable, VariablesDamaged, inventory, parse

_LONGEST = 5.0  # seconds for one input, on a busy machine
_ODD = (0, 1, 2, 3, 0x7F, 0x80, 0xFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)

COUNTS = [
    pytest.param(1500, id="some"),
    pytest.param(15_000, id="many", marks=[pytest.mark.slow, pytest.mark.timeout(1800)]),
]
"""Eight kinds of input: with `many` more than 100,000 in all."""


def mutate(data: bytes, chance: random.Random, reach: int | None = None) -> bytes:
    """Change, cut or pad; `reach`: the bytes at the beginning that are changed."""
    changed = bytearray(data)
    limit = min(reach or len(data), len(data))
    for _ in range(chance.choice((1, 1, 2, 8))):
        if not changed:
            break
        at = chance.randrange(min(limit, len(changed)))
        kind = chance.randrange(7)
        if kind == 0:
            changed[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            changed[at : at + 4] = struct.pack("<L", chance.choice(_ODD))[: len(changed) - at]
        elif kind == 2:
            changed[at : at + 2] = struct.pack(">H", chance.choice(_ODD) & 0xFFFF)[: len(changed) - at]
        elif kind == 3:
            changed[at : at + 8] = chance.randbytes(min(8, len(changed) - at))
        elif kind == 4:
            other = chance.randrange(min(limit, len(changed)))
            changed[at : at + 16] = changed[other : other + 16][: len(changed) - at]
        elif kind == 5 and chance.random() < 0.3:
            del changed[at:]
        elif kind == 6 and chance.random() < 0.3:
            changed += chance.randbytes(chance.randrange(200))
    return bytes(changed)


def each_in_time(count: int, act: Callable[[random.Random], None]) -> None:
    for seed in range(count):
        began = time.monotonic()
        act(random.Random(seed))
        assert time.monotonic() - began < _LONGEST, seed


@pytest.mark.parametrize("count", COUNTS)
def test_stores(count: int, store_of_2011: bytes) -> None:
    (size,) = struct.unpack_from("<L", store_of_2011, 72 + 16)
    used = len(store_of_2011[:size].rstrip(b"\xff"))
    data = store_of_2011[: used + 512]

    def act(chance: random.Random) -> None:
        with contextlib.suppress(VariablesDamaged):
            variables = parse(mutate(data, chance), Path("x"))
            inventory(variables)
            boot_entries(variables)

    each_in_time(count, act)


@pytest.mark.parametrize("count", COUNTS)
def test_lists_and_update_files(count: int, store_of_2011: bytes) -> None:
    db = next(each.value for each in parse(store_of_2011, Path("x")) if each.name == "db")
    hashes = encode_lists(Signature(SHA256, uuid.UUID(int=each), bytes([each]) * 32) for each in range(9))
    head = bytes(16) + struct.pack("<LHH", 24, 0x0200, 0x0EF1)
    head += uuid.UUID("4aafd29d-68df-49ee-8aa9-347d375665a7").bytes_le
    assert parse_lists(update_payload(head + hashes)) == parse_lists(hashes)

    def act(chance: random.Random) -> None:
        data = mutate(head + hashes + db, chance)
        read_database(data)
        with contextlib.suppress(ValueError):
            lists = parse_lists(update_payload(data))
            assert parse_lists(encode_lists(lists)) == lists

    each_in_time(count, act)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
def test_certificates(count: int, store_of_2011: bytes) -> None:
    keys = inventory(parse(store_of_2011, Path("x")))
    real = [held.der for each in keys.databases.values() for held in each.certificates]

    def act(chance: random.Random) -> None:
        der = chance.choice(real)
        changed = mutate(der, chance)
        held = read_certificate(changed)
        assert held is None or held.der == changed

    each_in_time(count, act)


@pytest.mark.parametrize("count", COUNTS)
def test_executables(count: int, programs: dict[str, bytes]) -> None:
    data = programs["unsigned"]

    def act(chance: random.Random) -> None:
        with contextlib.suppress(pe_image.NoImage):
            pe_image.parse(mutate(data, chance, reach=1024)).digest("sha256")

    each_in_time(count, act)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
def test_no_forged_signature_is_accepted(
    count: int, programs: dict[str, bytes], store_of_2011: bytes
) -> None:
    image = pe_image.parse(programs["shim"])
    digests = {name: image.digest(name) for name in pe_image.ALGORITHMS}
    other = {name: bytes(len(value)) for name, value in digests.items()}
    db = inventory(parse(store_of_2011, Path("x"))).databases["db"]
    real: list[ImageSignature] = [verified_signature(raw, digests) for raw in image.signatures]

    def act(chance: random.Random) -> None:
        which = chance.randrange(len(real))
        raw = mutate(image.signatures[which], chance)
        with contextlib.suppress(ValueError):
            # What was changed may lie outside of what is signed: then the same key signed it still, and
            # a certificate for that key that is not the real one leads to no authority.
            found = verified_signature(raw, digests)
            assert key_of(found) == key_of(real[which])
            if judge(Loader(digests, (found,)), db, KeyDatabase()).standing is Standing.ACCEPTED:
                assert found.chain[0] == real[which].chain[0]
        with pytest.raises(ValueError):
            verified_signature(raw, other)

    each_in_time(count, act)


def key_of(signature: ImageSignature) -> object:
    return signature.chain[0].certificate.public_key()


@pytest.mark.parametrize("count", COUNTS)
def test_boot_entries(count: int) -> None:
    name = "debian\0".encode("utf-16-le")
    drive = struct.pack("<BBHLQQ", 4, 1, 42, 1, 2048, 4096) + uuid.UUID(int=5).bytes_le + b"\x02\x02"
    file = "\\EFI\\debian\\shimx64.efi\0".encode("utf-16-le")
    path = drive + struct.pack("<BBH", 4, 4, 4 + len(file)) + file + b"\x7f\xff\x04\x00"
    option = struct.pack("<LH", 1, len(path)) + name + path
    (entry,) = boot_entries(options(option))
    assert (entry.partition, entry.path) == (uuid.UUID(int=5), "\\EFI\\debian\\shimx64.efi")

    def act(chance: random.Random) -> None:
        for each in boot_entries(options(mutate(option, chance))):
            assert len(each.path) < 1000

    each_in_time(count, act)


def options(option: bytes) -> list[Variable]:
    order = Variable("BootOrder", GLOBAL, 7, bytes(16), b"\1\0\2\0\1")
    return [order, Variable("Boot0001", GLOBAL, 7, bytes(16), option)]


@pytest.fixture(scope="module")
def small_disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("disk")
    return boot_disk(folder / "disk.raw", {"EFI/BOOT/BOOTX64.EFI": boot_programs()["unsigned"]}, 2)


class Changed:
    """A disk in memory, changed in the tables: the first sectors, and those of the file system."""

    def __init__(self, data: bytes, chance: random.Random) -> None:
        self.size = len(data)
        table = mutate(data[:4096], chance)[:4096].ljust(4096, b"\0")
        system = mutate(data[2**20 : 2**20 + 16384], chance)[:16384].ljust(16384, b"\0")
        which = chance.randrange(3)
        self._data = data
        self._pieces = {0: table if which != 1 else data[:4096]}
        self._pieces[2**20] = system if which != 0 else data[2**20 : 2**20 + 16384]

    def read(self, offset: int, length: int) -> bytes:
        found = bytearray(self._data[offset : offset + length].ljust(length, b"\0"))
        for start, piece in self._pieces.items():
            low, high = max(start, offset), min(start + len(piece), offset + length)
            if low < high:
                found[low - offset : high - offset] = piece[low - start : high - start]
        return bytes(found)


@pytest.mark.parametrize("count", COUNTS)
def test_partitions_and_file_systems(count: int, small_disk: Path) -> None:
    data = small_disk.read_bytes()

    def act(chance: random.Random) -> None:
        for volume in volumes(Changed(data, chance)):
            for path in ("\\EFI\\BOOT\\BOOTX64.EFI", "\\EFI\\debian\\shimx64.efi"):
                with contextlib.suppress(NotFat):
                    volume.read(path)

    each_in_time(count, act)


@pytest.mark.parametrize("count", COUNTS)
def test_qcow2_chains(count: int, small_disk: Path, tmp_path: Path) -> None:
    image, hostile = tmp_path / "image", tmp_path / "hostile"
    argv = ["qemu-img", "convert", "-O", "qcow2", "-c", "-o", "cluster_size=4k", small_disk, image]
    subprocess.run(argv, check=True)
    data = image.read_bytes()

    def act(chance: random.Random) -> None:
        hostile.write_bytes(mutate(data, chance, reach=20_000))
        layers = [Layer.of_file(hostile, "qcow2")]
        with contextlib.suppress(HoldfastError, NotFat), open_chain(layers) as disk:
            for volume in volumes(disk):
                volume.read("\\EFI\\BOOT\\BOOTX64.EFI")

    each_in_time(count, act)
