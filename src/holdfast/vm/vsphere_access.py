"""Sessions with servers of VMware, and the password that an import needs until it has ended.

    scratch/vsphere-<id>      user, thumbprint and password, wrapped by the host key; gone with the import

The SDK is loaded at the first need: it takes some 90 MB, which hosts that import nothing do not pay.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import SecretStr

from holdfast.host.files import write_atomic
from holdfast.host.folders import StateFolder
from holdfast.host.threads import to_its_end
from holdfast.spec.ids import new_id
from holdfast.spec.vsphere import VsphereAccess, parse_address
from holdfast.storage.vsphere.certificate import Pins, require_trusted
from holdfast.trust.host_key import HostKeys, Wrapped

if TYPE_CHECKING:
    from holdfast.storage.vsphere.session import Session


class VsphereDoor:
    """Owner of the kept thumbprints (`keys/vsphere.json`) and of the passwords of imports under way."""

    def __init__(self, state: StateFolder, keys: HostKeys) -> None:
        self._scratch = state.scratch
        self._keys = keys
        self._pins = Pins(state.keys / "vsphere.json")

    @contextlib.asynccontextmanager
    async def session(self, access: VsphereAccess) -> AsyncIterator["Session"]:
        """Open for the block.

        Raises BadVsphereAddress, VsphereUnreachable, VsphereCertificateUnknown, VsphereCertificateChanged,
        VsphereLoginRefused, VsphereRefused.
        """

        opened: list[Session] = []

        def open_() -> None:
            from holdfast.storage.vsphere.session import Session

            address = parse_address(access.address)
            trust = require_trusted(address.host, address.port, address.server, access.thumbprint, self._pins)
            opened.append(Session(address, access.user, access.password.get_secret_value(), trust))

        try:
            await to_its_end(open_)
            yield opened[0]
        finally:
            for session in opened:  # also one that was cancelled while it opened
                await asyncio.to_thread(session.close)

    async def keep(self, access: VsphereAccess) -> Path:
        """Where the access is kept, so that work can go on after a crash."""
        path = self._scratch / f"vsphere-{new_id()}"
        fields = {**access.model_dump(mode="json"), "password": access.password.get_secret_value()}
        async with self._keys.wrapping() as ring:
            wrapped = ring.wrap(json.dumps(fields).encode(), _context(path))
            await asyncio.to_thread(write_atomic, path, wrapped.model_dump_json().encode())
        return path

    async def kept(self, path: Path) -> VsphereAccess:
        """Raises HostKeySealed, WrappedByAnotherHost, WrappedDamaged."""
        wrapped = Wrapped.model_validate_json(await asyncio.to_thread(path.read_bytes))
        fields = json.loads((await self._keys.ring()).unwrap(wrapped, _context(path)))
        return VsphereAccess(**{**fields, "password": SecretStr(fields["password"])})


def _context(path: Path) -> str:
    return f"access {path.name}"
