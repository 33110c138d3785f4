"""What `vm import` says of paths that lead to nothing."""

from pathlib import Path

import pytest

from holdfast.cli.import_sources import NothingToImport, sources_at
from holdfast.cli.uploading import NoSuchFile


def test_a_file_that_is_not_there_is_told_from_one_that_is_of_no_use(tmp_path: Path) -> None:
    with pytest.raises(NoSuchFile):
        sources_at(tmp_path / "absent.ova", [])
    with pytest.raises(NothingToImport, match="nothing that can be imported"):
        sources_at(tmp_path, [])
