"""Against the host's own OVMF template and the real virt-fw-vars."""

import asyncio
import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from holdfast.host.folders import StateFolder
from holdfast.host.processes import Completed, Identity, Processes
from holdfast.trust.enrollment import EnrollmentFailed, VariableStores
from holdfast.trust.firmware import FirmwareMissing, choose_firmware
from holdfast.trust.variables import VariablesDamaged, read_summary


class CountedProcesses(Processes):
    """Runs tools, and counts how many; `options` are added to what each is given."""

    runs = 0
    options: Sequence[str] = ()

    async def run(self, argv: Sequence[str], **options: Any) -> Completed:
        self.runs += 1
        return await super().run([*argv, *self.options], **options)


class Bench:
    def __init__(self, folder: Path) -> None:
        self.state = StateFolder(folder / "state", folder / "run")
        self.state.prepare()
        self.processes = CountedProcesses(self.state)
        self.stores = VariableStores(self.processes, self.state)

    def kept(self) -> list[Path]:
        return list(self.state.firmware.iterdir())


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.fixture(scope="module")
def template() -> Path:
    try:
        return choose_firmware(True).template
    except FirmwareMissing:
        pytest.skip("ovmf is not installed")


@pytest.fixture(scope="module")
def enrolled(template: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("enrolled")
    asyncio.run(Bench(folder).stores.make(template, folder / "vars.fd", True))
    return (folder / "vars.fd").read_bytes()


async def test_both_generations_of_certificates_are_enrolled(
    bench: Bench, template: Path, tmp_path: Path
) -> None:
    target = tmp_path / "vars.fd"
    identity = Identity(54321, 54321) if os.geteuid() == 0 else None
    made = await bench.stores.make(template, target, True, identity)
    assert made == read_summary(target)
    assert made.secure_boot
    found = {(cert.variable, cert.subject.split("CN=")[1].split(",")[0]) for cert in made.certificates}
    assert found >= {
        ("KEK", "Microsoft Corporation KEK CA 2011"),
        ("KEK", "Microsoft Corporation KEK 2K CA 2023"),
        ("db", "Microsoft Windows Production PCA 2011"),
        ("db", "Microsoft Corporation UEFI CA 2011"),
        ("db", "Microsoft UEFI CA 2023"),
        ("db", "Windows UEFI CA 2023"),
    }
    assert target.stat().st_mode & 0o777 == 0o600
    assert target.stat().st_size == template.stat().st_size
    if identity:
        assert target.stat().st_uid == identity.uid


async def test_a_template_is_enrolled_once_also_for_many_at_once(
    bench: Bench, template: Path, tmp_path: Path, enrolled: bytes
) -> None:
    targets = [tmp_path / f"{number}.fd" for number in range(4)]
    await asyncio.gather(*(bench.stores.make(template, target, True) for target in targets))
    again = VariableStores(bench.processes, bench.state)
    await again.make(template, tmp_path / "later.fd", True)
    assert bench.processes.runs == 1
    # The same bytes as in another state folder: nothing of it is random or of the moment.
    assert {path.read_bytes() for path in (*targets, tmp_path / "later.fd")} == {enrolled}
    assert [path.stat().st_mode & 0o777 for path in bench.kept()] == [0o600]
    assert list(bench.state.scratch.iterdir()) == []
    other = tmp_path / "other-template"
    other.write_bytes(template.read_bytes() + b"\xff" * 4096)
    await again.make(other, tmp_path / "other.fd", True)
    assert bench.processes.runs == 2


@pytest.mark.parametrize("damage", ["cut", "empty", "without keys"])
async def test_a_damaged_kept_store_is_made_again(
    bench: Bench, template: Path, tmp_path: Path, enrolled: bytes, damage: str
) -> None:
    await bench.stores.make(template, tmp_path / "a.fd", True)
    (kept,) = bench.kept()
    kept.write_bytes({"cut": enrolled[:3000], "empty": b"", "without keys": template.read_bytes()}[damage])
    made = await bench.stores.make(template, tmp_path / "b.fd", True)
    assert made.secure_boot and bench.processes.runs == 2
    assert (tmp_path / "b.fd").read_bytes() == kept.read_bytes() == enrolled


@pytest.mark.parametrize(
    ("options", "word"),
    [(("--no-such-option",), "ended with code"), (("--microsoft-db", "2011"), "ended with code"),
     (("--microsoft-db", "win11"), "not as meant"), (("--microsoft-kek", "2011"), "not as meant")],
)  # fmt: skip
async def test_what_was_not_enrolled_as_meant_is_not_kept(
    bench: Bench, template: Path, tmp_path: Path, options: tuple[str, ...], word: str
) -> None:
    bench.processes.options = options
    with pytest.raises(EnrollmentFailed, match=word):
        await bench.stores.make(template, tmp_path / "vars.fd", True)
    assert not (tmp_path / "vars.fd").exists()
    assert bench.kept() == list(bench.state.scratch.iterdir()) == []


async def test_without_secure_boot_nothing_is_enrolled(bench: Bench, template: Path, tmp_path: Path) -> None:
    made = await bench.stores.make(template, tmp_path / "vars.fd", False)
    assert not made.secure_boot
    assert made.certificates == ()
    assert bench.processes.runs == 0 and bench.kept() == []
    assert (tmp_path / "vars.fd").read_bytes() == template.read_bytes()


async def test_keys_of_a_template_without_secure_boot_are_refused(
    bench: Bench, tmp_path: Path, enrolled: bytes
) -> None:
    (tmp_path / "full").write_bytes(enrolled)
    with pytest.raises(EnrollmentFailed):
        await bench.stores.make(tmp_path / "full", tmp_path / "vars.fd", False)


async def test_a_template_that_is_none_is_refused(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "bad").write_bytes(bytes(100_000))
    with pytest.raises(VariablesDamaged):
        await bench.stores.make(tmp_path / "bad", tmp_path / "vars.fd", True)
    assert not (tmp_path / "vars.fd").exists() and bench.processes.runs == 0


@settings(max_examples=150, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=st.integers(0, 12_000), junk=st.binary(min_size=1, max_size=64))
def test_a_hostile_store_is_read_or_refused(enrolled: bytes, tmp_path: Path, where: int, junk: bytes) -> None:
    data = bytearray(enrolled)
    data[where : where + len(junk)] = junk
    (tmp_path / "hostile.fd").write_bytes(data)
    with contextlib.suppress(VariablesDamaged):
        read_summary(tmp_path / "hostile.fd")
