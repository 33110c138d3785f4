"""A daemon with fake VMs behind the real doors, for the tests of API and command line."""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

_LONGEST = "test_trusted.py"


def pytest_configure(config: pytest.Config) -> None:
    """Sockets need short paths, and the names that xdist gives to the folders of its workers are long."""
    worker = getattr(config, "workerinput", None)
    if worker and config.option.basetemp:
        name = worker["workerid"].removeprefix("g")
        config.option.basetemp = str(Path(config.option.basetemp).with_name(name))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest file begins first among those with guests, so that in the end nobody waits for it alone."""
    items.sort(key=lambda item: "/machines/" in str(item.path) and 1 + (item.path.name != _LONGEST))


def _fakes() -> Any:
    path = Path(__file__).resolve().parent / "unit/api/fake_daemon.py"
    spec = importlib.util.spec_from_file_location("fake_daemon", path)
    assert spec and spec.loader
    module = sys.modules.get("fake_daemon")
    if module is not None:
        return module
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent))  # for the modules that it is made of
    sys.modules["fake_daemon"] = module  # pydantic looks its models' module up
    sys.path.append(str(path.parent))  # for the fakes beside it
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Any]:
    with _fakes().FakeDaemon(tmp_path) as running:
        yield running


@pytest.fixture
def tls_daemon(tmp_path: Path) -> Iterator[Any]:
    with _fakes().FakeDaemon(tmp_path, tls=True) as running:
        yield running
