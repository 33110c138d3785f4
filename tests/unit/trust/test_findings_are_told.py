"""Every finding that the code can make stands in the guide, and the guide names no others."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
MODULES = ("event_log", "quote", "policy", "verdict")
NOT_FINDINGS = {"evidence-unproven"}


def made() -> set[str]:
    found = set()
    for name in MODULES:
        for node in ast.walk(ast.parse((ROOT / f"src/holdfast/trust/{name}.py").read_text())):
            match node:
                case ast.Call(
                    func=ast.Attribute(attr="failure" | "warning" | "info") | ast.Name(id="report")
                ):
                    match node.args[0]:
                        case ast.Constant(value=str(id)):
                            found.add(id)
                case ast.Assign(targets=[ast.Name(id="id")], value=ast.Constant(value=str(id))):
                    found.add(id)
    return found - NOT_FINDINGS


def test_the_guide_lists_every_finding() -> None:
    text = (ROOT / "docs/guide/trusted-launch.md").read_text().split("## Findings", 1)[1]
    rows = re.findall(r"^\| (`.*?`) \| (?:info|warning|failure) \|", text, re.MULTILINE)
    told = {id for row in rows for id in re.findall(r"`([a-z0-9-]+)`", row)}
    assert told == made()
