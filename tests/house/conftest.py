"""The repository as the house tests see it: its root and the files that git keeps."""

import subprocess
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def root() -> Path:
    return Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def tracked(root: Path) -> list[Path]:
    """Every tracked file that exists in the work tree; all files where this is no git clone."""
    if (root / ".git").exists():
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, check=True, capture_output=True).stdout
        paths = [root / name for name in listed.decode().split("\0") if name]
    else:
        hidden = {".venv", ".run", "build", "dist", "__pycache__"}
        paths = [path for path in root.rglob("*") if not hidden.intersection(path.parts)]
    return [path for path in paths if path.is_file()]


@pytest.fixture(scope="session")
def modules(root: Path, tracked: list[Path]) -> list[Path]:
    """Every Python module of the product, its tests, benches and scripts."""
    return [path for path in tracked if path.suffix == ".py"]
