"""The checked-in description of the interface: `python -m holdfast.api.openapi --write | --check`."""

import json
import sys
from pathlib import Path
from typing import Any, cast

from holdfast.api.app import build_app
from holdfast.api.services import Services

PATH = Path(__file__).with_name("openapi.json")


class _Nothing:
    """Stands for services that describing the routes never calls."""

    tokens = None


def text() -> str:
    document: dict[str, Any] = build_app(cast(Services, _Nothing())).openapi()
    return json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def main(arguments: list[str]) -> int:
    if arguments == ["--write"]:
        PATH.write_text(text())
        return 0
    if arguments == ["--check"]:
        if PATH.exists() and PATH.read_text() == text():
            return 0
        sys.stderr.write(f"{PATH} is stale: run python -m holdfast.api.openapi --write\n")
        return 1
    sys.stderr.write(f"{__doc__}\n")
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
