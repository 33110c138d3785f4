"""An installer's disc starts a trusted VM: the distribution's own, over its signed boot chain."""

import time
from pathlib import Path

import pytest
from installer_disc import installer_disc
from invariants import check_invariants
from live_host import LiveHost, live_host

from holdfast.spec.vm import VmState


def wait_console(host: LiveHost, name: str, text: str, limit: float) -> None:
    deadline = time.monotonic() + limit
    while text not in host.console(name):
        assert host.vm(name).state is VmState.RUNNING
        assert time.monotonic() < deadline, host.console(name)
        time.sleep(0.5)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_debians_installer_starts(tmp_path: Path) -> None:
    with live_host(tmp_path) as host:
        host.add_image(installer_disc(tmp_path / "installer.iso"), "installer", "iso")
        body = {"name": "new", "memory": "1GiB", "iso": "installer", "disks": [{"size": "4GiB"}]}
        host.do("POST", "/v1/vms", {**body, "nics": [], "start": True})
        wait_console(host, "new", "Choose language", 500)
        said = (host.state.vm("new") / "console.log").read_text(errors="replace")
        assert "Secure boot enabled" in said
        host.call("POST", "/v1/vms/new/kill")
        check_invariants(host)
        host.do("DELETE", "/v1/vms/new")
