"""What lies in a VM's folder, read past the daemon: chains by qemu-img, specifications from the records."""

import json
import sqlite3
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from live_host import LiveHost

SIZE = 16 * 1024 * 1024


def rows(host: LiveHost, query: str, *values: object) -> list[tuple[Any, ...]]:
    with sqlite3.connect(f"file:{host.state.catalog}?mode=ro", uri=True) as catalog:
        return catalog.execute(query, values).fetchall()


def kept_specs(host: LiveHost, name: str) -> dict[str, list[dict[str, Any]]]:
    """Of each checkpoint the specifications that it keeps."""
    query = (
        "SELECT c.name, c.spec, c.running_spec FROM checkpoints c JOIN vms v ON v.id = c.vm WHERE v.name = ?"
    )
    return {
        found[0]: [spec for text in found[1:] if text and (spec := json.loads(text))]
        for found in rows(host, query, name)
    }


def own_specs(host: LiveHost, name: str) -> list[dict[str, Any]]:
    (found,) = rows(host, "SELECT spec, running_spec FROM vms WHERE name = ?", name)
    return [spec for text in found if text and (spec := json.loads(text))]


def place(host: LiveHost, name: str, pool: str | None) -> Path:
    """The folder with a VM's volumes in a pool, which is named as its directory beside the daemon's state."""
    return host.state.vm(name) if pool is None else host.state.root.parent / pool / name


def files(host: LiveHost, name: str, pool: str | None) -> set[str]:
    folder = place(host, name, pool)
    return {path.name for path in folder.iterdir() if ".qcow2" in path.name} if folder.is_dir() else set()


def content(host: LiveHost, name: str, disk: dict[str, Any]) -> bytes:
    """All that a disk shows. Nothing may be writing to it."""
    folder = place(host, name, disk["pool"])
    node: dict[str, Any] | None = None
    for layer in reversed([disk["volume"], *disk["below"]]):
        file = {"driver": "file", "filename": str(folder / f"{layer}.qcow2")}
        node = {"driver": "qcow2", "file": file, "backing": node}
    with tempfile.TemporaryDirectory() as scratch:
        target = Path(scratch) / "raw"
        argv = ["qemu-img", "convert", "-O", "raw", f"json:{json.dumps(node)}", str(target)]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return target.read_bytes()


def check_nothing_left(host: LiveHost, name: str, pools: tuple[str, ...] = ()) -> None:
    """Every layer that a specification names is there, and nothing else; so are checkpoints' folders."""
    kept = kept_specs(host, name)
    specs = [*own_specs(host, name), *(spec for each in kept.values() for spec in each)]
    for pool in (None, *pools):
        disks = [disk for spec in specs for disk in spec["disks"] if disk["pool"] == pool]
        named = {layer for disk in disks for layer in (disk["volume"], *disk["below"])}
        assert files(host, name, pool) == {f"{layer}.qcow2" for layer in named}, pool
    checkpoints = host.state.vm(name) / "checkpoints"
    there = {path.name for path in checkpoints.iterdir()} if checkpoints.exists() else set()
    assert there == kept.keys()
