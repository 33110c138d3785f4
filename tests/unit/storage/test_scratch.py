"""Scratch at daemon start."""

from pathlib import Path

from holdfast.storage.scratch import clean, operation_folder


def test_only_folders_of_unfinished_operations_stay(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    for operation in ("1", "2"):
        operation_folder(scratch, operation).mkdir()
        (operation_folder(scratch, operation) / "source").touch()
    (scratch / "uploads").mkdir()
    (scratch / "file").touch()
    (scratch / "link").symlink_to(outside)
    clean(scratch, ["2", "3"])
    assert [entry.name for entry in scratch.iterdir()] == ["operation-2"]
    assert (operation_folder(scratch, "2") / "source").exists()
    assert (outside / "kept").exists()
