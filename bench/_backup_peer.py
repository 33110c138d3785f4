"""QEMU's own way to send what changed: `blockdev-backup` of a bitmap to NBD over TLS, with certificates."""

import datetime
import subprocess
import time
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from bench._monitor import Monitor

_BITMAP = "bench"


class BackupPeer:
    """A qemu-storage-daemon that receives, and the jobs of a QEMU that send to it."""

    def __init__(self, folder: Path, size: int, port: int, monitor: Monitor) -> None:
        folder.mkdir()
        self._monitor = monitor
        _certificates(folder)
        image = folder / "target.raw"
        subprocess.run(["qemu-img", "create", "-q", "-f", "raw", str(image), str(size)], check=True)
        tls = f"tls-creds-x509,id=tls,dir={folder},endpoint="
        argv = ["qemu-storage-daemon", "--object", f"{tls}server,verify-peer=on"]
        argv += ["--blockdev", f"driver=file,node-name=target,filename={image},discard=unmap"]
        argv += ["--nbd-server", f"addr.type=inet,addr.host=127.0.0.1,addr.port={port},tls-creds=tls"]
        argv += ["--export", "type=nbd,id=target,name=target,node-name=target,writable=on"]
        argv += ["--pidfile", str(folder / "pid")]
        self._process = subprocess.Popen(argv)
        while not (folder / "pid").exists():
            time.sleep(0.01)
        object_ = {"id": "tls", "dir": str(folder), "endpoint": "client", "verify_peer": True}
        monitor.do("object-add", qom_type="tls-creds-x509", **object_)
        monitor.do(
            "blockdev-add",
            driver="nbd",
            node_name="target",
            server={"type": "inet", "host": "127.0.0.1", "port": str(port)},
            export="target",
            tls_creds="tls",
            tls_hostname="localhost",
        )
        monitor.do("block-dirty-bitmap-add", node="th-disk0", name=_BITMAP, granularity=4096)

    def send(self) -> float:
        """Seconds until all that changed since the last time is on stable storage over there."""
        begun = time.perf_counter()
        self._monitor.events.clear()
        self._monitor.do(
            "blockdev-backup",
            job_id="backup",
            device="th-disk0",
            target="target",
            sync="incremental",
            bitmap=_BITMAP,
        )
        self._monitor.until("BLOCK_JOB_COMPLETED", device="backup")
        done = next(each for each in self._monitor.events if each["event"] == "BLOCK_JOB_COMPLETED")
        while self._monitor.do("query-block-jobs"):
            time.sleep(0.005)
        if "error" in done["data"]:
            raise RuntimeError(f"blockdev-backup: {done['data']['error']}")
        self._monitor.do("human-monitor-command", command_line='qemu-io target "flush"')
        return time.perf_counter() - begun

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def _certificates(folder: Path) -> None:
    """An authority, a server and a client, as tls-creds-x509 wants them (QEMU, docs/system/tls.rst)."""
    key = ec.generate_private_key(ec.SECP256R1())
    authority = _signed("bench", key, "bench", key, ca=True)
    (folder / "ca-cert.pem").write_bytes(authority.public_bytes(serialization.Encoding.PEM))
    for role in ("server", "client"):
        own = ec.generate_private_key(ec.SECP256R1())
        made = _signed("localhost", own, "bench", key, ca=False)
        (folder / f"{role}-cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
        private = own.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        (folder / f"{role}-key.pem").touch(0o600)
        (folder / f"{role}-key.pem").write_bytes(private)


def _signed(name: str, key, issuer: str, by, *, ca: bool) -> x509.Certificate:
    today = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(today - datetime.timedelta(days=1))
        .not_valid_after(today + datetime.timedelta(days=2))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    )
    if not ca:
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
    return builder.sign(by, hashes.SHA256())
