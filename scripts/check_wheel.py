"""Is everything of src/holdfast in the wheel? Migrations, openapi.json and py.typed are easily left out."""

import sys
import zipfile
from pathlib import Path


def main(wheel: str) -> int:
    source = Path(__file__).resolve().parents[1] / "src"
    wanted = {
        str(path.relative_to(source))
        for path in (source / "holdfast").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    with zipfile.ZipFile(wheel) as archive:
        missing = sorted(wanted - set(archive.namelist()))
    for name in missing:
        sys.stderr.write(f"{wheel} lacks {name}\n")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
