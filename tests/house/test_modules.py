"""Size, names and headers of modules."""

import ast
from pathlib import Path

LONGEST_MODULE = 600
LONGEST_FUNCTION = 60
VAGUE = {"utils", "util", "common", "base", "core", "helpers", "helper", "manager", "misc"}


def test_no_module_is_longer_than_the_ceiling(modules: list[Path]) -> None:
    lengths = {path: len(path.read_text().splitlines()) for path in modules}
    found = [f"{path}: {lines} lines" for path, lines in lengths.items() if lines > LONGEST_MODULE]
    assert not found, "\n".join(found)


def test_no_function_is_longer_than_the_ceiling(modules: list[Path]) -> None:
    found = [
        f"{path}:{node.lineno}: {node.name} has {node.end_lineno - node.lineno + 1} lines"
        for path in modules
        if "migrations" not in path.parts  # a list of tables, frozen once released
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno + 1 > LONGEST_FUNCTION
    ]
    assert not found, "\n".join(found)


def test_no_module_or_folder_has_a_vague_name(root: Path, modules: list[Path]) -> None:
    vague = [
        str(path)
        for path in modules
        if VAGUE.intersection(part.removesuffix(".py") for part in path.relative_to(root).parts)
    ]
    assert not vague, "\n".join(vague)


def test_every_module_says_what_it_is_for(modules: list[Path]) -> None:
    mute = [str(path) for path in modules if not ast.get_docstring(ast.parse(path.read_text()))]
    assert not mute, "\n".join(mute)
