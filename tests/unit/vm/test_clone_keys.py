"""A clone waits for the same changes of its keys as the VM that it was made of."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from holdfast.operations.procedure import Job
from holdfast.spec.vm import UefiBoot
from holdfast.trust.key_changes import KeyChange
from holdfast.trust.key_stores import KeyStores
from holdfast.vm.create import CopyParts


class Host:
    """Two VMs without disks and TPM, and what `CopyParts` asks of their host."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.rooms: Any = SimpleNamespace(state=self, identities=self, firmware=self)
        for name in ("old", "new"):
            (self.vm(name) / "firmware").mkdir(parents=True)

    def vm(self, name: str) -> Path:
        return self.root / name

    def of(self, number: int) -> None:
        return None

    async def find(self, name: str) -> Any:
        spec = SimpleNamespace(disks=(), boot=UefiBoot(tpm=False))
        record = SimpleNamespace(id=name, name=name, number=1, spec=spec)
        return SimpleNamespace(record=record, rest=SimpleNamespace(give_way=self.take))

    async def take(self, *_: Any, **__: Any) -> None:
        pass

    async def put(self, *_: Any) -> None:
        pass


async def copy(host: Host) -> None:
    async def keep() -> None:
        pass

    params = {"vm": "new", "source": "old"}
    await CopyParts(host.rooms, host.find).do(Job("1", "", "", "", params, {}, lambda *_: None, keep))


async def test_what_waits_waits_for_the_clone_too(tmp_path: Path) -> None:
    host, change = Host(tmp_path), KeyChange(successors=True)
    await copy(host)
    assert not KeyStores.is_pending(host.vm("new"))
    KeyStores.record(host.vm("old"), change, "1")
    (host.vm("old") / "firmware/variables.previous.fd").write_bytes(b"kept")
    await copy(host)
    assert KeyStores.pending(host.vm("new")) == KeyStores.pending(host.vm("old")) == (change,)
    assert not KeyStores.has_previous(host.vm("new"))
