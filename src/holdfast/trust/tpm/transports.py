"""Ways to a TPM of this host: its device, or an emulated one for tests and labs.

    device:/dev/tpmrm0   the kernel's resource manager: handles of our own, gone when it is closed
    swtpm:/path          a UNIX socket of `swtpm socket --tpm2 --server type=unixio,path=/path`

swtpm serves one caller at a time: others wait until it is closed.
"""

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Protocol

from holdfast.trust.tpm.exchange import HEADER, MAX_RESPONSE
from holdfast.trust.tpm.refusals import BadTpmAddress, NoTpm, TpmNotReachable, TpmTooSlow
from holdfast.trust.tpm.tpm import Tpm
from holdfast.trust.tpm.wire import TpmNonsense

HOST_TPM = "device:/dev/tpmrm0"
NO_TPM = "none"
"""An address that says: leave it alone."""
_PATIENCE = 120.0  # seconds; making an RSA key takes a discrete TPM half a minute and more


class _Channel(Protocol):
    """Bytes there and back."""

    async def write(self, data: bytes) -> None: ...

    async def read(self, most: int) -> bytes:
        """At least one byte; none where the other end is closed."""


class _Framed:
    """Whole commands and responses over a channel; broken for good once one of them failed."""

    def __init__(self, channel: _Channel, address: str) -> None:
        self._channel = channel
        self._address = address
        self._broken = False

    async def transmit(self, command: bytes) -> bytes:
        if self._broken:
            raise TpmNotReachable(
                f"the TPM at {self._address} was left in the middle of a command",
                value=self._address,
                cure="Try again.",
            )
        # An answer that nobody waited for would be taken for that to the next command.
        self._broken = True
        try:
            async with asyncio.timeout(_PATIENCE):
                await self._channel.write(command)
                response = await self._response()
        except TimeoutError as error:
            raise TpmTooSlow(
                f"the TPM at {self._address} did not answer within {_PATIENCE:g} s",
                value=self._address,
                cure="Restart the host if it stays so.",
            ) from error
        except OSError as error:
            raise _not_reachable(self._address, error) from error
        self._broken = False
        return response

    async def _response(self) -> bytes:
        data = b""
        size = HEADER
        while len(data) < size:
            part = await self._channel.read(MAX_RESPONSE - len(data))
            if not part:
                raise TpmNotReachable(
                    f"the TPM at {self._address} closed the connection",
                    value=self._address,
                    cure="Check that it still runs.",
                )
            data += part
            if len(data) >= HEADER:
                size = int.from_bytes(data[2:6], "big")
            if not HEADER <= size <= MAX_RESPONSE or len(data) > size:
                raise TpmNonsense(f"the TPM at {self._address} answers with a wrong size", value=size)
        return data


class _Device:
    """The character device: opened without blocking, so that a hung TPM hangs no thread of ours."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    async def write(self, data: bytes) -> None:
        os.write(self._fd, data)

    async def read(self, most: int) -> bytes:
        loop = asyncio.get_running_loop()
        readable = asyncio.Event()
        loop.add_reader(self._fd, readable.set)
        try:
            await readable.wait()
        finally:
            loop.remove_reader(self._fd)
        return os.read(self._fd, most)


class _Socket:
    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected

    async def write(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self._socket, data)

    async def read(self, most: int) -> bytes:
        return await asyncio.get_running_loop().sock_recv(self._socket, most)


@contextlib.asynccontextmanager
async def open_tpm(address: str = HOST_TPM) -> AsyncIterator[Tpm]:
    """The TPM at `address` (see above), started if it is an emulated one; closed where the block ends.

    Raises:
        BadTpmAddress: neither `device:` nor `swtpm:` with an absolute path.
        NoTpm: there is no such device or socket, or none is to be used.
        TpmNotReachable: it cannot be opened.
    """
    if address == NO_TPM:
        raise NoTpm(
            "the daemon was told to use no TPM of this host",
            value=address,
            cure="Change the setting `host_tpm`.",
        )
    kind, _, text = address.partition(":")
    path = Path(text)
    if kind not in ("device", "swtpm") or not path.is_absolute():
        raise BadTpmAddress(
            f"{address[:200]!r} is no address of a TPM",
            value=address[:200],
            cure="Say `device:/dev/tpmrm0`, or `swtpm:` and the path of its socket.",
        )
    opened = _device(path, address) if kind == "device" else _swtpm(path, address)
    async with opened as channel:
        tpm = Tpm(_Framed(channel, address))
        if kind == "swtpm":
            await tpm.startup()
            await tpm.flush_all()
        yield tpm


@contextlib.asynccontextmanager
async def _device(path: Path, address: str) -> AsyncIterator[_Channel]:
    try:
        fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except OSError as error:
        raise _not_opened(address, error) from error
    try:
        yield _Device(fd)
    finally:
        os.close(fd)


@contextlib.asynccontextmanager
async def _swtpm(path: Path, address: str) -> AsyncIterator[_Channel]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as connected:
        try:
            async with asyncio.timeout(_PATIENCE):
                await asyncio.get_running_loop().sock_connect(connected, str(path))
        except TimeoutError as error:
            raise _not_reachable(address, error) from error
        except OSError as error:
            raise _not_opened(address, error) from error
        yield _Socket(connected)


def _not_opened(address: str, error: OSError) -> NoTpm | TpmNotReachable:
    if isinstance(error, FileNotFoundError):
        return NoTpm(
            f"there is no TPM at {address}",
            value=address,
            cure="Enable the TPM in the firmware setup, or name another with `--host-tpm`.",
        )
    return _not_reachable(address, error)


def _not_reachable(address: str, error: Exception) -> TpmNotReachable:
    return TpmNotReachable(
        f"the TPM at {address} cannot be used: {error or 'no answer'}",
        value=address,
        cure="Check that it is there, and that no other program holds it.",
    )
