"""Real files of the distribution to be judged."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "guests"))

from boot_disks import boot_programs

from holdfast.host.firmware import find_firmware


@pytest.fixture(scope="session")
def programs() -> dict[str, bytes]:
    """`shim`, `grub` and one that is `unsigned`."""
    return {name: path.read_bytes() for name, path in boot_programs().items()}


@pytest.fixture(scope="session")
def store_of_2011() -> bytes:
    for build in find_firmware():
        if build.enrolled_keys and build.secure_boot and build.template_format == "raw":
            return build.template.read_bytes()
    pytest.skip("ovmf is not installed")
