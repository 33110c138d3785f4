"""Size, names and headers of modules."""

import ast
from pathlib import Path

LONGEST_MODULE = 600
LONGEST_FUNCTION = 60
VAGUE = {"utils", "util", "common", "base", "core", "helpers", "helper", "manager", "misc"}


def test_no_module_is_longer_than_the_ceiling(modules: list[Path]) -> None:
    long = {str(path): len(path.read_text().splitlines()) for path in modules}
    assert {path: lines for path, lines in long.items() if lines > LONGEST_MODULE} == {}


def test_no_function_is_longer_than_the_ceiling(modules: list[Path]) -> None:
    long = {
        f"{path}:{node.name}": node.end_lineno - node.lineno + 1
        for path in modules
        if "migrations" not in path.parts  # a list of tables, frozen once released
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None
    }
    assert {name: lines for name, lines in long.items() if lines > LONGEST_FUNCTION} == {}


def test_no_module_or_folder_has_a_vague_name(root: Path, modules: list[Path]) -> None:
    vague = [
        str(path)
        for path in modules
        if VAGUE.intersection(part.removesuffix(".py") for part in path.relative_to(root).parts)
    ]
    assert vague == []


def test_every_module_says_what_it_is_for(modules: list[Path]) -> None:
    mute = [str(path) for path in modules if not ast.get_docstring(ast.parse(path.read_text()))]
    assert mute == []
