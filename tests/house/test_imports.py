"""Imports point down only: the contract stands in pyproject.toml, import-linter checks it."""

import subprocess
import sys
from pathlib import Path


def test_the_import_contract_holds(root: Path) -> None:
    program = Path(sys.executable).parent / "lint-imports"
    done = subprocess.run([program, "--no-cache"], cwd=root, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
