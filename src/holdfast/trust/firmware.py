"""Which OVMF build a VM boots from, found by QEMU's firmware descriptors.

Distributions describe their firmware builds in JSON files (QEMU docs/interop/firmware.json). A file
in a later folder replaces one of the same name in an earlier folder, an empty file hides it, and of
those that fit the first by file name wins. The descriptors belong to the host; nothing is kept here.
"""

import fnmatch
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from holdfast.spec.errors import Unsupported

FOLDERS = (Path("/usr/share/qemu/firmware"), Path("/etc/qemu/firmware"))
"""Least important first."""

_MAX_DESCRIPTOR = 256 * 1024
_MACHINE = "pc-q35-10.0"


class FirmwareMissing(Unsupported):
    id = "firmware-missing"


@dataclass(frozen=True)
class FirmwareBuild:
    """An OVMF build of this host."""

    code: Path
    """Executable part; read-only, shared by all VMs."""
    template: Path
    """Variable store with no keys enrolled; each VM gets a store of its own made from it."""
    smm: bool
    """The build needs System Management Mode."""


def choose_firmware(secure_boot: bool, folders: Sequence[Path] = FOLDERS) -> FirmwareBuild:
    """The build for an x86_64 q35 machine.

    With Secure Boot it is one that protects its variables by SMM; without, a plain one where the
    host has it. Builds with enrolled keys are passed over: the VM's keys are enrolled by us.

    Raises:
        FirmwareMissing: no descriptor fits.
    """
    for path in _descriptors(folders):
        build = _fitting(path, secure_boot)
        if build is not None:
            return build
    kind = "with Secure Boot" if secure_boot else "without Secure Boot"
    raise FirmwareMissing(
        f"this host has no UEFI firmware for x86_64 q35 machines {kind}",
        value=[str(folder) for folder in folders],
        cure="Install the package `ovmf`.",
    )


def _descriptors(folders: Sequence[Path]) -> list[Path]:
    found: dict[str, Path] = {}
    for folder in folders:
        found.update({path.name: path for path in folder.glob("*.json")})
    return [found[name] for name in sorted(found)]


def _fitting(path: Path, secure_boot: bool) -> FirmwareBuild | None:
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_DESCRIPTOR)
        descriptor = json.loads(text) if text.strip() else None
    except (OSError, ValueError):
        return None
    try:
        return _build(descriptor, secure_boot) if isinstance(descriptor, dict) else None
    except (KeyError, TypeError, AttributeError):
        return None


def _build(descriptor: dict[str, Any], secure_boot: bool) -> FirmwareBuild | None:
    features = set(descriptor["features"])
    wanted = {"secure-boot", "requires-smm"}
    right = wanted <= features if secure_boot else not wanted & features
    mapping = descriptor["mapping"]
    executable, template = mapping["executable"], mapping["nvram-template"]
    fits = (
        right
        and "enrolled-keys" not in features
        and "uefi" in descriptor["interface-types"]
        and mapping["device"] == "flash"
        and mapping.get("mode", "split") == "split"
        and executable["format"] == template["format"] == "raw"
        and any(_is_q35(target) for target in descriptor["targets"])
    )
    build = FirmwareBuild(Path(executable["filename"]), Path(template["filename"]), secure_boot)
    return build if fits and build.code.is_file() and build.template.is_file() else None


def _is_q35(target: dict[str, Any]) -> bool:
    return target["architecture"] == "x86_64" and any(
        fnmatch.fnmatchcase(_MACHINE, pattern) for pattern in target["machines"]
    )
