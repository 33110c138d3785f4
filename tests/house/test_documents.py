"""What the documents promise exists: verbs, files, numbered decisions, links."""

import re
from pathlib import Path

import pytest

STATUSES = ("accepted", "superseded", "rejected")


def verbs(root: Path) -> set[str]:
    """Verbs that ./run knows: the branches of its one case statement."""
    cases = (root / "run").read_text().split("case $verb in", 1)[1]
    return {
        verb for line in re.findall(r"^    ([a-z| -]+)\)", cases, re.MULTILINE) for verb in line.split(" | ")
    }


def documents(tracked: list[Path]) -> list[Path]:
    return [path for path in tracked if path.suffix == ".md"]


def test_every_run_command_in_the_documents_exists(root: Path, tracked: list[Path]) -> None:
    named = {
        (str(path.relative_to(root)), verb)
        for path in documents(tracked)
        for verb in re.findall(r"(?:\./run|\.\./run) ([a-z]+)", path.read_text())
    }
    assert any(path == "README.md" for path, _ in named)
    assert {(path, verb) for path, verb in named if verb not in verbs(root)} == set()


def test_help_lists_every_verb(root: Path) -> None:
    text = (root / "run").read_text()
    listed = set(re.findall(r"^  ([a-z]+) ", text.split("<<'END'", 1)[1].split("\nEND", 1)[0], re.MULTILINE))
    assert listed == {verb for verb in verbs(root) if not verb.startswith("-")}


def test_links_between_documents_lead_somewhere(root: Path, tracked: list[Path]) -> None:
    broken = [
        f"{path.relative_to(root)}: {target}"
        for path in documents(tracked)
        for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", path.read_text())
        if not (path.parent / target).exists()
    ]
    assert not broken, "\n".join(broken)


def test_decisions_are_numbered_without_gaps(root: Path) -> None:
    numbers = [int(path.name[:4]) for path in sorted((root / "docs/decisions").glob("*.md"))]
    assert numbers == list(range(1, len(numbers) + 1))
    assert numbers


def decisions() -> list[Path]:
    return sorted((Path(__file__).resolve().parents[2] / "docs/decisions").glob("*.md"))


@pytest.mark.parametrize("path", decisions(), ids=lambda path: path.stem)
def test_a_decision_has_number_title_and_status(path: Path) -> None:
    first, *rest = path.read_text().splitlines()
    title = re.fullmatch(r"# (\d{4})\. \S.+", first)
    assert title is not None and title[1] == path.name[:4]
    statuses = [line.removeprefix("Status: ") for line in rest if line.startswith("Status: ")]
    assert len(statuses) == 1 and statuses[0].split()[0].rstrip(",.") in STATUSES


def test_every_finding_of_an_import_is_in_its_guide(root: Path) -> None:
    rooms = root / "src" / "holdfast"
    sources = [
        *(rooms / "storage" / "appliances").glob("*.py"),
        *(rooms / "storage" / "vsphere").glob("*.py"),
        *(rooms / "vm").glob("import*.py"),
    ]
    ids = {
        found
        for path in sources
        for found in re.findall(r"\b(?:error|warning|info)\(\s*\"([a-z0-9-]+)\"", path.read_text())
    }
    assert "bios-only" in ids
    guide = (root / "docs" / "guide" / "import.md").read_text()
    assert {found for found in ids if f"`{found}`" not in guide} == set()
