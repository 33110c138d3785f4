"""Every finding that reading a source can make stands in the guide."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def made() -> set[str]:
    found = set()
    for path in (ROOT / "src/holdfast/storage/appliances").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Call(
                    func=ast.Name(id="info" | "warning" | "error"), args=[ast.Constant(value=str(id)), *_]
                ):
                    found.add(id)
    return found


def test_the_guide_lists_every_finding() -> None:
    text = (ROOT / "docs/guide/import.md").read_text().split("## Findings", 1)[1]
    rows = re.findall(r"^\| (`.*?`) \|", text, re.MULTILINE)
    told = {id for row in rows for id in re.findall(r"`([a-z0-9-]+)`", row)}
    assert made() and made() <= told, made() - told
