"""Error ids are for ever: clients match on them, so each is well formed and belongs to one class."""

import ast
import re
from collections import defaultdict
from pathlib import Path


def error_ids(root: Path) -> dict[str, list[str]]:
    """Where each id stands: the string that a class's body gives to `id`, with no type."""
    found: dict[str, list[str]] = defaultdict(list)
    for path in sorted((root / "src").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.ClassDef):
                continue
            for line in node.body:
                match line:
                    case (
                        ast.Assign(targets=[ast.Name(id="id")], value=ast.Constant(value=str(text)))
                        | ast.AnnAssign(target=ast.Name(id="id"), value=ast.Constant(value=str(text)))
                    ):
                        found[text].append(f"{path.relative_to(root)}: {node.name}")
    return found


def test_each_id_belongs_to_one_class(root: Path) -> None:
    shared = [f"{name}: {', '.join(places)}" for name, places in error_ids(root).items() if len(places) > 1]
    assert not shared, "\n".join(shared)


def test_ids_are_kebab_case(root: Path) -> None:
    ids = error_ids(root)
    assert "not-found" in ids
    odd = [
        f"{name}: {places[0]}"
        for name, places in ids.items()
        if not re.fullmatch(r"[a-z]+(-[a-z0-9]+)*", name)
    ]
    assert not odd, "\n".join(odd)
