"""Which OVMF build a VM boots from, of those that this host has.

Builds with enrolled keys are passed over: the VM's keys are enrolled by us. Nothing is kept here.
"""

from pathlib import Path

from holdfast.host.firmware import FirmwareBuild, find_firmware
from holdfast.spec.errors import Unsupported


class FirmwareMissing(Unsupported):
    id = "firmware-missing"


def choose_firmware(secure_boot: bool, root: Path = Path("/")) -> FirmwareBuild:
    """The build for an x86_64 q35 machine; its files are raw and its template is empty.

    With Secure Boot it is one that protects its variables by SMM; without, a plain one.

    Raises:
        FirmwareMissing: no descriptor fits.
    """
    for build in find_firmware(root):
        if _fits(build, secure_boot):
            return build
    kind = "with Secure Boot" if secure_boot else "without Secure Boot"
    raise FirmwareMissing(
        f"this host has no UEFI firmware for x86_64 q35 machines {kind}",
        value={"secure_boot": secure_boot},
        cure="Install the package `ovmf`.",
    )


def _fits(build: FirmwareBuild, secure_boot: bool) -> bool:
    if build.enrolled_keys or not build.code_format == build.template_format == "raw":
        return False
    if secure_boot:
        return build.secure_boot and build.requires_smm
    return not build.secure_boot and not build.requires_smm
