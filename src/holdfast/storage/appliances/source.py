"""A source as a whole: handed files, or the members of an archive, with the description among them.

    files ──▶ places (name, descriptor, offset, size) ──▶ description ──▶ Appliance
                                                    └──▶ manifest, certificate

Files are open already; nothing here opens a path, and a name in a description only ever picks one of
the files at hand.
"""

import datetime
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import unquote

from holdfast.spec.appliance import Appliance, ApplianceDisk, Finding, Signature, SourceKind
from holdfast.spec.vm import MAX_NICS
from holdfast.storage.appliances import bounded_xml, manifest, proxmox, vmcx
from holdfast.storage.appliances.archive import check_path, index, is_archive
from holdfast.storage.appliances.bounded_xml import damaged, local, parse_xml
from holdfast.storage.appliances.hyperv import read_hyperv, read_hyperv_xml
from holdfast.storage.appliances.libvirt import read_libvirt
from holdfast.storage.appliances.manifest import Digest
from holdfast.storage.appliances.ovf import read_ovf
from holdfast.storage.appliances.reading import base_name, error, info, short, warning
from holdfast.storage.appliances.refusals import (
    ArchiveCompressed,
    ArchiveDuplicateName,
    DescriptorAmbiguous,
    DescriptorMissing,
)
from holdfast.storage.formats import vmware_nvram

_GZIP = b"\x1f\x8b"
_XML_HEAD = 64 * 1024
"""Bytes in which the root of a document is looked for: comments may stand before it."""
_OWNER_KEYS = "MokList"
"""The variable of Shim that holds machine owner keys."""
_MOST_DISKS = 64
_DISK_ENDINGS = (".vmdk", ".qcow2", ".qcow", ".img", ".raw", ".vhd", ".vhdx", ".vpc", ".dd", ".bin")


@dataclass(frozen=True)
class HeldFile:
    """A file of the source that is open."""

    name: str
    """Its path within the source, parts by `/`."""
    fd: int
    offset: int
    """Bytes from the beginning of what `fd` is."""
    size: int
    """Bytes."""

    def read(self, limit: int) -> bytes:
        """All of it, or `limit` + 1 bytes of a larger one, so that whoever bounds it notices."""
        wanted = min(self.size, limit + 1)
        data = bytearray()
        while len(data) < wanted and (
            chunk := os.pread(self.fd, wanted - len(data), self.offset + len(data))
        ):
            data += chunk
        return bytes(data)


@dataclass(frozen=True)
class Source:
    """What is known of a source once its description has been read."""

    appliance: Appliance
    files: dict[str, HeldFile]
    disks: dict[str, HeldFile]
    """By the appliance's id of the disk; a disk that is missing, or empty, is not in it."""
    nvram: HeldFile | None
    firmware_state: HeldFile | None
    digests: dict[str, Digest]
    """By the file's name in `files`; empty where there is no manifest."""
    signature: Signature | None
    findings: tuple[Finding, ...]
    """Of the files; those of the description are the appliance's."""
    archive: bool


def read_source(handed: Sequence[HeldFile], machine: str | None = None) -> Source:
    """Find the description among the files and read it; blocks for some ms.

    Args:
        handed: the files, with an `offset` of 0 and their whole size.
        machine: which one, where there are several.

    Raises:
        a refusal of `refusals`: the archive, the description or the manifest cannot be taken.
    """
    files, archive = _places(handed)
    described, appliance = _describe(files, machine)
    _require_distinct(appliance)
    digests, signature, findings = _sealed(files, described, archive)
    appliance = _bounded(appliance, findings)
    folder = described.name.rpartition("/")[0] if described else ""
    look = _Finder(files, folder, appliance.kind)
    disks: dict[str, HeldFile] = {}
    for disk in appliance.disks:
        if disk.file is None:
            continue
        held = look.find(disk.file)
        if held is None:
            findings.append(_missing(disk, archive))
        else:
            disks[disk.id] = held
            findings += _size(disk, held)
    named = {held.name for held in disks.values()}
    if digests:
        findings += [
            warning("file-not-in-manifest", f"the manifest has no checksum of {short(name, 80)!r}")
            for name in sorted(named - digests.keys())
        ]
        findings += [
            error("manifest-file-missing", f"the manifest names {short(name, 80)!r}, which is not there")
            for name in sorted(digests.keys() - files.keys())
        ]
    nvram = look.find(appliance.nvram) if appliance.nvram else None
    if nvram is not None:
        findings += _nvram(nvram)
    state = look.find(appliance.firmware_state) if appliance.firmware_state else None
    return Source(appliance, files, disks, nvram, state, digests, signature, tuple(findings), archive)


def _places(handed: Sequence[HeldFile]) -> tuple[dict[str, HeldFile], bool]:
    if len(handed) == 1 and is_archive(handed[0].fd):
        whole = handed[0]
        return {
            place.name: HeldFile(place.name, whole.fd, place.offset, place.size)
            for place in index(whole.fd, whole.size)
        }, True
    files: dict[str, HeldFile] = {}
    for each in handed:
        name = check_path(each.name)
        if name in files:
            raise ArchiveDuplicateName(
                f"two files have the name {name!r}", value=name, cure="Give each once."
            )
        files[name] = HeldFile(name, each.fd, each.offset, each.size)
    only = handed[0]
    if len(handed) == 1 and only.name.lower().endswith((".ova.gz", ".tar.gz", ".tgz")) and _is_gzip(only):
        raise ArchiveCompressed(
            f"the archive {only.name!r} is compressed as a whole, so nothing in it can be reached in place",
            value=only.name,
            cure=f"Unpack it once: `gunzip {only.name}`.",
        )
    return files, False


def _is_gzip(file: HeldFile) -> bool:
    return file.read(1)[:2] == _GZIP


def _describe(files: dict[str, HeldFile], machine: str | None) -> tuple[HeldFile | None, Appliance]:
    """The description's file (None for plain disks), and what it says."""
    readers: list[tuple[HeldFile, Callable[[bytes, str], Appliance]]] = []
    largest = max(bounded_xml.LARGEST, vmcx.LARGEST)
    by_kind: dict[str, list[tuple[HeldFile, Callable[[bytes, str], Appliance]]]] = {}
    for file in files.values():
        ending = file.name.lower().rpartition(".")[2]
        if ending == "ovf":
            by_kind.setdefault("ovf", []).append((file, lambda data, name: read_ovf(data, name, machine)))
        elif ending == "vmcx":
            by_kind.setdefault("vmcx", []).append((file, read_hyperv))
        elif ending == "xml" and (reader := _xml_reader(file)):
            by_kind.setdefault("xml", []).append((file, reader))
        elif ending == "conf" and proxmox.is_proxmox(file.read(proxmox.LARGEST)):
            by_kind.setdefault("conf", []).append((file, proxmox.read_proxmox))
    for kind in ("ovf", "vmcx", "xml", "conf"):
        readers = by_kind.get(kind, [])
        if len(readers) > 1 and machine is not None:
            readers = [
                each for each in readers if base_name(each[0].name).rpartition(".")[0] == machine
            ] or readers
        if len(readers) > 1:
            names = [short(file.name, 80) for file, _ in readers]
            raise DescriptorAmbiguous(
                f"there are {len(readers)} descriptions: {', '.join(map(repr, names[:10]))}",
                value=names[:50],
                cure="Give one of them with the files that it names.",
            )
        if readers:
            file, read = readers[0]
            return file, read(file.read(largest), file.name)
    return None, _plain(files)


def _xml_reader(file: HeldFile) -> Callable[[bytes, str], Appliance] | None:
    """By the document's root; None where it is something else."""
    data = file.read(bounded_xml.LARGEST)
    head = data[:_XML_HEAD].replace(b"\0", b"").lower()  # a UTF-16 file of Hyper-V shows its words too
    if b"<domain" not in head and b"<configuration" not in head:
        return None
    root = local(parse_xml(data, file.name).tag).lower()
    return {"domain": read_libvirt, "configuration": read_hyperv_xml}.get(root)


def _plain(files: dict[str, HeldFile]) -> Appliance:
    """A disk without a description."""
    disks = [file for file in files.values() if file.name.lower().endswith(_DISK_ENDINGS)]
    if len(files) == 1 and not disks:
        disks = list(files.values())  # whatever it is called: its content decides
    if len(disks) != 1:
        raise DescriptorMissing(
            f"there is no description of a machine among {len(files)} files"
            + (f", and {len(disks)} disks" if len(disks) > 1 else ""),
            value=[short(name, 80) for name in sorted(files)[:50]],
            cure="Give an OVA, an OVF descriptor, a Hyper-V export, a libvirt domain XML or a Proxmox"
            " configuration with its disks, or one disk alone.",
        )
    file = disks[0]
    name = base_name(file.name)
    return Appliance(
        kind=SourceKind.DISK,
        name=short(name.rpartition(".")[0] or name, 255),
        disks=(ApplianceDisk(id=short(name, 60), file=file.name),),
        files=(file.name,),
        findings=(
            info("no-description", "a disk alone says nothing of CPUs, memory, firmware and networks"),
        ),
    )


class _Finder:
    """Picks files by what descriptions call them."""

    def __init__(self, files: dict[str, HeldFile], folder: str, kind: SourceKind) -> None:
        self._files, self._folder, self._kind = files, folder, kind

    def find(self, named: str) -> HeldFile | None:
        """Raises ArchivePathUnsafe where the name leads out of the source."""
        if "://" in named:
            return None
        for candidate in dict.fromkeys((named, unquote(named))):
            path = check_path(candidate)
            within = f"{self._folder}/{path}" if self._folder else path
            found = self._files.get(within) or self._files.get(path)
            if found:
                return found
        if self._kind is SourceKind.OVF:
            return None
        # These name files where they lay on the other host: the last part of the path counts.
        wanted = base_name(named).lower()
        fitting = [file for name, file in self._files.items() if base_name(name).lower() == wanted]
        if not fitting and self._kind is SourceKind.PROXMOX:  # a volume's name has no ending
            fitting = [
                file
                for name, file in self._files.items()
                if base_name(name).lower().rpartition(".")[0] == wanted
            ]
        return fitting[0] if len(fitting) == 1 else None


def _require_distinct(appliance: Appliance) -> None:
    """Disks are told apart by their ids. Raises DescriptorDamaged."""
    seen: set[str] = set()
    for disk in appliance.disks:
        if disk.id in seen:
            raise damaged(appliance.name or "the description", f"it has two disks {short(disk.id, 60)!r}")
        seen.add(disk.id)


def _bounded(appliance: Appliance, findings: list[Finding]) -> Appliance:
    """With as many disks and network interfaces as a VM can have: each is looked at, which takes time."""
    disks, nics = appliance.disks, appliance.nics
    if len(disks) > _MOST_DISKS:
        findings.append(
            error("too-many-disks", f"{len(disks)} disks are more than the {_MOST_DISKS} that a VM can have")
        )
    if len(nics) > MAX_NICS:
        findings.append(
            error("too-many-nics", f"{len(nics)} network interfaces are more than the {MAX_NICS} of a VM")
        )
    return appliance.model_copy(update={"disks": disks[:_MOST_DISKS], "nics": nics[:MAX_NICS]})


def _size(disk: ApplianceDisk, held: HeldFile) -> list[Finding]:
    """A file that is not as long as it should be: some formats cannot tell by themselves."""
    if disk.file_size is None or disk.file_size == held.size:
        return []
    words = (
        f"the file {short(held.name, 80)!r} of disk {short(disk.id, 60)!r} has {held.size} bytes,"
        f" and {disk.file_size} are said"
    )
    if held.size < disk.file_size:
        return [error("file-cut-off", f"{words}: copy or download it again")]
    return [warning("file-size-differs", words)]


def _nvram(held: HeldFile) -> list[Finding]:
    """What is left behind with the firmware's variables, as far as they can be read."""
    try:
        found = vmware_nvram.variables(held.read(vmware_nvram.LARGEST))
    except vmware_nvram.NotNvram as error:
        return [info("nvram-not-read", f"the firmware's variables in {short(held.name, 80)!r}: {error}")]
    names = ", ".join(repr(short(name, 60)) for name in vmware_nvram.boot_entries(found)[:8]) or "nothing"
    findings = [info("nvram-read", f"by the firmware's variables it starts, in this order: {names}")]
    if any(name == _OWNER_KEYS for name, _ in found):
        findings.append(
            warning(
                "owner-keys-not-kept",
                "keys that the guest's owner enrolled (MOK) are not brought along: with Secure Boot, what"
                " they signed does not start before they are enrolled again (`mokutil --import`)",
            )
        )
    return findings


def _missing(disk: ApplianceDisk, archive: bool) -> Finding:
    file = short(disk.file or "", 120)
    if disk.file and "://" in disk.file:
        return error(
            "file-elsewhere", f"disk {disk.id!r} lies at {file!r}; download it and give it beside the others"
        )
    where = "in the archive" if archive else "among the files given (see --with)"
    return error("file-missing", f"the file {file!r} of disk {disk.id!r} is not {where}")


def _sealed(
    files: dict[str, HeldFile], described: HeldFile | None, archive: bool
) -> tuple[dict[str, Digest], Signature | None, list[Finding]]:
    """Checksums by file, who signed them, and what is to be said; the description itself is verified here."""
    if described is None or not described.name.lower().endswith(".ovf"):
        return {}, None, []
    stem = described.name[: -len(".ovf")]
    written, certificate = files.get(f"{stem}.mf"), files.get(f"{stem}.cert")
    findings: list[Finding] = []
    if written is None:
        findings.append(
            info("no-manifest", "there is no manifest: nothing tells whether the files are whole")
        )
        if certificate is not None:
            findings.append(
                warning("signature-not-checked", "there is a certificate, but no manifest that it signs")
            )
        return {}, None, findings
    data = written.read(manifest.LARGEST)
    folder = described.name.rpartition("/")[0]
    digests = {
        f"{folder}/{name}" if folder else name: digest
        for name, digest in manifest.read_manifest(data, written.name).items()
    }
    if described.name in digests:
        digest = digests[described.name]
        hasher = digest.begin()
        hasher.update(described.read(bounded_xml.LARGEST))
        digest.require(hasher.hexdigest(), described.name)
    else:
        findings.append(
            warning("file-not-in-manifest", f"the manifest has no checksum of {described.name!r}")
        )
    if any(digest.algorithm == "SHA1" for digest in digests.values()):
        findings.append(info("manifest-weak", "the manifest's checksums (SHA1) show damage, but no forgery"))
    if certificate is None:
        return digests, None, findings
    now = datetime.datetime.now(datetime.UTC)
    signature = manifest.read_signature(certificate.read(manifest.LARGEST), certificate.name, data, now)
    findings.append(_signed(signature))
    return digests, signature, findings


def _signed(signature: Signature) -> Finding:
    if not signature.fits:
        return error(
            "signature-invalid",
            f"the manifest's signature by {signature.subject!r} does not hold: {signature.text}",
        )
    if not signature.in_date:
        return warning(
            "signature-out-of-date",
            f"the manifest is signed by {signature.subject!r}, whose certificate is not valid at this time"
            f" (until {signature.not_after})",
        )
    if not signature.known:
        return warning(
            "signer-unknown",
            f"the manifest is signed by {signature.subject!r} (certificate issued by {signature.issuer!r}),"
            " whom this host does not know; ask its owner whether this is the certificate's SHA-256:"
            f" {signature.fingerprint}",
        )
    return info(
        "signed",
        f"the manifest is signed by {signature.subject!r} (certificate issued by {signature.issuer!r})",
    )
