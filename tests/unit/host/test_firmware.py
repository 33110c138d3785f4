"""Firmware builds by QEMU's descriptors: priority, masking, fitness."""

import json
from pathlib import Path
from typing import Any

from fake_host import put

from holdfast.host.firmware import find_firmware, lacks_2023_certificates


def descriptor(code: str, template: str, *features: str, machine: str = "pc-q35-*", mode: str = "") -> str:
    mapping: dict[str, Any] = {
        "device": "flash",
        "executable": {"filename": f"/usr/share/OVMF/{code}", "format": "raw"},
        "nvram-template": {"filename": f"/usr/share/OVMF/{template}", "format": "raw"},
    }
    if mode:
        mapping["mode"] = mode
    return json.dumps(
        {
            "description": code,
            "interface-types": ["uefi"],
            "mapping": mapping,
            "targets": [{"architecture": "x86_64", "machines": [machine]}],
            "features": list(features),
            "tags": [],
        }
    )


def host_with_firmware(root: Path) -> Path:
    folder = "usr/share/qemu/firmware"
    put(
        root,
        {
            "usr/share/OVMF/ms.fd": "code",
            "usr/share/OVMF/plain.fd": "code",
            "usr/share/OVMF/ms.vars": "\0Microsoft Corporation UEFI CA 2011\0",
            "usr/share/OVMF/plain.vars": "\0",
            f"{folder}/40-ms.json": descriptor(
                "ms.fd", "ms.vars", "secure-boot", "enrolled-keys", "requires-smm"
            ),
            f"{folder}/60-plain.json": descriptor("plain.fd", "plain.vars", "acpi-s3"),
        },
    )
    return root


def test_builds_come_in_order_with_their_features(tmp_path: Path) -> None:
    builds = find_firmware(host_with_firmware(tmp_path))
    assert [(b.descriptor, b.secure_boot, b.enrolled_keys, b.requires_smm) for b in builds] == [
        ("40-ms.json", True, True, True),
        ("60-plain.json", False, False, False),
    ]
    assert builds[0].code == tmp_path / "usr/share/OVMF/ms.fd"


def test_the_administrator_masks_and_replaces(tmp_path: Path) -> None:
    root = host_with_firmware(tmp_path)
    put(root, {"etc/qemu/firmware/40-ms.json": ""})
    assert [b.descriptor for b in find_firmware(root)] == ["60-plain.json"]
    put(root, {"etc/qemu/firmware/40-ms.json": descriptor("plain.fd", "plain.vars", "secure-boot")})
    assert [b.code.name for b in find_firmware(root)] == ["plain.fd", "plain.fd"]


def test_what_does_not_fit_or_makes_no_sense_is_passed_over(tmp_path: Path) -> None:
    root = host_with_firmware(tmp_path)
    folder = "usr/share/qemu/firmware"
    put(
        root,
        {
            f"{folder}/10.json": "{not json",
            f"{folder}/11.json": "[]",
            f"{folder}/12.json": descriptor("gone.fd", "ms.vars"),
            f"{folder}/13.json": descriptor("ms.fd", "ms.vars", machine="pc-i440fx-*"),
            f"{folder}/16.json": descriptor("ms.fd", "ms.vars", machine="xlnx-q35-like"),
            f"{folder}/14.json": descriptor("ms.fd", "ms.vars", mode="stateless"),
            f"{folder}/15.json": json.dumps({"description": "bios", "interface-types": ["bios"]}),
        },
    )
    assert [b.descriptor for b in find_firmware(root)] == ["40-ms.json", "60-plain.json"]


def test_certificates_of_2023_are_looked_for(tmp_path: Path) -> None:
    root = host_with_firmware(tmp_path)
    enrolled, plain = find_firmware(root)
    assert lacks_2023_certificates(enrolled) and not lacks_2023_certificates(plain)
    put(root, {"usr/share/OVMF/ms.vars": "\0Microsoft UEFI CA 2023\0"})
    assert not lacks_2023_certificates(enrolled)
