import json
from pathlib import Path

import pytest

from holdfast.trust.firmware import FirmwareMissing, choose_firmware


def describe(folder: Path, name: str, features: list[str], code: str, machine: str = "pc-q35-*") -> None:
    folder.mkdir(exist_ok=True)
    for part in (code, "vars"):
        (folder / part).touch()
    text = {
        "interface-types": ["uefi"],
        "mapping": {
            "device": "flash",
            "executable": {"filename": str(folder / code), "format": "raw"},
            "nvram-template": {"filename": str(folder / "vars"), "format": "raw"},
        },
        "targets": [{"architecture": "x86_64", "machines": [machine]}],
        "features": features,
    }
    (folder / name).write_text(json.dumps(text))


SECURE = ["secure-boot", "requires-smm"]


def test_secure_and_plain_builds_are_told_apart(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    describe(folder, "40.json", [*SECURE, "enrolled-keys"], "ms")
    describe(folder, "50.json", SECURE, "secure")
    describe(folder, "60.json", [], "plain")
    assert choose_firmware(True, [folder]).code.name == "secure"
    assert choose_firmware(True, [folder]).smm
    assert choose_firmware(False, [folder]).code.name == "plain"
    assert not choose_firmware(False, [folder]).smm


def test_a_later_folder_replaces_and_an_empty_file_hides(tmp_path: Path) -> None:
    vendor, local = tmp_path / "vendor", tmp_path / "local"
    describe(vendor, "50.json", SECURE, "vendor")
    describe(local, "50.json", SECURE, "local")
    assert choose_firmware(True, [vendor, local]).code.name == "local"
    (local / "50.json").write_text("")
    with pytest.raises(FirmwareMissing):
        choose_firmware(True, [vendor, local])


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"features": 3}', '{"features": [], "mapping": []}'])
def test_bad_descriptors_are_passed_over(tmp_path: Path, text: str) -> None:
    describe(tmp_path / "a", "60.json", [], "plain")
    (tmp_path / "a" / "10.json").write_text(text)
    assert choose_firmware(False, [tmp_path / "a"]).code.name == "plain"


def test_missing_firmware_names_the_package(tmp_path: Path) -> None:
    describe(tmp_path / "a", "60.json", [], "plain", machine="virt-*")
    with pytest.raises(FirmwareMissing) as caught:
        choose_firmware(False, [tmp_path / "a"])
    assert "ovmf" in caught.value.cure
