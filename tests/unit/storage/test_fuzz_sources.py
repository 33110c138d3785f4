"""Every parser that an import feeds with foreign bytes: an answer within bounds, or a refusal of our own.

HOLDFAST_FUZZ_SEED chooses other inputs; a failure names its seed and number.
"""

import datetime
import os
import random
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import fuzz_seeds as seeds
import pytest
from archives_made import held, indexed, manifest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from vmcx_made import small_vmcx
from vmdk_made import taken

from holdfast.spec.appliance import Appliance
from holdfast.spec.errors import HoldfastError
from holdfast.spec.image import ImageKind
from holdfast.spec.units import MIB
from holdfast.storage.appliances import refusals as source_refusals
from holdfast.storage.appliances.archive import check_path
from holdfast.storage.appliances.bringing import GzipDamaged, peek_gzip
from holdfast.storage.appliances.driver_look import LARGEST_INITRAMFS, NEEDED, newest_kernel
from holdfast.storage.appliances.hyperv import read_hyperv, read_hyperv_xml
from holdfast.storage.appliances.libvirt import read_libvirt
from holdfast.storage.appliances.manifest import read_manifest, read_signature
from holdfast.storage.appliances.ovf import read_ovf
from holdfast.storage.appliances.proxmox import is_proxmox, read_proxmox
from holdfast.storage.appliances.source import read_source
from holdfast.storage.formats import refusals as format_refusals
from holdfast.storage.formats.fat import Fat, NotFat
from holdfast.storage.formats.initramfs import ModuleSearch, NotInitramfs, front
from holdfast.storage.formats.partitions import Partition, partitions
from holdfast.storage.formats.reading import MAX_DISK, Reader
from holdfast.storage.formats.runs import NotReadable
from holdfast.storage.formats.vmware_nvram import NotNvram, boot_entries, variables
from holdfast.storage.inspect import inspect_reader
from holdfast.storage.qemu_img import ConversionFailed

MOST_SECONDS = 2.0
"""For one input; the machine may be busy."""
MOST_MEMORY = 192 * MIB
"""Bytes that all of them together may take beside what the process has."""
OURS = (source_refusals.__name__, format_refusals.__name__, GzipDamaged.__module__)
NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
SEED = int(os.environ.get("HOLDFAST_FUZZ_SEED", "1"))


def appliance(found: Appliance) -> None:
    """Nothing of it is larger, longer or stranger than the rest of the program counts on."""
    assert all(len(each.text) <= 1024 and each.text.isprintable() for each in found.findings)
    for disk in found.disks:
        assert disk.capacity is None or 0 <= disk.capacity <= MAX_DISK
        assert len(disk.id) <= 255 and disk.id.isprintable()
    assert len(found.name) <= 255 and found.name.isprintable()
    assert found.id is None or (len(found.id) == 36 and found.id.replace("-", "").isalnum())
    assert found.cpus is None or 1 <= found.cpus <= 2048
    found.model_dump_json()


def ovf_text(data: bytes) -> None:
    appliance(read_ovf(data, "x.ovf"))


def libvirt(data: bytes) -> None:
    appliance(read_libvirt(data, "x.xml"))


def hyperv_xml(data: bytes) -> None:
    appliance(read_hyperv_xml(data, "x.xml"))


def vmcx(data: bytes) -> None:
    appliance(read_hyperv(data, "x.vmcx"))


def proxmox(data: bytes) -> None:
    is_proxmox(data)
    appliance(read_proxmox(data, "x.conf"))


def tar(data: bytes) -> None:
    for place in indexed(data):
        assert check_path(place.name) == place.name
        assert place.offset >= 512 and place.offset + place.size <= len(data)


def checksums(data: bytes) -> None:
    for name, digest in read_manifest(data, "x.mf").items():
        assert check_path(name) == name and len(digest.value) in (40, 64, 96, 128)


def certificate(data: bytes) -> None:
    read_signature(data, "x.cert", b"manifest", NOW).model_dump_json()


def whole_source(data: bytes) -> None:
    with held([("x.ova", data)]) as files:
        source = read_source(files)
        appliance(source.appliance)
        for file in source.disks.values():
            assert file.offset + file.size <= len(data)


def gzip_head(data: bytes) -> None:
    with held([("x.gz", data)]) as files:
        peek_gzip(files[0])


def grains(data: bytes) -> None:
    taken(data)


def disk_file(data: bytes) -> None:
    disk_pieces({0: data})


def disk_pieces(pieces: seeds.Pieces) -> None:
    fd = seeds.as_file(pieces)
    try:
        with Reader.within(fd, 0, os.fstat(fd).st_size, "x") as reader:
            found = inspect_reader(reader, ImageKind.DISK)
        assert 512 <= found.virtual_size <= max(MAX_DISK, 1)
    finally:
        os.close(fd)


@dataclass(frozen=True)
class _Disk:
    fd: int
    size: int

    def read(self, offset: int, length: int) -> bytes:
        assert offset >= 0 and length <= 4 * MIB, (offset, length)
        # Offsets are those of a disk, which may be larger than any file.
        return (os.pread(self.fd, length, offset) if offset < self.size else b"").ljust(length, b"\0")


def boot_partition(pieces: seeds.Pieces) -> None:
    fd = seeds.as_file(pieces)
    try:
        disk = _Disk(fd, os.fstat(fd).st_size)
        found = partitions(disk)
        assert all(part.start >= 0 and part.start + part.size <= disk.size for part in found)
        Fat(disk, 34 * 512, 64 * 512).read("EFI\\BOOT\\BOOTX64.EFI", MIB)
    finally:
        os.close(fd)


def linux(pieces: seeds.Pieces) -> None:
    fd = seeds.as_file(pieces)
    try:
        disk = _Disk(fd, os.fstat(fd).st_size)
        kernel = newest_kernel(disk, [Partition(1, 0, disk.size, system=False)])
        assert kernel is None or sum(length for _, length in kernel.runs) <= LARGEST_INITRAMFS
        assert kernel is None or len(kernel.initramfs) <= 100
    finally:
        os.close(fd)


def ram_disk(data: bytes) -> None:
    with held([("initrd", data)]) as files:
        search = ModuleSearch(NEEDED)
        search.feed(data)
        assert front(files[0].fd, len(data), search).offset >= 0 and search.found <= NEEDED


def nvram(data: bytes) -> None:
    for name in boot_entries(variables(data)):
        assert len(name) <= 200


def signed() -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "A signer")])
    day = datetime.timedelta(days=1)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 7, NOW - day, NOW + day)
    pem = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    signature = key.sign(b"manifest", ec.ECDSA(hashes.SHA256())).hex().encode()
    return b"SHA256(x.mf)= " + signature + b"\n" + pem


MANIFEST = manifest(("web.ovf", b"a"), ("web.vmdk", b"b")) + manifest(("c", b"c"), algorithm="SHA512")
OVF, OTHER_OVF = seeds.small_ovfs()
A, B = ("a.vmdk", b"a" * 4096), ("b.vmdk", b"b" * 4096)
OVAS = [
    seeds.archived(("web.ovf", OVF), A, B),
    seeds.archived(B, ("web.mf", manifest(("web.ovf", OTHER_OVF), A, B)), ("web.ovf", OTHER_OVF), A),
]
BYTES: dict[str, tuple[Callable[[bytes], None], Callable[[], list[bytes]], seeds.Altering, int]] = {
    "small OVF descriptors": (ovf_text, seeds.small_ovfs, seeds.altered_text, 4_500),
    "OVF descriptors": (ovf_text, lambda: seeds.texts(".ovf"), seeds.altered_text, 1_500),
    "libvirt": (libvirt, lambda: seeds.texts("libvirt"), seeds.altered_text, 3_000),
    "Hyper-V's XML": (hyperv_xml, lambda: seeds.texts("hyperv"), seeds.altered_text, 5_000),
    "Hyper-V's VMCX": (vmcx, lambda: [small_vmcx()], seeds.altered, 11_000),
    "Proxmox": (proxmox, lambda: seeds.texts("proxmox"), seeds.altered_text, 6_000),
    "tar": (tar, seeds.tars, seeds.altered, 16_000),
    "manifests": (checksums, lambda: [MANIFEST], seeds.altered_text, 14_000),
    "certificates": (certificate, lambda: [signed()], seeds.altered, 5_000),
    "whole archives": (whole_source, lambda: OVAS, seeds.altered, 4_000),
    "compressed members": (gzip_head, seeds.gzips, seeds.altered, 5_000),
    "VMDK streams": (grains, lambda: [seeds.small_stream()], seeds.altered, 1_500),
    "VMware's variables": (nvram, lambda: [seeds.nvram()], seeds.altered, 6_000),
    "initial RAM disks": (ram_disk, seeds.initramfs, seeds.altered, 4_000),
    "VMDK extents": (disk_file, lambda: [seeds.small_extent()], seeds.altered, 4_000),
}
PIECES: dict[str, tuple[Callable[[seeds.Pieces], None], Callable[[], seeds.Pieces], int]] = {
    "qcow2": (disk_pieces, seeds.qcow2, 10_000),
    "VHD": (disk_pieces, seeds.vhd, 8_000),
    "VHDX": (disk_pieces, seeds.vhdx, 3_000),
    "ext4": (linux, seeds.ext4, 6_000),
    "XFS": (linux, seeds.xfs, 6_000),
    "partitions and FAT": (boot_partition, seeds.gpt_with_fat, 6_000),
}


@contextmanager
def bounded_memory() -> Iterator[None]:
    """More address space than there was, by so much: MemoryError beyond it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MOST_MEMORY, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def tried(parse: Callable[[], None], label: object) -> bool:
    """Whether it was taken."""
    began = time.process_time()  # what others do on this machine counts for nothing
    try:
        parse()
    except HoldfastError as refused:
        assert type(refused).__module__ in OURS or isinstance(refused, ConversionFailed), (label, refused)
        assert refused.cure and len(refused.message) < 4096, label
        return False
    except (NotFat, NotReadable, NotInitramfs, NotNvram) as error:
        assert len(str(error)) < 200, label
        return False
    except Exception as error:
        error.add_note(str(label))
        raise
    finally:
        assert time.process_time() - began < MOST_SECONDS, label
    return True


def fuzz_bytes(name: str, seed: int, count: int) -> None:
    parse, made, altering, _ = BYTES[name]
    source, good = random.Random(f"{name} {seed}"), made()
    for each in good:
        assert tried(partial(parse, each), name) or name == "tar", name
    accepted = 0
    with bounded_memory():
        for number in range(count):
            data = altering(source.choice(good), source)
            accepted += tried(partial(parse, data), (name, seed, number))
    assert accepted < count


@pytest.mark.parametrize(
    ("pieces", "built_in", "runs"),
    [
        (seeds.ext4(), "virtio_blk", [(12 * 1024, 1024), (-1, 1024), (14 * 1024, 952)]),
        (seeds.xfs(), "virtio_pci", [(22 * 4096, 4096), (-1, 4096), (23 * 4096, 808)]),
    ],
)
def test_the_file_systems_of_the_fuzz_are_read(
    pieces: seeds.Pieces, built_in: str, runs: list[tuple[int, int]]
) -> None:
    fd = seeds.as_file(pieces)
    kernel = newest_kernel(_Disk(fd, os.fstat(fd).st_size), [])
    os.close(fd)
    assert kernel is not None and kernel.built_in == {built_in} and kernel.runs == runs


def fuzz_pieces(name: str, seed: int, count: int) -> None:
    parse, made, _ = PIECES[name]
    source, good = random.Random(f"{name} {seed}"), made()
    assert tried(partial(parse, good), name)
    with bounded_memory():
        for number in range(count):
            pieces = seeds.altered_pieces(good, source)
            tried(partial(parse, pieces), (name, seed, number))


def test_inputs_are_as_many_as_they_should_be() -> None:
    assert sum(each[-1] for each in (*BYTES.values(), *PIECES.values())) >= 100_000


@pytest.mark.parametrize("name", BYTES)
def test_bytes_are_refused_or_harmless(name: str) -> None:
    fuzz_bytes(name, SEED, BYTES[name][3])


@pytest.mark.parametrize("name", PIECES)
def test_headers_are_refused_or_harmless(name: str) -> None:
    fuzz_pieces(name, SEED, PIECES[name][2])


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", [*BYTES, *PIECES])
def test_ten_times_as_many_are_refused_or_harmless(name: str) -> None:
    if name in BYTES:
        fuzz_bytes(name, SEED + 1, 10 * BYTES[name][3])
    else:
        fuzz_pieces(name, SEED + 1, 10 * PIECES[name][2])
