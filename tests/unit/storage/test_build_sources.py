"""The host's apt sources, read for a suite that may be another one."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.storage.apt_sources import host_archives, parse_deb822, parse_one_line

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


def write(root: Path, name: str, text: str) -> None:
    path = root / "etc/apt" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def lines(root: Path, suite: str) -> list[str]:
    return host_archives(suite, root).one_line()


def test_a_mirror_in_deb822_is_used_for_another_suite(tmp_path: Path) -> None:
    write(
        tmp_path,
        "sources.list.d/debian.sources",
        "Types: deb deb-src\n# a comment\nURIs: http://mirror.example/debian/\n"
        f"Suites: bookworm bookworm-updates\n bookworm-backports\n"
        f"Components: main contrib\nSigned-By: {KEYRING}\n"
        "\nTypes: deb\nURIs: http://mirror.example/debian-security\nSuites: bookworm-security\n"
        f"Components: main\nSigned-By: {KEYRING}\n",
    )
    write(
        tmp_path,
        "sources.list.d/a.sources",
        "Enabled: no\nTypes: deb\nURIs: http://off/debian\nSuites: bookworm\nComponents: main\n",
    )
    assert lines(tmp_path, "trixie") == [
        f"deb [signed-by={KEYRING}] http://mirror.example/debian trixie main",
        f"deb [signed-by={KEYRING}] http://mirror.example/debian trixie-updates main",
        f"deb [signed-by={KEYRING}] http://mirror.example/debian-security trixie-security main",
    ]


def test_what_the_host_lacks_is_left_out(tmp_path: Path) -> None:
    write(
        tmp_path,
        "sources.list",
        "# deb http://off/debian stable main\ndeb https://m.example/debian stable main\n",
    )
    assert lines(tmp_path, "bookworm") == ["deb https://m.example/debian bookworm main"]


def test_another_vendor_with_debians_suite_names_is_passed_over(tmp_path: Path) -> None:
    write(tmp_path, "sources.list.d/a.list", "deb https://apt.vendor.example bookworm main\n")
    write(
        tmp_path, "sources.list.d/b.list", "deb [arch=amd64] https://docker.example/debian bookworm stable\n"
    )
    write(tmp_path, "sources.list.d/c.list", "deb http://m.example/debian bookworm main contrib # here\n")
    assert lines(tmp_path, "bookworm") == ["deb http://m.example/debian bookworm main"]


def test_a_mirror_list_is_resolved(tmp_path: Path) -> None:
    write(
        tmp_path,
        "mirrors/debian.list",
        "# first\nhttps://one.example/debian\thint\nhttps://two.example/debian\n",
    )
    write(tmp_path, "sources.list", "deb mirror+file:/etc/apt/mirrors/debian.list bookworm main\n")
    assert lines(tmp_path, "bookworm") == ["deb https://one.example/debian bookworm main"]


@pytest.mark.parametrize(
    "text", ["", "deb http://m.example/ubuntu noble main\n", "deb cdrom:[x]/ bookworm main\n"]
)
def test_a_host_without_debian_leaves_the_choice_to_mmdebstrap(tmp_path: Path, text: str) -> None:
    write(tmp_path, "sources.list", text)
    assert lines(tmp_path, "bookworm") == []


def test_the_guests_sources_read_back(tmp_path: Path) -> None:
    write(tmp_path, "sources.list", "deb [signed-by=/root/my.gpg] http://m.example/debian stable main\n")
    (entry,) = parse_deb822(host_archives("trixie", tmp_path).deb822())
    assert (entry.uri, entry.suite, entry.components) == ("http://m.example/debian", "trixie", ("main",))
    assert entry.keyring == KEYRING


@given(st.text(max_size=300))
def test_any_text_is_read_or_passed_over(text: str) -> None:
    for entry in parse_one_line(text) + parse_deb822(text):
        assert entry.keyring is None or " " not in entry.keyring
