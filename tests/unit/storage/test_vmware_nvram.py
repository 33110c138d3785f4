"""`.nvram` files of vSphere and Workstation, made by what is known of them."""

import pytest
from archives_made import DISK, ovf, source_of
from fuzz_seeds import nvram, nvram_record

from holdfast.spec.appliance import Severity
from holdfast.storage.formats.vmware_nvram import GLOBAL, NotNvram, boot_entries, variables


def test_variables_and_boot_entries_are_read() -> None:
    found = variables(nvram())
    assert found["Lang", GLOBAL].value == b"eng\0" and found["Lang", GLOBAL].attributes == 7
    assert boot_entries(found) == ("debian", "EFI Network")


def test_the_last_of_one_name_counts() -> None:
    found = variables(nvram(nvram_record("BootOrder", b"\2\0")))
    assert boot_entries(found) == ("EFI Network",)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"MRVN",
        nvram()[4:],
        nvram().replace(b"VMWNVRAM", b"VMWNVRAX"),
        nvram()[:200],
        nvram(b"\0" * 16 + b"\xff" * 12),
        nvram(nvram_record("x" * 600, b"")),
    ],
)
def test_what_is_none_is_refused(data: bytes) -> None:
    with pytest.raises(NotNvram):
        variables(data)


def test_it_is_told_what_is_left_behind() -> None:
    text = ovf(items="").replace(b"</References>", b'<File ovf:id="n" ovf:href="web.nvram"/></References>')
    mok = nvram_record("MokList", b"x", b"\x50\xab\x5d\x60\x46\xe0\x00\x43\xab\xb6\x3d\xd8\x10\xdd\x8b\x23")

    def findings(data: bytes) -> dict[str, tuple[Severity, str]]:
        source = source_of(("x.ovf", text), ("web.vmdk", DISK), ("web.nvram", data))
        return {each.id: (each.severity, each.text) for each in source.findings}

    plain = findings(nvram())
    assert plain["nvram-read"][0] is Severity.INFO and "'debian', 'EFI Network'" in plain["nvram-read"][1]
    assert "owner-keys-not-kept" not in plain
    assert findings(nvram(mok))["owner-keys-not-kept"][0] is Severity.WARNING
    assert findings(nvram()[:300])["nvram-not-read"][0] is Severity.INFO
    assert findings(b"x" * 300).keys() & {"nvram-read", "nvram-not-read"} == {"nvram-not-read"}
