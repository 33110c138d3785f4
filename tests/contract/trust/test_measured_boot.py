"""Against a real TPM (swtpm) whose PCRs were extended with a log's digests, as firmware would.

tpm2-tools are the second opinion: `tpm2_checkquote` on quotes, `tpm2_eventlog` on replays.
"""

import hashlib
import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from boots import GRUB, INITRD, LOG, changed, draft, values, with_pcrs

from holdfast.spec.trust import BOOT_PCRS, Severity, Verdict
from holdfast.trust.verdict import Evidence, judge, learn_policy

pytestmark = pytest.mark.skipif(
    not all(shutil.which(tool) for tool in ("swtpm", "tpm2_quote", "tpm2_eventlog")),
    reason="swtpm and tpm2-tools are needed",
)
OTHER = hashlib.sha256(b"another loader that somebody signed").digest()
SELECTION = "sha256:" + ",".join(str(pcr) for pcr in BOOT_PCRS)
ATTRIBUTES = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|restricted|sign"


class RealTpm:
    """One swtpm; its keys stay over a restart, its PCRs do not."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._state = folder / "state"
        self._state.mkdir()
        self._socket = folder / "s"
        self._swtpm: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.stop()
        ready = self._folder / "pid"
        ready.unlink(missing_ok=True)
        argv = ["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={self._state}", "--pid", f"file={ready}"]
        argv += ["--server", f"type=unixio,path={self._socket}"]
        argv += ["--ctrl", f"type=unixio,path={self._socket}.ctrl", "--flags", "not-need-init,startup-clear"]
        self._swtpm = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 20
        while not ready.exists():
            assert self._swtpm.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)

    def stop(self) -> None:
        if self._swtpm is not None:
            self._swtpm.terminate()
            self._swtpm.wait(20)
            self._swtpm = None

    def tool(self, *argv: str) -> None:
        done = self._run(argv)
        assert done.returncode == 0, done.stderr

    def _run(self, argv: Sequence[str]) -> "subprocess.CompletedProcess[bytes]":
        environment = {**os.environ, "TPM2TOOLS_TCTI": f"swtpm:path={self._socket}"}
        return subprocess.run(
            argv, cwd=self._folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=60
        )

    def boot(self, log: bytes) -> None:
        """Start anew and measure what the log holds."""
        self.start()
        self.tool("tpm2_pcrextend", *(f"{each.pcr}:sha256={each.digest.hex()}" for each in draft(log)))

    def make_key(self, scheme: str) -> bytes:
        """An attestation key; its TPMT_PUBLIC."""
        kind = "ecc" if scheme == "ecdsa" else "rsa"
        self.tool("tpm2_createprimary", "-Q", "-C", "e", "-G", "ecc", "-c", "primary")
        self.tool("tpm2_flushcontext", "-t")
        made = ["tpm2_create", "-Q", "-C", "primary", "-G", f"{kind}:{scheme}-sha256:null"]
        self.tool(*made, "-a", ATTRIBUTES, "-u", "public", "-r", "private")
        self.tool("tpm2_flushcontext", "-t")
        self.load()
        return (self._folder / "public").read_bytes()[2:]

    def load(self) -> None:
        for argv in (
            ("tpm2_createprimary", "-Q", "-C", "e", "-G", "ecc", "-c", "primary"),
            ("tpm2_flushcontext", "-t"),
            ("tpm2_load", "-Q", "-C", "primary", "-u", "public", "-r", "private", "-c", "key"),
            ("tpm2_flushcontext", "-t"),
        ):
            self.tool(*argv)

    def quote(self, key: bytes, log: bytes, scheme: str) -> Evidence:
        nonce = secrets.token_bytes(32)
        asked = ["tpm2_quote", "-Q", "-c", "key", "-l", SELECTION, "-q", nonce.hex(), "-g", "sha256"]
        asked += ["--scheme", scheme] if scheme == "rsapss" else []
        self.tool(*asked, "-m", "attest", "-s", "signature")
        self.tool("tpm2_flushcontext", "-t")
        parts = [(self._folder / name).read_bytes() for name in ("attest", "signature")]
        return Evidence(key, nonce, parts[0], parts[1], log)

    def accepts(self, evidence: Evidence, scheme: str) -> bool:
        """The second opinion on a quote, made from the evidence itself."""
        for name, content in (("attest", evidence.attest), ("signature", evidence.signature)):
            (self._folder / name).write_bytes(content)
        if scheme == "rsapss":  # tpm2_checkquote takes every RSA signature for RSASSA: ask the TPM
            argv = ["tpm2_verifysignature", "-Q", "-c", "key", "-g", "sha256"]
        else:
            argv = ["tpm2_checkquote", "-u", "public", "-g", "sha256", "-q", evidence.nonce.hex()]
        return self._run([*argv, "-m", "attest", "-s", "signature"]).returncode == 0


@pytest.fixture
def tpm(tmp_path: Path) -> Iterator[RealTpm]:
    running = RealTpm(tmp_path)
    yield running
    running.stop()


def failures(verdict: Verdict) -> list[str]:
    return [each.id for each in verdict.findings if each.severity is Severity.FAILURE]


@pytest.mark.parametrize("scheme", ["ecdsa", "rsassa", "rsapss"])
def test_a_real_quote_of_the_real_log_passes(tpm: RealTpm, scheme: str) -> None:
    tpm.boot(LOG)
    key = tpm.make_key(scheme)
    evidence = tpm.quote(key, LOG, scheme)
    assert tpm.accepts(evidence, scheme)
    verdict = judge(evidence)
    assert verdict.verdict == "pass" and verdict.attested
    told = with_pcrs(evidence, {pcr: bytes.fromhex(value) for pcr, value in verdict.pcrs.items()})
    assert judge(told).verdict == "pass"
    again = tpm.quote(key, LOG, scheme)
    assert again.nonce != evidence.nonce and judge(again).verdict == "pass"
    assert failures(judge(replace(again, attest=evidence.attest))) == [
        "quote-signature-invalid",
        "nonce-mismatch",
    ]
    assert not tpm.accepts(replace(again, attest=evidence.attest), scheme)


def test_another_boot_with_the_same_key_is_told_from_the_first(tpm: RealTpm) -> None:
    tpm.boot(LOG)
    key = tpm.make_key("ecdsa")
    first = tpm.quote(key, LOG, "ecdsa")
    policy = learn_policy(first, "first")
    other = changed(GRUB, OTHER)
    tpm.boot(other)
    tpm.load()
    second = tpm.quote(key, other, "ecdsa")
    verdict = judge(second, policy)
    assert failures(verdict) == ["boot-chain-changed"] and verdict.attested
    (text,) = [each.text for each in verdict.findings if each.id == "boot-chain-changed"]
    assert text.startswith(f"GRUB (PCR 4, event {GRUB}) was sha256:") and text.endswith(OTHER.hex())
    assert verdict.reset_count == (judge(first).reset_count or 0) + 1
    assert failures(judge(replace(second, log=LOG), policy)) == ["log-does-not-replay"]


@pytest.mark.parametrize("log", [LOG, changed(GRUB, OTHER), changed(INITRD, OTHER)])
def test_replays_are_those_of_tpm2_eventlog(tmp_path: Path, log: bytes) -> None:
    (tmp_path / "log").write_bytes(log)
    done = subprocess.run(["tpm2_eventlog", "log"], cwd=tmp_path, capture_output=True, check=True)
    # Its strings may hold what YAML does not allow; the values come after them.
    told = yaml.safe_load(done.stdout[done.stdout.rindex(b"\npcrs:") :])["pcrs"]["sha256"]
    assert {pcr: value.to_bytes(32, "big") for pcr, value in told.items()} == values(log)
