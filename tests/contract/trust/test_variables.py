"""Against the host's own OVMF template."""

import contextlib
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from virt.firmware.varstore.edk2 import Edk2VarStore

from holdfast.host.processes import Identity
from holdfast.trust.firmware import FirmwareMissing, choose_firmware
from holdfast.trust.variables import VariablesDamaged, make_variables, read_summary


@pytest.fixture(scope="module")
def template() -> Path:
    try:
        return choose_firmware(True).template
    except FirmwareMissing:
        pytest.skip("ovmf is not installed")


def test_both_generations_of_certificates_are_enrolled(template: Path, tmp_path: Path) -> None:
    target = tmp_path / "vars.fd"
    identity = Identity(54321, 54321) if os.geteuid() == 0 else None
    made = make_variables(template, target, True, identity)
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


def test_without_secure_boot_nothing_is_enrolled(template: Path, tmp_path: Path) -> None:
    made = make_variables(template, tmp_path / "vars.fd", False)
    assert not made.secure_boot
    assert made.certificates == ()


def test_a_template_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad").write_bytes(bytes(100_000))
    with pytest.raises(VariablesDamaged):
        make_variables(tmp_path / "bad", tmp_path / "vars.fd", True)
    assert not (tmp_path / "vars.fd").exists()


@settings(max_examples=150, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=st.integers(0, 12_000), junk=st.binary(min_size=1, max_size=64))
def test_a_hostile_store_is_read_or_refused(template: Path, tmp_path: Path, where: int, junk: bytes) -> None:
    target = tmp_path / "vars.fd"
    if not target.exists():
        make_variables(template, target, True)
    data = bytearray(target.read_bytes())
    data[where : where + len(junk)] = junk
    (tmp_path / "hostile.fd").write_bytes(data)
    with contextlib.suppress(VariablesDamaged):
        read_summary(tmp_path / "hostile.fd")


def test_the_store_is_what_the_library_itself_would_write(template: Path, tmp_path: Path) -> None:
    make_variables(template, tmp_path / "vars.fd", True)
    store = Edk2VarStore(str(tmp_path / "vars.fd"))
    assert store.bytes_varstore(store.get_varlist()) == (tmp_path / "vars.fd").read_bytes()
