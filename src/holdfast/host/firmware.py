"""UEFI firmware builds that this host has, as QEMU's own descriptors tell it.

The format and the order of the folders are those of QEMU's docs/interop/firmware.json: a file in a
folder of higher priority hides its namesakes below, and an empty one hides without replacing.
Nothing is kept: descriptors are small and change with package updates.
"""

import fnmatch
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_LARGEST_DESCRIPTOR = 64 * 1024
_MACHINE = "pc-q35-10.0"  # what the descriptors' patterns of machines are held against
_LARGEST_TEMPLATE = 16 * 1024 * 1024


@dataclass(frozen=True)
class FirmwareBuild:
    """One UEFI build for x86_64 q35 machines: code in flash, and a template of its variables."""

    description: str
    descriptor: str
    """File name of the descriptor: builds are preferred in the order of these names."""
    code: Path
    code_format: str
    template: Path
    template_format: str
    features: frozenset[str]

    @property
    def secure_boot(self) -> bool:
        return "secure-boot" in self.features

    @property
    def enrolled_keys(self) -> bool:
        """Whether the template already holds certificates, so that Secure Boot is on at first boot."""
        return "enrolled-keys" in self.features

    @property
    def requires_smm(self) -> bool:
        return "requires-smm" in self.features


def find_firmware(root: Path = Path("/")) -> list[FirmwareBuild]:
    """Usable builds in QEMU's order of preference; descriptors that make no sense are passed over.

    A build is usable where it is UEFI for x86_64 on q35, lies in split flash and its files exist.
    Paths in the result start with `root`.
    """
    chosen: dict[str, Path] = {}
    for folder in _folders(root):
        for path in sorted(folder.glob("*.json")) if folder.is_dir() else ():
            chosen.setdefault(path.name, path)
    builds = [_build(chosen[name], root) for name in sorted(chosen)]
    return [build for build in builds if build is not None]


def lacks_2023_certificates(build: FirmwareBuild) -> bool:
    """Whether a template with enrolled keys knows no Microsoft certificate of 2023.

    The subject's common name stands in plain ASCII in the DER of each certificate (X.520).
    """
    if not build.enrolled_keys or build.template_format != "raw":
        return False
    with build.template.open("rb") as file:
        return b"UEFI CA 2023" not in file.read(_LARGEST_TEMPLATE)


def _folders(root: Path) -> list[Path]:
    """Highest priority first."""
    folders = [root / "etc/qemu/firmware", root / "usr/share/qemu/firmware"]
    if root == Path("/"):
        own = os.environ.get("XDG_CONFIG_HOME") or str(Path("~/.config").expanduser())
        folders.insert(0, Path(own) / "qemu/firmware")
    return folders


def _build(path: Path, root: Path) -> FirmwareBuild | None:
    try:
        with path.open("rb") as file:
            text = file.read(_LARGEST_DESCRIPTOR)
        return _parse(json.loads(text), path.name, root) if text.strip() else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _parse(text: Any, descriptor: str, root: Path) -> FirmwareBuild | None:
    fits = any(
        target["architecture"] == "x86_64"
        and any(fnmatch.fnmatchcase(_MACHINE, pattern) for pattern in target["machines"])
        for target in text["targets"]
    )
    mapping = text["mapping"]
    if not fits or "uefi" not in text["interface-types"] or mapping["device"] != "flash":
        return None
    if mapping.get("mode", "split") != "split":
        return None
    code, template = mapping["executable"], mapping["nvram-template"]
    build = FirmwareBuild(
        description=str(text.get("description", "")),
        descriptor=descriptor,
        code=root / str(code["filename"]).lstrip("/"),
        code_format=str(code["format"]),
        template=root / str(template["filename"]).lstrip("/"),
        template_format=str(template["format"]),
        features=frozenset(str(feature) for feature in text["features"]),
    )
    return build if build.code.is_file() and build.template.is_file() else None
