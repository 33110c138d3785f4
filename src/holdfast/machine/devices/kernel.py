"""A Linux kernel started directly, with no firmware of ours before it."""

from pathlib import Path


def kernel(image: Path | None, initrd: Path | None, append: str) -> list[str]:
    if image is None:
        return []
    ramdisk = ["-initrd", str(initrd)] if initrd else []
    return ["-kernel", str(image), *ramdisk, "-append", append]
