"""No address of a mirror or registry and no path of one person's machine stands in the repository.

Packages come from wherever the user's own apt and pip are set up to get them.
"""

import re
from pathlib import Path

# Written in pieces, so that this file does not find itself.
FORBIDDEN = {
    "a package mirror": re.compile(
        r"://(deb|ftp|security|archive|snapshot|(\w+\.)?archive)\." + r"(debian\.org|ubuntu\.com)/"
    ),
    "a Python registry": re.compile(r"(files\.)?" + r"py(pi\.org|thonhosted\.org)"),
    "another registry": re.compile(r"registry\." + r"npmjs|(--(extra-)?index|--find-" + r"links)[ =]"),
    "a path of this machine": re.compile(
        r"(?<![\w.])/(work/(main|shared)|root/\." + r"|home/\w+/|opt/(py" + r"pi|wheels))"
    ),
}


def test_tracked_files_hold_no_address_of_ours(root: Path, tracked: list[Path]) -> None:
    found = []
    for path in tracked:
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        for line_number, line in enumerate(text.splitlines(), 1):
            found += [
                f"{path.relative_to(root)}:{line_number}: {what}: {line.strip()[:100]}"
                for what, pattern in FORBIDDEN.items()
                if pattern.search(line)
            ]
    assert not found, "\n".join(found)


def test_the_lock_files_hold_names_versions_and_hashes_only(root: Path) -> None:
    for name in ("requirements.lock", "requirements-dev.lock"):
        for line in (root / name).read_text().splitlines():
            kept = line.split("#")[0].rstrip(" \\")
            assert re.fullmatch(r"|[a-z0-9._-]+==[\w.+!]+( ; .+)?|    --hash=sha256:[0-9a-f]{64}", kept), (
                f"{name}: {line}"
            )


def test_the_dev_lock_holds_the_runtime_versions(root: Path) -> None:
    def pins(name: str) -> set[str]:
        return set(re.findall(r"^[\w.-]+==\S+", (root / name).read_text(), re.MULTILINE))

    assert pins("requirements.lock") - pins("requirements-dev.lock") == set()
