"""Two daemons, each in a network namespace with a TPM of its own: one attests to the other."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from emulated_tpm import EmulatedTpm, have_tools, manufacture
from invariants import check_invariants
from live_host import LiveHost, OperationEndedBadly
from namespaces import Peers, ip

from holdfast.spec.errors import RemoteError
from holdfast.trust.tpm.transports import open_tpm

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(not have_tools(), reason="swtpm, swtpm-tools and tpm2-tools are needed"),
]
VERIFIER, HOST = "10.77.0.1", "10.77.0.2"


class Pair:
    """The verifier, in the test's own namespace, and the host behind a wire."""

    def __init__(self, verifier: LiveHost, host: LiveHost, tpm: EmulatedTpm, folder: Path) -> None:
        self.verifier = verifier
        self.host = host
        self.tpm = tpm
        made = host.call("POST", "/v1/tokens", {"name": "enrolling", "role": "admin"})
        self.fingerprint = made["fingerprint"]
        self.token = folder / "token"
        self.token.write_text(made["secret"])

    def cli(self, at: LiveHost, *argv: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "HOLDFAST_SOCKET": str(at.state.socket)}
        return subprocess.run(
            [sys.executable, "-m", "holdfast", *argv],
            env=environment, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip

    def enrol(self, **changed: str) -> subprocess.CompletedProcess[str]:
        options = {
            "--fingerprint": self.fingerprint, "--token-file": str(self.token), "--name": "beta",
            "--verifier": f"https://{VERIFIER}:8443", **changed,
        }  # fmt: skip
        argv = [part for pair in options.items() for part in pair]
        return self.cli(self.verifier, "trust", "enrol", f"https://{HOST}:8443", "--format", "json", *argv)

    def hosts(self) -> list[dict[str, object]]:
        done = self.cli(self.verifier, "trust", "hosts", "--format", "json")
        found: list[dict[str, object]] = json.loads(done.stdout)
        return found

    async def tamper(self, pcr: int) -> None:
        async with open_tpm(self.tpm.address) as tpm:
            await tpm.pcr_extend(pcr, b"\1" * 32)


@pytest.fixture
def pair(peer: Peers, tmp_path: Path) -> Iterator[Pair]:
    far = peer.add("wire")
    ip("addr", "add", f"{VERIFIER}/24", "dev", "wire")
    ip("-n", far, "addr", "add", f"{HOST}/24", "dev", "eth0")
    with tempfile.TemporaryDirectory(prefix="hft-", dir="/tmp") as root:
        tpms = [EmulatedTpm(Path(root) / name) for name in ("a", "b")]
        daemons = []
        try:
            for tpm in tpms:
                manufacture(tpm.folder)
                tpm.start()
            trusts = ("--tpm-authorities", str(tpms[1].authority))
            places = ((VERIFIER, trusts, ()), (HOST, (), ("ip", "netns", "exec", far)))
            for tpm, (address, more, wrapper) in zip(tpms, places, strict=True):
                options = ("--host-tpm", tpm.address, "--listen", f"{address}:8443", *more)
                daemons.append(LiveHost(tmp_path / tpm.folder.name, options, wrapper))
                daemons[-1].start()
            yield Pair(*daemons, tpms[1], tmp_path)
        finally:
            for daemon in daemons:
                daemon.close()
            for tpm in tpms:
                tpm.stop()


async def test_a_host_is_enrolled_and_found_trusted_tampered_and_unknown(pair: Pair) -> None:
    done = pair.enrol()
    assert done.returncode == 0, done.stderr
    enrolled = json.loads(done.stdout)
    assert enrolled["name"] == "beta" and enrolled["certified"]
    assert enrolled["last"]["verdict"] == "trusted"
    standing = json.loads(pair.cli(pair.host, "host", "attest", "--format", "json").stdout)
    assert standing["verdict"]["verdict"] == "trusted"
    # Both outlive their daemons' end; what is secret is in files of root alone, and in no log.
    for daemon in (pair.verifier, pair.host):
        daemon.kill()
        daemon.start()
    assert pair.cli(pair.host, "host", "attest").returncode == 0
    link = pair.host.state.keys / "verifier.json"
    assert link.stat().st_mode & 0o777 == 0o600
    secret = json.loads(link.read_text())["token"]
    assert secret not in pair.host.log.read_text() + pair.verifier.log.read_text()

    await pair.tamper(7)
    refused = pair.cli(pair.host, "host", "attest", "--format", "json")
    assert refused.returncode == 5
    error = json.loads(refused.stderr)
    assert error["id"] == "host-not-trusted" and "PCR 7 (Secure Boot" in error["message"]
    (known,) = pair.hosts()
    assert known["last"]["verdict"] == "not-trusted"  # type: ignore[index]

    pair.tpm.reboot()
    assert pair.cli(pair.host, "host", "attest").returncode == 0
    told = pair.verifier.call("GET", "/v1/events/recent", limit=1000, subject="beta")
    changed = [each["data"]["verdict"] for each in told if each["kind"] == "trust.host-verdict-changed"]
    assert changed == ["trusted", "not-trusted", "trusted"], told
    assert pair.cli(pair.verifier, "trust", "forget", "beta").returncode == 0
    unknown = pair.cli(pair.host, "host", "attest", "--format", "json")
    assert json.loads(unknown.stderr)["id"] == "host-not-enrolled"
    assert pair.hosts() == []


def test_a_recorded_proof_and_a_wrong_place_are_refused(pair: Pair) -> None:
    assert pair.enrol().returncode == 0
    (known,) = pair.hosts()
    challenge = pair.verifier.call("POST", f"/v1/trust/hosts/{known['id']}/challenge")
    proof = pair.host.call("POST", "/v1/host/attestation/proof", challenge)
    assert pair.verifier.call("POST", "/v1/trust/attest", proof)["token"]
    with pytest.raises(RemoteError) as replayed:
        pair.verifier.call("POST", "/v1/trust/attest", proof)
    assert replayed.value.wire_id == "host-nonce-replayed"
    wrong = pair.enrol(**{"--fingerprint": "sha256:" + "00" * 32})
    assert json.loads(wrong.stderr)["id"] == "wrong-fingerprint"
    # The host knows no verifier but the one that enrolled it, and that one is away: it says so.
    pair.verifier.kill()
    away = pair.cli(pair.host, "host", "attest", "--format", "json")
    assert json.loads(away.stderr)["id"] == "daemon-not-reachable"


async def test_a_vm_that_requires_an_attested_host_starts_on_a_trusted_one_only(pair: Pair) -> None:
    host = pair.host
    body = {"name": "vault", "memory": 256 * 1024**2, "disks": [{"size": 16 * 1024**2}], "nics": []}
    host.do("POST", "/v1/vms", body)
    with pytest.raises(RemoteError) as alone:
        host.call("PATCH", "/v1/vms/vault", {"require_attested_host": True})
    assert alone.value.wire_id == "no-verifier"
    assert pair.enrol().returncode == 0
    done = pair.cli(host, "vm", "set", "vault", "--require-attested-host", "--format", "json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["spec"]["require_attested_host"] is True
    key_file = host.state.vm("vault") / "firmware" / "tpm.key.json"
    assert json.loads(key_file.read_text())["guarded"] is True
    (guard,) = (pair.verifier.state.keys / "guards").iterdir()
    assert guard.read_text() not in _everything(host)
    # The other part is under the host key, which the host's TPM has sealed.
    assert json.loads((host.state.keys / "host.key").read_text())["kind"] == "tpm"

    host.do("POST", "/v1/vms/vault/start")
    host.call("POST", "/v1/vms/vault/kill")
    await pair.tamper(4)
    with pytest.raises(OperationEndedBadly) as refused:
        host.do("POST", "/v1/vms/vault/start")
    assert "host-not-trusted" in str(refused.value)
    assert host.vm("vault").state == "off"
    with pytest.raises(RemoteError):  # neither can what it requires be lifted there
        host.call("PATCH", "/v1/vms/vault", {"require_attested_host": False})

    pair.tpm.reboot()
    for daemon in (pair.verifier, host):
        daemon.kill()
        daemon.start()
    host.do("POST", "/v1/vms/vault/start")
    host.call("POST", "/v1/vms/vault/kill")
    assert guard.read_text() not in _everything(host)
    pair.cli(pair.verifier, "trust", "forget", "beta")
    with pytest.raises(OperationEndedBadly, match="host-not-enrolled"):
        host.do("POST", "/v1/vms/vault/start")
    assert pair.enrol().returncode == 0
    host.call("PATCH", "/v1/vms/vault", {"require_attested_host": False})
    pair.verifier.kill()
    host.do("POST", "/v1/vms/vault/start")
    check_invariants(host)


def _everything(host: LiveHost) -> str:
    """What the host's daemon keeps and says, as text."""
    kept = [path for path in host.state.root.rglob("*") if path.is_file() and path.stat().st_size < 2**20]
    return "".join(path.read_text(errors="replace") for path in [*kept, host.log])
