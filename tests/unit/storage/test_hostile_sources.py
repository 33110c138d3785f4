"""Descriptions, manifests and certificates that lie or attack: refused, or said, before any disk is read."""

import datetime
import gzip
import hashlib
import itertools
import time
from collections.abc import Callable

import pytest
from archives_made import DISK, archived, disks_of, manifest, ovf, source_of
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.x509.oid import NameOID

from holdfast.spec.appliance import Severity
from holdfast.storage.appliances import refusals
from holdfast.storage.appliances.source import Source

WEB = ("web.vmdk", DISK)
LOL = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 10))


def ids(source: Source, severity: Severity = Severity.ERROR) -> set[str]:
    findings = (*source.findings, *source.appliance.findings)
    return {each.id for each in findings if each.severity is severity}


def test_an_honest_source_has_no_errors_and_its_disk() -> None:
    files = (("web.ovf", ovf()), WEB)
    for source in (
        source_of(*files, ("web.mf", manifest(*files))),
        source_of(("web.ova", archived(*files, ("web.mf", manifest(*files))))),
    ):
        assert ids(source) == set() and source.disks["d1"].size == len(DISK)
        assert source.digests["web.vmdk"].value == hashlib.sha256(DISK).hexdigest()


def test_disks_may_stand_before_the_descriptor() -> None:
    assert disks_of(("web.ova", archived(WEB, ("web.mf", b""), ("web.ovf", ovf())))) == {"d1": DISK}


XML = {
    "a billion laughs": f'<!DOCTYPE x [<!ENTITY l0 "lol">{LOL}]>',
    "quadratic blow-up": f'<!DOCTYPE x [<!ENTITY a "{"a" * 20_000}">]>',
    "an external entity": '<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/shadow">]>',
    "an external document type": '<!DOCTYPE x SYSTEM "http://127.0.0.1:1/x.dtd">',
    "a parameter entity": '<!DOCTYPE x [<!ENTITY % a SYSTEM "http://127.0.0.1:1/x.dtd"> %a;]>',
    "a document type alone": "<!DOCTYPE x>",
}
ROOTS = {"x.ovf": "Envelope", "x.xml": "domain", "y.xml": "configuration"}


@pytest.mark.parametrize("file", ROOTS)
@pytest.mark.parametrize("case", XML)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_document_type_is_refused_by_every_reader(case: str, file: str, encoding: str) -> None:
    root = ROOTS[file]
    text = f'<?xml version="1.0" encoding="{encoding}"?>{XML[case]}<{root}>&l9;&a;</{root}>'
    began = time.monotonic()
    with pytest.raises(refusals.DescriptorUnsafe) as caught:
        source_of((file, text.encode(encoding)), WEB)
    assert "root:" not in str(caught.value.as_dict()) and time.monotonic() - began < 4


@pytest.mark.parametrize(
    ("data", "refusal"),
    [
        (b"", refusals.DescriptorDamaged),
        (b"\0" * 100, refusals.DescriptorDamaged),
        (ovf()[:-20], refusals.DescriptorDamaged),
        (b"<html/>", refusals.DescriptorDamaged),
        (b'<?xml version="1.0" encoding="utf-7"?><Envelope/>', refusals.DescriptorDamaged),
        (b"<Envelope>&undefined;</Envelope>", refusals.DescriptorDamaged),
        (b"<Envelope>" + b"<a>" * 100_000, refusals.DescriptorTooLarge),
        (b"<Envelope>" + b"<a/>" * 100_001 + b"</Envelope>", refusals.DescriptorTooLarge),
        (b"<Envelope>" + b" " * (5 << 20) + b"</Envelope>", refusals.DescriptorTooLarge),
        (ovf() + ovf(), refusals.DescriptorDamaged),
    ],
)
def test_what_is_no_descriptor_is_refused(data: bytes, refusal: type[Exception]) -> None:
    with pytest.raises(refusal):
        source_of(("x.ovf", data), WEB)


@pytest.mark.parametrize(
    "href",
    ["/etc/shadow", "../../etc/shadow", "..%2f..%2fetc%2fshadow", "a/../../x", "..\\x", "%2Fetc%2Fshadow"],
)
def test_a_file_named_elsewhere_is_refused(href: str) -> None:
    with pytest.raises(refusals.ArchivePathUnsafe):
        source_of(("x.ovf", ovf([href])), WEB)


@pytest.mark.parametrize("href", ["file:///etc/shadow", "http://127.0.0.1:1/x.vmdk", "ftp://x/y"])
def test_a_file_at_an_address_is_not_fetched(href: str) -> None:
    assert ids(source_of(("x.ovf", ovf([href])), WEB)) == {"file-elsewhere"}


def test_a_path_of_libvirt_picks_a_file_that_was_given_and_no_other() -> None:
    xml = b"""<domain type="kvm"><name>x</name><memory>1048576</memory><devices>
<disk device="disk"><source file="/etc/shadow"/><target dev="vda"/></disk></devices></domain>"""
    assert ids(source_of(("x.xml", xml), ("web.qcow2", DISK))) == {"file-missing"}
    assert disks_of(("x.xml", xml), ("shadow", DISK)) == {"vda": DISK}


@pytest.mark.parametrize(
    ("disk", "fits"),
    [
        ('ovf:capacity="1" ovf:capacityAllocationUnits="byte * 2^64"', False),
        ('ovf:capacity="1" ovf:capacityAllocationUnits="byte * 2^999"', False),
        ('ovf:capacity="1" ovf:capacityAllocationUnits="byte * 10^99 * 999999"', False),
        ('ovf:capacity="18446744073709551617"', False),
        (f'ovf:capacity="{"9" * 1000}"', False),
        (f'ovf:capacity="{"9" * 100_000}"', False),
        ('ovf:capacity="-1"', False),
        ('ovf:capacity="1e9"', False),
        ('ovf:capacity="\u0661"', False),
        ('ovf:capacity=""', False),
        ('ovf:capacity="1" ovf:capacityAllocationUnits="parsec"', False),
        ('ovf:capacity="65" ovf:capacityAllocationUnits="byte * 2^40"', False),
        ('ovf:capacity="64" ovf:capacityAllocationUnits="byte * 2^40"', True),
        ('ovf:capacity="64" ovf:capacityAllocationUnits="GigaBytes"', True),
    ],
)
def test_capacities_that_cannot_be_are_refused(disk: str, fits: bool) -> None:
    if fits:
        assert ids(source_of(("x.ovf", ovf(disk=disk)), WEB)) == set()
        return
    with pytest.raises(refusals.AmountAbsurd):
        source_of(("x.ovf", ovf(disk=disk)), WEB)


@pytest.mark.parametrize(
    "item",
    [
        "<rasd:ResourceType>3</rasd:ResourceType><rasd:VirtualQuantity>4294967297</rasd:VirtualQuantity>",
        "<rasd:ResourceType>3</rasd:ResourceType><rasd:VirtualQuantity>0</rasd:VirtualQuantity>",
        "<rasd:AllocationUnits>byte * 2^60</rasd:AllocationUnits><rasd:ResourceType>4</rasd:ResourceType>"
        "<rasd:VirtualQuantity>17</rasd:VirtualQuantity>",
    ],
)
def test_amounts_of_hardware_that_cannot_be_are_refused(item: str) -> None:
    with pytest.raises(refusals.AmountAbsurd):
        source_of(("x.ovf", ovf(items=f"<Item>{item}</Item>")), WEB)


LINE = f"SHA256(x.ovf)= {'a' * 64}\n".encode()
MANIFESTS = {
    "garbage": b"hello\n",
    "a checksum that is too short": b"SHA256(x.ovf)= abcd\n",
    "a checksum of another length": LINE.replace(b"SHA256", b"SHA512"),
    "an algorithm that nobody should use": LINE.replace(b"SHA256", b"MD5"),
    "a file twice": LINE + LINE,
    "a file twice but for a dot": LINE + LINE.replace(b"x.ovf", b"./x.ovf"),
    "a null byte": LINE.replace(b"x.ovf", b"x\0.ovf"),
    "5,000 lines": b"".join(LINE.replace(b"x", str(number).encode()) for number in range(5000)),
    "2 MiB": b"\n" * (2 << 20),
}


@pytest.mark.parametrize("case", MANIFESTS)
def test_what_is_no_manifest_is_refused(case: str) -> None:
    refusal = refusals.ArchivePathUnsafe if case == "a null byte" else refusals.ManifestDamaged
    with pytest.raises(refusal):
        source_of(("x.ovf", ovf()), ("x.mf", MANIFESTS[case]), WEB)


@pytest.mark.parametrize("algorithm", ["SHA1", "SHA256", "SHA384", "SHA512"])
def test_a_manifest_that_lies_of_the_description_is_refused(algorithm: str) -> None:
    text = ovf()
    for lie in (b"x", text[:-1], text + b" "):
        with pytest.raises(refusals.ManifestMismatch) as caught:
            source_of(("x.ovf", text), ("x.mf", manifest(("x.ovf", lie), WEB, algorithm=algorithm)), WEB)
        assert caught.value.value == "x.ovf"
    whole = manifest(("x.ovf", text), WEB, algorithm=algorithm)
    assert ids(source_of(("x.ovf", text), ("x.mf", whole), WEB)) == set()


def test_a_manifest_that_names_other_files_is_said() -> None:
    text = ovf()
    more = manifest(("x.ovf", text), WEB, ("other.vmdk", b""))
    assert ids(source_of(("x.ovf", text), ("x.mf", more), WEB)) == {"manifest-file-missing"}
    less = source_of(("x.ovf", text), ("x.mf", manifest(("x.ovf", text))), WEB)
    assert "file-not-in-manifest" in ids(less, Severity.WARNING)
    with pytest.raises(refusals.ArchivePathUnsafe):
        source_of(("x.ovf", text), ("x.mf", manifest(("../../etc/shadow", b""))), WEB)


DAY = datetime.timedelta(days=1)
NOW = datetime.datetime.now(datetime.UTC)


def certificate(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey, until: datetime.datetime) -> bytes:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "A signer")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), 7, NOW - 3 * DAY, until)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


@pytest.fixture(scope="module")
def rsa_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


def signed(key: rsa.RSAPrivateKey, data: bytes, until: datetime.datetime = NOW + DAY) -> bytes:
    signature = key.sign(data, padding.PKCS1v15(), hashes.SHA256())
    return b"SHA256(x.mf)= " + signature.hex().encode() + b"\n" + certificate(key, until)


def test_a_signature_is_checked_and_shown(rsa_key: rsa.RSAPrivateKey) -> None:
    text = ovf()
    listed = manifest(("x.ovf", text), WEB)

    def read(cert: bytes, mf: bytes = listed) -> Source:
        return source_of(("x.ovf", text), ("x.mf", mf), ("x.cert", cert), WEB)

    good = read(signed(rsa_key, listed))
    assert good.signature and good.signature.fits and good.signature.subject == "A signer"
    assert "signer-unknown" in ids(good, Severity.WARNING) and ids(good) == set()
    changed = read(signed(rsa_key, listed), listed + b"\n")
    assert ids(changed) == {"signature-invalid"}
    old = read(signed(rsa_key, listed, NOW - DAY))
    assert "signature-out-of-date" in ids(old, Severity.WARNING)
    other = signed(rsa_key, listed).split(b"\n")[0] + b"\n"
    assert ids(read(other + certificate(ec.generate_private_key(ec.SECP256R1()), NOW + DAY))) == {
        "signature-invalid"
    }


CERTIFICATES: dict[str, Callable[[bytes], bytes]] = {
    "nothing": lambda good: b"",
    "a signature alone": lambda good: good.split(b"\n")[0],
    "a certificate alone": lambda good: good.split(b"\n", 1)[1],
    "half a digit": lambda good: good.replace(b"\n", b"f\n", 1),
    "a certificate that is none": lambda good: (
        good.split(b"\n")[0] + b"\n-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
    ),
    "nine certificates": lambda good: good + good.split(b"\n", 1)[1] * 8,
    "2 MiB": lambda good: good + b"\n" * (2 << 20),
    "a hundred beginnings and a million spaces": lambda good: b"SHA1(" * 100 + b")" + b" " * 1_000_000,
    "beginnings without end": lambda good: b"SHA1(" * 200_000,
}


@pytest.mark.parametrize("case", CERTIFICATES)
def test_what_is_no_certificate_is_refused_at_once(case: str, rsa_key: rsa.RSAPrivateKey) -> None:
    text = ovf()
    listed = manifest(("x.ovf", text), WEB)
    data = CERTIFICATES[case](signed(rsa_key, listed))
    began = time.monotonic()
    with pytest.raises(refusals.CertificateDamaged):
        source_of(("x.ovf", text), ("x.mf", listed), ("x.cert", data), WEB)
    assert time.monotonic() - began < 4


def test_an_archive_that_is_compressed_as_a_whole_is_refused_with_what_to_do() -> None:
    packed = gzip.compress(archived(("x.ovf", ovf()), WEB))
    for name in ("web.ova.gz", "web.tgz"):
        with pytest.raises(refusals.ArchiveCompressed) as caught:
            source_of((name, packed))
        assert "gunzip" in caught.value.cure


def test_a_compressed_member_is_known_as_one() -> None:
    source = source_of(("x.ovf", ovf(file='ovf:compression="gzip"')), ("web.vmdk", gzip.compress(DISK)))
    assert source.appliance.disks[0].gzip and ids(source) == set()


def test_a_disk_in_chunks_or_encrypted_is_said() -> None:
    assert ids(source_of(("x.ovf", ovf(file='ovf:chunkSize="1024"')), WEB)) == {"disk-in-chunks"}
    encrypted = ovf(sections='<x:EncryptionSection xmlns:x="urn:x"/>')
    assert ids(source_of(("x.ovf", encrypted), WEB)) == {"encrypted"}


def test_a_file_of_another_size_than_said_is_noticed() -> None:
    assert ids(source_of(("x.ovf", ovf(file='ovf:size="4097"')), WEB)) == {"file-cut-off"}
    longer = source_of(("x.ovf", ovf(file='ovf:size="4095"')), WEB)
    assert ids(longer) == set() and "file-size-differs" in ids(longer, Severity.WARNING)
    for words in ("4096", "", "-1", "9" * 100, "many"):
        source = source_of(("x.ovf", ovf(file=f'ovf:size="{words}"')), WEB)
        assert ids(source) == set() and "file-size-differs" not in ids(source, Severity.WARNING)


def disks(count: int) -> list[tuple[str, bytes]]:
    return [(f"{number}.vmdk", bytes([number]) * 512) for number in range(count)]


@pytest.mark.parametrize(("count", "found"), [(6, set[str]()), (64, set()), (65, {"too-many-disks"})])
def test_many_disks_are_kept_in_their_order(count: int, found: set[str]) -> None:
    files = disks(count)
    source = source_of(("x.ovf", ovf([name for name, _ in files])), *reversed(files))
    assert ids(source) == found
    names = [disk.file for disk in source.appliance.disks]
    assert names == [name for name, _ in files][:64]
    held = disks_of(("x.ovf", ovf([name for name, _ in files])), *reversed(files))
    assert held == {f"d{number}": data for number, (_, data) in enumerate(files[:64], 1)}


def test_a_machine_of_ten_thousand_disks_is_not_looked_at_for_each() -> None:
    each = '<disk device="disk"><source file="web.vmdk"/><target dev="d{}"/></disk>'
    text = f"<domain><devices>{''.join(map(each.format, range(10_000)))}</devices></domain>"
    source = source_of(("x.xml", text.encode()), WEB)
    assert len(source.appliance.disks) == len(source.disks) == 64 and ids(source) == {"too-many-disks"}
    cards = "<domain><devices>" + "<interface type='user'/>" * 10_000 + "</devices></domain>"
    few = source_of(("x.xml", cards.encode()), WEB)
    assert len(few.appliance.nics) == 64 and ids(few) == {"too-many-nics"}


def doubled(what: str) -> list[tuple[str, bytes]]:
    text = ovf().decode()
    file, disk = '<File ovf:id="f1" ovf:href="web.vmdk" />', 'ovf:diskId="d1"'
    assert file in text and disk in text
    start = text.index("<Disk ")
    entry = text[start : text.index("/>", start) + 2]
    item = text[text.index("<Item>") : text.index("</Item>") + 7]
    libvirt = '<disk device="disk"><source file="{}"/><target dev="vda"/></disk>'
    return {
        "two files of one id": [("x.ovf", text.replace(file, file * 2).encode())],
        "two disks of one id": [("x.ovf", text.replace(entry, entry * 2).encode())],
        "one disk in two drives": [
            ("x.ovf", text.replace(item, item + item.replace(">101<", ">102<")).encode())
        ],
        "two targets of one name": [
            (
                "x.xml",
                f"<domain><devices>{libvirt.format('a')}{libvirt.format('b')}</devices></domain>".encode(),
            )
        ],
    }[what]


@pytest.mark.parametrize(
    "what",
    ["two files of one id", "two disks of one id", "one disk in two drives", "two targets of one name"],
)
def test_names_that_stand_for_two_things_are_refused(what: str) -> None:
    with pytest.raises(refusals.DescriptorDamaged) as caught:
        source_of(*doubled(what), WEB)
    assert "two" in caught.value.message


def test_two_files_or_descriptions_of_one_source_are_refused() -> None:
    with pytest.raises(refusals.ArchiveDuplicateName):
        source_of(("x.ovf", ovf()), WEB, WEB)
    with pytest.raises(refusals.ArchiveDuplicateName):
        source_of(("x.ovf", ovf()), WEB, ("./web.vmdk", b""))
    with pytest.raises(refusals.DescriptorAmbiguous):
        source_of(("x.ovf", ovf()), ("y.ovf", ovf()), WEB)


def test_what_other_vendors_add_is_passed_over_or_said() -> None:
    added = '<z:NewSection xmlns:z="urn:example:z" xmlns:ovf="{}" {}><z:Item/></z:NewSection>'
    envelope = "http://schemas.dmtf.org/ovf/envelope/1"
    optional = source_of(("x.ovf", ovf(sections=added.format(envelope, 'ovf:required="false"'))), WEB)
    assert "section-not-read" not in ids(optional, Severity.WARNING)
    required = source_of(("x.ovf", ovf(sections=added.format(envelope, ""))), WEB)
    assert "section-not-read" in ids(required, Severity.WARNING) and ids(required) == set()
    item = "<Item><rasd:InstanceID>9</rasd:InstanceID><rasd:ResourceType>32999</rasd:ResourceType></Item>"
    assert "device-not-kept" in ids(source_of(("x.ovf", ovf(items=item)), WEB), Severity.WARNING)
    foreign = ovf().replace(b"dmtf.org/ovf/envelope/1", b"dmtf.org/ovf/envelope/99")
    assert "ovf-version-unknown" in ids(source_of(("x.ovf", foreign), WEB), Severity.WARNING)


@pytest.mark.parametrize("written", ["-" * 36, "0" * 8 + "-0000-0000-0000-" + "0" * 12, "../../../etc", "{}"])
def test_what_is_no_uuid_is_no_identity(written: str) -> None:
    libvirt = f"<domain><uuid>{written}</uuid></domain>".encode()
    assert source_of(("x.xml", libvirt)).appliance.id is None
    proxmox = f"memory: 512\nscsi0: local:1/a.raw\nsmbios1: uuid={written}\n".encode()
    assert source_of(("x.conf", proxmox)).appliance.id is None


def test_words_from_outside_are_cut_and_plain() -> None:
    evil = "\x9b31m" + "n" * 10_000
    files = (("x.ovf", ovf().replace(b"<Name>web", b"<Name>" + evil.encode())), WEB)
    assert len(source_of(*files).appliance.name) == 255
    assert source_of(*files).appliance.name.isprintable()
    many = [
        f"<Item><rasd:ResourceType>9</rasd:ResourceType><rasd:ElementName>{evil}</rasd:ElementName></Item>"
    ]
    noisy = source_of(("x.ovf", ovf(items="".join(many * 300))), WEB)
    findings = [each for each in noisy.appliance.findings if each.id == "device-not-kept"]
    assert findings and all(len(each.text) < 200 and each.text.isprintable() for each in findings)


def test_every_order_of_files_gives_the_same_source() -> None:
    files = (("x.ovf", ovf()), WEB, ("x.mf", manifest(("x.ovf", ovf()), WEB)))
    for order in itertools.permutations(files):
        assert ids(source_of(*order)) == set()
        assert disks_of(*order) == {"d1": DISK}


def test_many_disks_that_name_properties_are_read_at_once() -> None:
    properties = '<Property ovf:key="p1" ovf:value="512"/>' * 4_000
    sections = f"<ProductSection>{properties}</ProductSection>"
    named = ovf(["web.vmdk"] * 4_000, disk='ovf:capacity="${p1}"', sections=sections)
    began = time.monotonic()
    source = source_of(("x.ovf", named), WEB)
    assert source.appliance.disks[0].capacity == 512 and time.monotonic() - began < 10
    with pytest.raises(refusals.AmountAbsurd):
        source_of(("x.ovf", named.replace(b"${p1}", b"${p2}")), WEB)
