"""An export as it is written here: a folder, or one OVA archive (DMTF DSP0243, 5.3), whole or not at all.

    FILE.ova     FILE.ovf, FILE.mf, FILE.cert, then the disks     as .FILE.ova.part until it is whole
    FOLDER/      the same files                                   likewise

Every byte that comes from the daemon is checked against the manifest as it comes.
"""

import contextlib
import errno
import hashlib
import os
import shutil
import sys
import tarfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from holdfast.cli.writing import FileExists, not_written
from holdfast.spec.errors import Failed, InvalidInput

_BLOCK = 10240
"""A tar archive is a multiple of this (POSIX pax, "blocking factor")."""
_USTAR_END = 8 * 1024**3
_TRIES, _PAUSE = 5, 2.0
"""How often a broken connection is made anew, and seconds before each."""


class SigningKeyUnusable(InvalidInput):
    id = "signing-key-unusable"


class ExportDamaged(Failed):
    id = "export-damaged"


@dataclass(frozen=True)
class Signer:
    """Who signs the manifest."""

    key: Any
    certificate: bytes
    """PEM."""

    @classmethod
    def of_files(cls, key: Path | None, certificate: Path | None) -> Self | None:
        """None where neither is named. Raises SigningKeyUnusable."""
        if key is None and certificate is None:
            return None
        from cryptography.hazmat.primitives.asymmetric import ec, rsa
        from cryptography.hazmat.primitives.serialization import load_pem_private_key
        from cryptography.x509 import load_pem_x509_certificate

        if key is None or certificate is None:
            raise _unusable("a signature needs a key and its certificate", "Give --sign-key and --sign-cert.")
        try:
            pem = certificate.read_bytes()
            loaded = load_pem_private_key(key.read_bytes(), None)
            known = load_pem_x509_certificate(pem).public_key()
        except (OSError, ValueError, TypeError) as error:
            raise _unusable(f"the signing key or certificate cannot be read: {error}", _PEM) from error
        if not isinstance(loaded, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey):
            raise _unusable("the signing key is neither RSA nor of an elliptic curve", _PEM)
        if known != loaded.public_key():
            raise _unusable("the certificate is not that of the signing key", _PEM)
        return cls(loaded, pem)

    def certify(self, name: str, manifest: bytes) -> bytes:
        """The `.cert` file of a manifest (DSP0243, 6.4)."""
        from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
        from cryptography.hazmat.primitives.hashes import SHA256

        if isinstance(self.key, rsa.RSAPrivateKey):
            signature = self.key.sign(manifest, padding.PKCS1v15(), SHA256())
        else:
            signature = self.key.sign(manifest, ec.ECDSA(SHA256()))
        return f"SHA256({name})= {signature.hex()}\n".encode() + self.certificate


_PEM = "Give an RSA or elliptic-curve key in PEM without a passphrase, and its own certificate."


def _unusable(message: str, cure: str) -> SigningKeyUnusable:
    return SigningKeyUnusable(message, cure=cure)


class Package:
    """What is being written. Used as a context: what is not whole at its end is gone."""

    def __init__(self, path: Path) -> None:
        """Before anything is made there. Raises FileExists, FileNotWritten."""
        self._path = path
        self._archive = path.suffix.lower() == ".ova"
        self._part = path.with_name(f".{path.name}.part")
        self._state: bytes | None = None
        if path.exists() or path.is_symlink():
            raise FileExists(f"{str(path)!r} exists", value=str(path), cure="Name another one.")
        folder = path.parent
        if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
            number = errno.EACCES if folder.is_dir() else errno.ENOENT
            raise not_written(path, OSError(number, os.strerror(number)))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self._discard()

    def keep_state(self, state: bytes) -> dict[str, Any]:
        """Take a container of firmware state along; what the daemon is to know of it."""
        self._state = state
        return {"size": len(state), "sha256": hashlib.sha256(state).hexdigest()}

    def fill(self, client: Any, made: dict[str, Any], signer: Signer | None) -> dict[str, int]:
        """Fetch all files of an export. Returns them by name, with their sizes.

        Raises:
            FileNotWritten: they cannot be written here.
            ExportDamaged: they did not come as the manifest says.
        """
        descriptor, listing, *disks = made["order"]
        base = f"/v1/exports/{made['export']}"
        small = {each: b"".join(client.chunks(f"{base}/{each}")) for each in (descriptor, listing)}
        sums = _sums(small[listing])
        _require(descriptor, hashlib.sha256(small[descriptor]).hexdigest(), sums)
        if signer:
            small[f"{Path(listing).stem}.cert"] = signer.certify(listing, small[listing])
        sizes = {name: len(data) for name, data in small.items()}
        sizes |= {name: made["files"][name] for name in disks}
        self._discard()
        try:
            with self._writer() as put:
                for name, data in small.items():
                    put(name, len(data), [data])
                for name in disks:
                    chunks = _fetched(client, f"{base}/{name}", sizes[name])
                    put(name, sizes[name], _checked(name, sizes[name], chunks, sums))
                if self._state is not None:
                    name = f"{Path(descriptor).stem}.hfstate"
                    sizes[name] = len(self._state)
                    put(name, sizes[name], _checked(name, sizes[name], [self._state], sums))
            self._settle()
        except OSError as error:
            raise not_written(self._path, error) from error
        return sizes

    @contextlib.contextmanager
    def _writer(self) -> Iterator[Any]:
        """A function that takes a name, a size and its chunks."""
        if self._archive:
            with _create(self._part) as file:
                yield lambda name, size, chunks: _add(file, name, size, chunks)
                file.write(bytes(1024))
                file.write(bytes(-file.tell() % _BLOCK))
                _sync(file)
            return
        self._part.mkdir(mode=0o700)

        def put(name: str, _: int, chunks: Iterable[bytes]) -> None:
            with _create(self._part / Path(name).name) as file:
                for chunk in chunks:
                    file.write(chunk)
                _sync(file)

        yield put

    def _settle(self) -> None:
        if self._archive:
            os.link(self._part, self._path)  # unlike a rename it replaces nothing
            self._part.unlink()
        else:
            self._part.rename(self._path)
        folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _discard(self) -> None:
        with contextlib.suppress(OSError):
            if self._part.is_dir() and not self._part.is_symlink():
                shutil.rmtree(self._part)
            else:
                self._part.unlink(missing_ok=True)


def _create(path: Path) -> IO[bytes]:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "wb")


def _sync(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _add(file: IO[bytes], name: str, size: int, chunks: Iterable[bytes]) -> None:
    head = tarfile.TarInfo(name)
    head.size, head.mtime, head.mode = size, int(time.time()), 0o644
    # ustar (POSIX.1-1988) is what every platform reads; a larger member needs GNU's form of sizes.
    large = size >= _USTAR_END
    file.write(head.tobuf(tarfile.GNU_FORMAT if large else tarfile.USTAR_FORMAT))
    for chunk in chunks:
        file.write(chunk)
    file.write(bytes(-size % 512))


def _fetched(client: Any, path: str, size: int) -> Iterator[bytes]:
    """A file; where the connection breaks it goes on from there."""
    from holdfast.api.client import DaemonNotReachable

    done = failures = 0
    while done < size:
        try:
            for chunk in client.chunks(path, done):
                done, failures = done + len(chunk), 0
                yield chunk
            return
        except DaemonNotReachable:
            failures += 1
            if failures > _TRIES:
                raise
            time.sleep(_PAUSE)  # nothing tells when a network is back


def _sums(manifest: bytes) -> dict[str, str]:
    lines = (line.partition(")= ") for line in manifest.decode().splitlines())
    return {head.removeprefix("SHA256("): value for head, _, value in lines}


def _checked(name: str, size: int, chunks: Iterable[bytes], sums: dict[str, str]) -> Iterator[bytes]:
    """The chunks, shown as they pass, until their digest is known to be right."""
    from holdfast.spec.units import format_size

    digest, done, live = hashlib.sha256(), 0, sys.stderr.isatty()
    for chunk in chunks:
        digest.update(chunk)
        done += len(chunk)
        if live:
            sys.stderr.write(f"\r\x1b[K{name}: {format_size(done)} of {format_size(size)}")
        yield chunk
    if live:
        sys.stderr.write("\r\x1b[K")
    _require(name, digest.hexdigest() if done == size else "of another size", sums)


def _require(name: str, found: str, sums: dict[str, str]) -> None:
    if sums.get(name) != found:
        raise ExportDamaged(
            f"{name!r} did not come as the manifest says: its checksum is {found}",
            value=name,
            cure="Export the VM again.",
        )
