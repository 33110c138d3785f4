"""Ranges of ids that an ordinary user may give out in user namespaces of its own: subuid(5)."""

from pathlib import Path


def file_without_range(root: Path, user: str, uid: int) -> Path | None:
    """The first of the two files that gives this user no range; None: both give one."""
    for path in (root / "etc/subuid", root / "etc/subgid"):
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else []
        if not any(line.split(":")[0] in (user, str(uid)) for line in lines):
            return path
    return None


def command_for_range(user: str) -> str:
    """What root runs to give the user both."""
    return f"usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user}"
