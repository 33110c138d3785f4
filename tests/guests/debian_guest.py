"""The Debian 12 image that tests and benchmarks share: built once by Holdfast, then kept in the cache.

The cached file is named by the sources that build it, so that a change there builds it anew.
"""

import hashlib
import os
import shutil
from pathlib import Path

from live_host import LiveHost

NAME = "debian-12"
_BUILDERS = ("build", "bootstrap", "recipes", "disk_layout", "guest_files", "apt_sources", "boot_files")


def with_debian(host: LiveHost) -> LiveHost:
    """Give a daemon the image, under its usual name."""
    kept = _cached()
    if kept.exists():
        host.add_image(kept, NAME, "disk")
        return host
    host.do("POST", "/v1/images/build", {"recipe": NAME})
    digest = host.call("GET", f"/v1/images/{NAME}")["digest"].removeprefix("sha256:")
    partial = kept.with_suffix(".partial")
    shutil.copy(host.state.images / digest / "content", partial)
    partial.rename(kept)
    return host


def _cached() -> Path:
    import holdfast.storage

    room = Path(holdfast.storage.__path__[0])
    sources = b"".join(
        (room / f"{name}.py").read_bytes() for name in _BUILDERS if (room / f"{name}.py").exists()
    )
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "holdfast-tests"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{NAME}-{hashlib.sha256(sources).hexdigest()[:12]}.qcow2"


def debian_vm(name: str, **more: object) -> dict[str, object]:
    """The request for a trusted VM of the usual kind.

    One CPU: under emulation a second one's timer now and then never fires, and the guest hangs.
    """
    return {
        "name": name,
        "cpus": 1,
        "memory": "1GiB",
        "disks": [{"image": NAME, "size": "8GiB"}],
        "start": True,
        **more,
    }
