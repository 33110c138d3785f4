"""Of a build: refusals, the command line, progress, and the files a guest gets."""

from pathlib import Path

import pytest

from holdfast.host.folders import StateFolder
from holdfast.host.processes import Processes, ProgramMissing
from holdfast.spec.units import MIB
from holdfast.storage import build
from holdfast.storage.apt_sources import Archives, Entry
from holdfast.storage.bootstrap import BootstrapProgress, bootstrap_command
from holdfast.storage.build import BuildFailed, ImageBuilder, UserNamespacesMissing
from holdfast.storage.disk_layout import ESP, ROOT, SECTOR, SIZE, table_script
from holdfast.storage.guest_files import boot_menu, esp_menu, root_files
from holdfast.storage.recipes import RECIPES, UnknownRecipe

ARCHIVES = Archives((Entry("http://m.example/debian", "bookworm", ("main",), "/k.gpg"),))
UUID = "11111111-2222-3333-4444-555555555555"


@pytest.fixture
def builder(tmp_path: Path) -> ImageBuilder:
    state = StateFolder(tmp_path / "s", tmp_path / "r")
    return ImageBuilder(state, Processes(state))


def silent(share: float, text: str) -> None:
    pass


async def test_an_unknown_recipe_is_refused_first(builder: ImageBuilder, tmp_path: Path) -> None:
    with pytest.raises(UnknownRecipe, match="windows-13"):
        await builder.build("windows-13", tmp_path / "x", tmp_path / "work", "host", silent)


async def test_a_missing_program_is_named_with_its_package(
    builder: ImageBuilder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "_SEARCHED", str(tmp_path))
    with pytest.raises(ProgramMissing) as caught:
        await builder.build("debian-12", tmp_path / "x", tmp_path, "host", silent)
    assert caught.value.cure == "Install the package `mmdebstrap`."


async def test_a_failed_step_says_what_and_shows_the_log(
    builder: ImageBuilder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = ["sh", "-c", "echo E: no such archive; exit 3"]
    monkeypatch.setattr(build, "bootstrap_command", lambda *given: broken)
    monkeypatch.setattr(build, "_require_programs", lambda programs: None)
    monkeypatch.setattr(build, "require_sub_ids", lambda: None)
    work = tmp_path / "work"
    work.mkdir()
    with pytest.raises(BuildFailed, match="installing packages") as caught:
        await builder.build("debian-12", tmp_path / "x", work, "host", silent)
    assert "no such archive" in caught.value.detail["log"]
    assert not (tmp_path / "x").exists()


def test_a_user_without_ids_of_their_own_is_told_how_to_get_them(
    tmp_path: Path,
) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/subuid").write_text("somebody:100000:65536\n")
    with pytest.raises(UserNamespacesMissing, match="subuid") as caught:
        build.require_sub_ids(tmp_path)
    assert "usermod --add-subuids" in caught.value.cure


def test_partitions_are_aligned_and_the_root_is_last() -> None:
    for part in (ESP, ROOT):
        assert part.start % MIB == part.size % MIB == 0
    assert ESP.start + ESP.size <= ROOT.start
    assert ROOT.start + ROOT.size + 33 * SECTOR <= SIZE
    assert table_script().startswith("label: gpt\n")


@pytest.mark.parametrize("as_root", [True, False])
def test_the_command_needs_no_quoting_of_paths(as_root: bool) -> None:
    folder = Path("/var/my state")
    command = bootstrap_command(
        RECIPES["debian-12"], ARCHIVES, as_root, folder / "e", folder / "l", folder / "b", folder / "out"
    )
    assert f"--mode={'root' if as_root else 'unshare'}" in command
    assert "--essential-hook=sync-in '/var/my state/e' /" in command
    assert command[-2:] == [
        "/var/my state/out",
        "deb [signed-by=/k.gpg] http://m.example/debian bookworm main",
    ]
    assert any("shim-signed" in part and "grub-efi-amd64-signed" in part for part in command)


def test_progress_never_falls_and_follows_the_messages() -> None:
    told: list[tuple[float, str]] = []
    reader = BootstrapProgress(lambda share, text: told.append((share, text)))
    output = b"I: running apt-get update...\nI: downloading packages with apt...\nGet:1 x\n"
    output += b"I: installing remaining packages inside the chroot...\n"
    output += b"Unpacking a (1) ...\nSetting up a (1) ...\n" * 600
    output += b"I: downloading packages with apt...\nI: cleaning package lists and apt cache...\n"
    for start in range(0, len(output), 7):
        reader.feed(output[start : start + 7])
    shares = [share for share, _ in told]
    assert shares == sorted(shares)
    assert told[0] == (0.03, "fetching package lists")
    assert told[-1] == (0.95, "cleaning up")
    assert len({share for share, text in told if text == "installing packages"}) > 100


def test_endless_output_without_lines_is_not_kept() -> None:
    reader = BootstrapProgress(silent)
    for _ in range(100):
        reader.feed(b"x" * 10_000)
    assert len(reader._rest) <= 1000


def test_a_guest_gets_no_identity_from_its_image() -> None:
    files = root_files(ARCHIVES, UUID, "abcd1234")
    assert files["etc/machine-id"] == ""
    assert f"UUID={UUID} / ext4" in files["etc/fstab"]
    assert "UUID=ABCD-1234 /boot/efi" in files["etc/fstab"]
    assert not any("ssh_host" in name for name in files)


def test_both_menus_find_the_root_by_its_uuid() -> None:
    assert f"search.fs_uuid {UUID} root" in esp_menu(UUID)
    menu = boot_menu(UUID)
    assert f"root=UUID={UUID} ro console=tty0 console=ttyS0" in menu
    assert "timeout=0" in menu
