"""The firmware build is chosen by QEMU's descriptors."""

import json
from pathlib import Path

import pytest

from holdfast.trust.firmware import FirmwareMissing, choose_firmware

VENDOR, LOCAL = "usr/share/qemu/firmware", "etc/qemu/firmware"


def describe(
    root: Path,
    name: str,
    features: list[str],
    code: str,
    machine: str = "pc-q35-*",
    folder: str = VENDOR,
    kind: str = "raw",
) -> None:
    (root / folder).mkdir(parents=True, exist_ok=True)
    for part in (code, "vars"):
        (root / part).touch()
    text = {
        "interface-types": ["uefi"],
        "mapping": {
            "device": "flash",
            "executable": {"filename": f"/{code}", "format": kind},
            "nvram-template": {"filename": "/vars", "format": kind},
        },
        "targets": [{"architecture": "x86_64", "machines": [machine]}],
        "features": features,
    }
    (root / folder / name).write_text(json.dumps(text))


SECURE = ["secure-boot", "requires-smm"]


def test_secure_and_plain_builds_are_told_apart(tmp_path: Path) -> None:
    describe(tmp_path, "40.json", [*SECURE, "enrolled-keys"], "ms")
    describe(tmp_path, "45.json", ["secure-boot"], "unprotected")
    describe(tmp_path, "50.json", SECURE, "secure")
    describe(tmp_path, "55.json", ["requires-smm"], "smm-only")
    describe(tmp_path, "60.json", [], "plain")
    assert choose_firmware(True, tmp_path).code.name == "secure"
    assert choose_firmware(True, tmp_path).requires_smm
    assert choose_firmware(False, tmp_path).code.name == "plain"
    assert not choose_firmware(False, tmp_path).requires_smm


def test_the_hosts_own_descriptor_replaces_and_an_empty_one_hides(tmp_path: Path) -> None:
    describe(tmp_path, "50.json", SECURE, "vendor")
    describe(tmp_path, "50.json", SECURE, "local", folder=LOCAL)
    assert choose_firmware(True, tmp_path).code.name == "local"
    (tmp_path / LOCAL / "50.json").write_text("")
    with pytest.raises(FirmwareMissing):
        choose_firmware(True, tmp_path)


def test_only_raw_files_can_be_copied_and_enrolled(tmp_path: Path) -> None:
    describe(tmp_path, "10.json", [], "other", kind="qcow2")
    describe(tmp_path, "60.json", [], "plain")
    assert choose_firmware(False, tmp_path).code.name == "plain"


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"features": 3}', '{"features": [], "mapping": []}'])
def test_bad_descriptors_are_passed_over(tmp_path: Path, text: str) -> None:
    describe(tmp_path, "60.json", [], "plain")
    (tmp_path / VENDOR / "10.json").write_text(text)
    assert choose_firmware(False, tmp_path).code.name == "plain"


def test_missing_firmware_names_the_package(tmp_path: Path) -> None:
    describe(tmp_path, "60.json", [], "plain", machine="virt-*")
    with pytest.raises(FirmwareMissing) as caught:
        choose_firmware(False, tmp_path)
    assert "ovmf" in caught.value.cure
