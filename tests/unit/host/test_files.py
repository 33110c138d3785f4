"""Files are whole or not there."""

import os
from pathlib import Path

import pytest

from holdfast.host.files import copy_sparse, remove_tree, write_atomic


def test_write_atomic_replaces_and_leaves_no_scratch(tmp_path: Path) -> None:
    target = tmp_path / "key"
    write_atomic(target, b"one")
    write_atomic(target, b"two")
    assert target.read_bytes() == b"two"
    assert target.stat().st_mode & 0o777 == 0o600
    assert [p.name for p in tmp_path.iterdir()] == ["key"]


def test_write_atomic_does_not_write_through_a_link(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"safe")
    (tmp_path / "key").symlink_to(victim)
    write_atomic(tmp_path / "key", b"new")
    assert victim.read_bytes() == b"safe"


def test_copy_sparse_keeps_content_and_holes(tmp_path: Path) -> None:
    source, target = tmp_path / "a", tmp_path / "b"
    with source.open("wb") as file:
        file.write(b"head")
        file.seek(64 * 1024 * 1024)
        file.write(os.urandom(100_000))
        file.truncate(128 * 1024 * 1024)
    copy_sparse(source, target)
    assert source.read_bytes() == target.read_bytes()
    assert target.stat().st_blocks * 512 < 2 * 1024 * 1024


def test_copy_sparse_never_overwrites(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a")
    (tmp_path / "b").write_bytes(b"b")
    with pytest.raises(FileExistsError):
        copy_sparse(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == b"b"


def test_remove_tree_of_nothing_is_fine(tmp_path: Path) -> None:
    remove_tree(tmp_path / "none")
    (tmp_path / "d" / "e").mkdir(parents=True)
    remove_tree(tmp_path / "d")
    assert not (tmp_path / "d").exists()
