"""Verification of a quote with its event log beside Keylime's, verdicts a second, certificate inventory."""

import asyncio
import base64
import json
import os
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests/unit/trust"))

from boots import real, values

from bench._figures import Figure, parser, report, say, spread
from holdfast.host.firmware import find_firmware
from holdfast.host.folders import StateFolder
from holdfast.host.processes import Processes
from holdfast.spec.trust import TrustPolicy
from holdfast.trust.enrollment import VariableStores
from holdfast.trust.firmware import choose_firmware
from holdfast.trust.signature_lists import read_certificate
from holdfast.trust.variables import read_inventory
from holdfast.trust.verdict import Evidence, judge, learn_policy

_KEYLIME = "keylime==7.14.3"
# What the modules of Keylime that verify import; its server needs far more.
_KEYLIME_NEEDS = ("cryptography", "packaging", "sqlalchemy", "typing-extensions", "pyyaml")
_EFIVAR = "libefivar1"
_WARM = 50
_STORES = 1000
_INVENTORIES = 3


class NoPeer(Exception):
    """Keylime cannot be had or run here; says why."""


def main(argv: list[str]) -> None:
    options = parser(__doc__ or "")
    options.add_argument("--runs", type=int, default=2000, help="verifications")
    options.add_argument("--peer-runs", type=int, default=30, help="verifications by Keylime")
    chosen = options.parse_args(argv)
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    evidence = real()
    policy = learn_policy(evidence, "bench")
    ours, rate = _times(evidence, policy, chosen.runs)
    verify = statistics.median(ours)
    figures = [
        Figure("verify_ms", verify, "ms", 5, "lower", len(ours), f"one core; {spread(ours)}"),
        Figure("verdicts_per_second", rate, "", None, "higher", len(ours), "of one core's time"),
    ]
    report("trust", [*figures, *_peer(evidence, verify, chosen.peer_runs), _inventory()], chosen.json)


def _times(evidence: Evidence, policy: TrustPolicy, runs: int) -> tuple[list[float], float]:
    """Milliseconds of each verdict, with a policy that has a baseline; and verdicts a second of CPU."""
    say(f"{runs} verdicts")
    for _ in range(_WARM):
        judge(evidence, policy)
    times = []
    used = time.process_time()
    for _ in range(runs):
        began = time.perf_counter()
        verdict = judge(evidence, policy)
        times.append((time.perf_counter() - began) * 1000)
        assert verdict.verdict == "pass"
    return times, runs / (time.process_time() - used)


def _peer(evidence: Evidence, ours: float, runs: int) -> list[Figure]:
    try:
        theirs = _keylime(evidence, runs)
    except NoPeer as error:
        note = str(error)
        return [
            Figure("keylime_ms", None, "ms", None, "lower", 0, note),
            Figure("keylime_ratio", None, "", 0.5, "lower", 0, note),
        ]
    median = statistics.median(theirs)
    note = f"{_KEYLIME} on the same core, without a policy; its parser is tpm2_eventlog"
    return [
        Figure("keylime_ms", median, "ms", None, "lower", len(theirs), spread(theirs)),
        Figure("keylime_ratio", ours / median, "", 0.5, "lower", len(theirs), note),
    ]


def _keylime(evidence: Evidence, runs: int) -> list[float]:
    """Milliseconds of each verification of the same quote and log by Keylime."""
    if shutil.which("tpm2_eventlog") is None:
        raise NoPeer("Keylime parses logs by tpm2_eventlog: the package tpm2-tools is missing")
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "holdfast-bench"
    python = _environment(home / _KEYLIME.replace("==", "-"))
    libraries = _efivar(home / _EFIVAR)
    say(f"{runs} verifications by Keylime")
    pcrs = values(evidence.log)
    parts = {
        "key": len(evidence.attestation_key).to_bytes(2, "big") + evidence.attestation_key,
        "attest": evidence.attest,
        "signature": evidence.signature,
        "nonce": evidence.nonce,
        "log": evidence.log,
        "pcrs": _tools_pcrs(pcrs),
    }
    asked = {"runs": runs, **{name: base64.b64encode(part).decode() for name, part in parts.items()}}
    done = subprocess.run(
        [str(python), str(Path(__file__).with_name("_keylime_peer.py"))],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        env={**os.environ, "LD_LIBRARY_PATH": str(libraries)},
        timeout=600,
    )
    if done.returncode != 0:
        raise NoPeer(f"Keylime failed: {done.stderr.strip()[-300:]}")
    said = json.loads(done.stdout.splitlines()[-1])
    if "refused" in said:
        raise NoPeer(f"Keylime refused: {said['refused']}")
    return [float(each) for each in said["ms"]]


def _environment(folder: Path) -> Path:
    """A Python with Keylime, made once; the last step of making it is a mark."""
    python, mark = folder / "bin/python", folder / "ready"
    if not mark.exists():
        say("installing Keylime")
        venv.create(folder, clear=True, with_pip=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        for wanted in ((*_KEYLIME_NEEDS,), ("--no-deps", _KEYLIME)):
            _must("Keylime cannot be installed", [*pip, *wanted], folder)
        mark.touch()
    return python


def _efivar(folder: Path) -> Path:
    """The library by which Keylime reads device paths, unpacked and not installed."""
    found = next(folder.rglob("libefivar.so.1"), None)
    if found is None:
        folder.mkdir(parents=True, exist_ok=True)
        _must(f"{_EFIVAR} cannot be had", ["apt-get", "download", "-qq", _EFIVAR], folder)
        (package,) = folder.glob(f"{_EFIVAR}_*.deb")
        _must(f"{_EFIVAR} cannot be unpacked", ["dpkg", "-x", str(package), str(folder)], folder)
        found = next(folder.rglob("libefivar.so.1"), None)
    if found is None:
        raise NoPeer(f"{_EFIVAR} holds no libefivar.so.1")
    return found.parent


def _must(what: str, argv: list[str], folder: Path) -> None:
    done = subprocess.run(argv, cwd=folder, capture_output=True, text=True, timeout=600)
    if done.returncode != 0:
        raise NoPeer(f"{what}: {(done.stderr or done.stdout).strip()[-200:]}")


def _tools_pcrs(pcrs: dict[int, bytes]) -> bytes:
    """PCR values as tpm2_quote writes them: C structures of a little-endian machine, as they lie.

    TPML_PCR_SELECTION of 16 banks, then TPML_DIGESTs of 8 each (tpm2-tools, `tpm2_quote -F serialized`).
    """
    bits = sum(1 << pcr for pcr in pcrs).to_bytes(3, "little")
    blob = struct.pack("<IHB3s2x", 1, 0x000B, 3, bits) + bytes(8) * 15
    ordered = [pcrs[pcr] for pcr in sorted(pcrs)]
    lists = [ordered[start : start + 8] for start in range(0, len(ordered), 8)]
    blob += struct.pack("<I", len(lists))
    for digests in lists:
        blob += struct.pack("<I", len(digests))
        blob += b"".join(struct.pack("<H64s", len(each), each) for each in digests)
        blob += bytes(66) * (8 - len(digests))
    return blob


def _inventory() -> Figure:
    """Reading which keys and certificates 1,000 variable stores hold, each a file, with cold caches."""
    say(f"inventory of {_STORES} variable stores")
    with tempfile.TemporaryDirectory(prefix="hf-bench-") as folder:
        kinds = asyncio.run(_stores(Path(folder)))
        paths = []
        for number in range(_STORES):
            paths.append(Path(folder) / f"{number}.fd")
            paths[-1].write_bytes(kinds[number % len(kinds)])
        times = []
        for _ in range(_INVENTORIES):
            read_certificate.cache_clear()
            began = time.perf_counter()
            found = [read_inventory(path) for path in paths]
            times.append(time.perf_counter() - began)
            assert all(each.databases for each in found)
    note = f"{len(kinds)} kinds of store, of Microsoft's certificates of 2011 and of both; {spread(times)}"
    return Figure("inventory_1000_s", statistics.median(times), "s", 5, "lower", len(times), note)


async def _stores(folder: Path) -> list[bytes]:
    """The distribution's own with keys of 2011, and what a new VM gets."""
    state = StateFolder(folder / "state", folder / "run")
    state.prepare()
    kinds = [each.template.read_bytes() for each in find_firmware() if each.enrolled_keys]
    made = folder / "new.fd"
    await VariableStores(Processes(state), state).make(choose_firmware(True).template, made, True)
    return [*kinds, made.read_bytes()]


if __name__ == "__main__":
    main(sys.argv[1:])
