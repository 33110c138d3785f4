"""./run itself: its syntax, and the parts of it that decide something."""

import subprocess
from pathlib import Path

import pytest


def scripts(root: Path) -> list[Path]:
    return [root / "run", *sorted((root / "scripts").glob("*.sh"))]


@pytest.mark.parametrize("shell", ["sh", "dash"])
def test_the_scripts_parse(root: Path, shell: str) -> None:
    for script in scripts(root):
        done = subprocess.run([shell, "-n", script], check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def call(root: Path, function: str, *args: str) -> str:
    text = f'here=$1; . "$here/scripts/packages.sh"; shift; {function} "$@"'
    return subprocess.run(
        ["sh", "-euc", text, "sh", str(root), *args], check=True, capture_output=True, text=True
    ).stdout


def test_packages_are_read_by_section(root: Path) -> None:
    assert "qemu-system-x86" in call(root, "packages_of", "backports").split()
    both = call(root, "packages_of", "runtime", "test").split()
    assert "swtpm" in both
    assert "qemu-system-x86" not in both
    assert len(both) == len(set(both))
    assert all(name.replace("-", "").replace(".", "").replace("+", "").isalnum() for name in both)


def backports(root: Path, folder: Path) -> str:
    """The entry that backports_source makes from the apt sources in `folder`."""
    text = (root / "scripts/packages.sh").read_text().replace("/etc/apt/", f"{folder}/")
    script = folder / "packages.sh"
    script.write_text(text)
    done = subprocess.run(
        ["sh", "-c", f'. "{script}"; backports_source bookworm'], check=False, capture_output=True, text=True
    )
    return done.stdout if done.returncode == 0 else ""


@pytest.fixture
def apt(tmp_path: Path) -> Path:
    (tmp_path / "sources.list.d").mkdir()
    return tmp_path


def test_backports_follow_a_deb822_source(root: Path, apt: Path) -> None:
    (apt / "sources.list.d/debian.sources").write_text(
        "Types: deb\n"
        "# a comment\n"
        "URIs: mirror+file:/etc/mirrors\n"
        "Suites: bookworm bookworm-updates\n"
        "Components: main contrib\n"
        "Signed-By:\n -----BEGIN KEY-----\n .\n abc\n"
        "\n"
        "Types: deb\nURIs: file:/security\nSuites: bookworm-security\nComponents: main\n"
    )
    assert backports(root, apt).splitlines() == [
        "sources",
        "Types: deb",
        "Suites: bookworm-backports",
        "Components: main",
        "URIs: mirror+file:/etc/mirrors",
        "Signed-By:",
        " -----BEGIN KEY-----",
        " .",
        " abc",
    ]


def test_backports_follow_a_one_line_source(root: Path, apt: Path) -> None:
    (apt / "sources.list").write_text(
        "# deb file:/old bookworm main\n"
        "deb-src file:/mirror bookworm main\n"
        "deb file:/security bookworm-security main\n"
        "deb [arch=amd64 signed-by=/usr/share/keyrings/k.gpg] file:/mirror bookworm main contrib\n"
    )
    assert backports(root, apt).splitlines() == [
        "list",
        "deb [arch=amd64 signed-by=/usr/share/keyrings/k.gpg] file:/mirror bookworm-backports main",
    ]


def test_disabled_and_source_only_entries_give_no_backports(root: Path, apt: Path) -> None:
    (apt / "sources.list.d/debian.sources").write_text(
        "Types: deb\nEnabled: no\nURIs: file:/a\nSuites: bookworm\nComponents: main\n\n"
        "Types: deb-src\nURIs: file:/b\nSuites: bookworm\nComponents: main\n"
    )
    assert backports(root, apt) == ""


def test_an_unknown_verb_is_refused(root: Path) -> None:
    done = subprocess.run([root / "run", "fly"], check=False, capture_output=True, text=True)
    assert done.returncode == 1
    assert "fly" in done.stderr
    assert done.stdout == ""
