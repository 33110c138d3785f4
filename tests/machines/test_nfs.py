"""Pools on NFS: in a lab, since this host's kernel may have no client; the server is a real one."""

import time
from pathlib import Path

import pytest
from lab_guest import lab_vm, with_lab
from live_host import LiveHost, live_host
from namespaces import own_namespace
from nfs_server import EXPORT, NfsServer, installed, switch

_SECONDS = 1800.0
_HERE = "10.0.2.2"  # the host, as a guest on the user-mode network sees it
_RUN = """
cd /lab
( PYTHONPATH=/lab/src:/lab/site HOLDFAST_TEST_NFS={nfs} HOLDFAST_TEST_NFS_SWITCH={switch} \
    python3 -m pytest -vv -p no:cacheprovider -p no:xdist -o addopts=--import-mode=importlib -k server \
    tests/contract/storage/test_nfs.py; echo "code $?" ) >/run/said 2>&1 </dev/null &
"""


@pytest.mark.slow
@pytest.mark.skipif(not installed(), reason="needs nfs-ganesha and nfs-ganesha-vfs")
def test_pools_on_a_server_that_is_killed_and_comes_back(tmp_path: Path) -> None:
    """The contract of NFS pools, run where the kernel has a client."""
    with own_namespace(), live_host(tmp_path) as host:
        server = NfsServer(host.state.root.parent / "nfs")
        try:
            server.start()
            with_lab(host)
            host.do("POST", "/v1/vms", lab_vm("lab"))
            host.wait_agent("lab", 600)
            with switch(server) as port:
                nfs = f"{_HERE}:{EXPORT}"
                host.run_in("lab", _RUN.format(nfs=nfs, switch=f"{_HERE}:{port}"))
                said = _said_at_the_end(host)
            assert "code 0" in said and "skipped" not in said, said
            host.do("DELETE", "/v1/vms/lab", force="true")
        finally:
            server.stop()


def _said_at_the_end(host: LiveHost) -> str:
    deadline = time.monotonic() + _SECONDS
    while "code" not in (said := host.run_in("lab", "cat /run/said")):
        assert time.monotonic() < deadline, said
        time.sleep(2)
    return said
