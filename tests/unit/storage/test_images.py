"""The image store: names, digests, content, and what a crash leaves."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from sqlalchemy.orm import Session

from holdfast.catalog.store import Catalog
from holdfast.catalog.tables import ImageRow
from holdfast.host.folders import StateFolder
from holdfast.spec.image import Image, ImageKind, ImageOrigin
from holdfast.spec.names import BadName
from holdfast.spec.paging import BadSort, PageQuery
from holdfast.storage.images import (
    ImageInUse,
    ImageKindDiffers,
    ImageNameTaken,
    ImageNotFound,
    ImageStore,
)


@dataclass
class Users:
    vms: dict[str, list[str]] = field(default_factory=dict)

    def vms_using(self, session: Session, digest: str) -> list[str]:
        assert session.get(ImageRow, digest) is not None  # it is asked before anything is gone
        return self.vms.get(digest, [])


@dataclass
class Fixture:
    store: ImageStore
    users: Users
    state: StateFolder
    catalog: Catalog

    async def put(
        self, name: str, data: bytes = b"data", kind: ImageKind = ImageKind.ISO, replace: bool = False
    ) -> Image:
        file = self.state.scratch / "file"
        file.unlink(missing_ok=True)
        file.write_bytes(data)
        return await self.store.publish(
            file,
            name=name,
            kind=kind,
            origin=ImageOrigin.IMPORTED,
            source="test",
            virtual_size=len(data),
            replace=replace,
        )


@pytest.fixture
async def images(tmp_path: Path) -> AsyncIterator[Fixture]:
    state = StateFolder(tmp_path / "s", tmp_path / "r")
    state.prepare()
    catalog, users = Catalog.open(state.catalog), Users()
    yield Fixture(ImageStore(catalog, state, users), users, state, catalog)
    catalog.close()


async def test_found_by_name_digest_and_prefix(images: Fixture) -> None:
    image = await images.put("Debian-12")
    for wanted in ("debian-12", image.digest, image.digest[7:19], image.digest[:20]):
        assert (await images.store.get(wanted)).names == ("Debian-12",)
    for wanted in (image.digest[7:18], "debian", "sha256:", "0" * 64, "../x", "%", ""):
        with pytest.raises(ImageNotFound):
            await images.store.get(wanted)
    path = await images.store.path(image.digest)
    assert path.read_bytes() == b"data"
    assert path.stat().st_mode & 0o777 == 0o444
    assert path.parent.stat().st_mode & 0o777 == 0o711
    assert image.stored_size > 0
    assert image.created.tzinfo is not None


@pytest.mark.parametrize("digest", ["sha256:../../etc/passwd", "sha256:" + "A" * 64, "x", ""])
async def test_a_path_is_only_given_for_digests(images: Fixture, digest: str) -> None:
    with pytest.raises(ImageNotFound):
        await images.store.path(digest)


async def test_the_same_content_is_stored_once(images: Fixture) -> None:
    first, second = await images.put("one"), await images.put("two")
    assert first.digest == second.digest
    assert second.names == ("one", "two")
    assert len(list(images.state.images.iterdir())) == 1
    await images.store.delete("ONE")
    assert (await images.store.get("two")).names == ("two",)
    await images.store.delete("two")
    assert list(images.state.images.iterdir()) == []
    with pytest.raises(ImageNotFound):
        await images.store.get(first.digest)


async def test_publishing_again_changes_nothing(images: Fixture) -> None:
    assert await images.put("one") == await images.put("one")


async def test_a_name_moves_only_on_request(images: Fixture) -> None:
    old = await images.put("one", b"old")
    with pytest.raises(ImageNameTaken):
        await images.put("ONE", b"new")
    assert len(list(images.state.images.iterdir())) == 1
    new = await images.put("one", b"new", replace=True)
    assert (await images.store.get("one")).digest == new.digest
    with pytest.raises(ImageNotFound):
        await images.store.get(old.digest)
    assert len(list(images.state.images.iterdir())) == 1


async def test_content_in_use_outlives_its_name(images: Fixture) -> None:
    old = await images.put("one", b"old")
    images.users.vms[old.digest] = ["vm1"]
    await images.put("one", b"new", replace=True)
    assert (await images.store.get(old.digest)).names == ()
    with pytest.raises(ImageInUse) as caught:
        await images.store.delete(old.digest)
    assert caught.value.detail == {"vms": ["vm1"]}
    await images.store.recover()
    assert (await images.store.path(old.digest)).exists()
    images.users.vms.clear()
    await images.store.recover()
    with pytest.raises(ImageNotFound):
        await images.store.get(old.digest)


async def test_an_image_in_use_stays_but_may_lose_a_second_name(images: Fixture) -> None:
    image = await images.put("one")
    await images.put("two")
    images.users.vms[image.digest] = ["vm1"]
    await images.store.delete("two")
    with pytest.raises(ImageInUse):
        await images.store.delete("one")
    assert (await images.store.path(image.digest)).exists()


async def test_the_kind_of_stored_content_is_settled(images: Fixture) -> None:
    await images.put("one", kind=ImageKind.ISO)
    with pytest.raises(ImageKindDiffers):
        await images.put("two", kind=ImageKind.KERNEL)


async def test_bad_names_are_refused(images: Fixture) -> None:
    with pytest.raises(BadName):
        await images.put("../x")


async def test_pages_are_sorted_and_filtered(images: Fixture) -> None:
    for name in ("b", "a", "C", "d_x"):
        await images.put(name, name.encode() * (10 if name == "C" else 1))

    async def names(**query: object) -> list[str]:
        page = await images.store.list(PageQuery.model_validate(query))
        return [image.names[0] for image in page.items]

    assert await names() == ["a", "b", "C", "d_x"]
    assert await names(sort="-name", limit=2, offset=1) == ["C", "b"]
    assert await names(sort="-virtual_size", limit=1) == ["C"]
    assert await names(filter="_") == ["d_x"]
    assert await names(filter="?") == ["a", "b", "C"]
    assert await names(filter="c*") == ["C"]
    assert (await images.store.list(PageQuery(limit=1))).total == 4
    with pytest.raises(BadSort):
        await names(sort="digest")


async def test_recovery_removes_what_no_record_knows(images: Fixture) -> None:
    image = await images.put("one")
    orphan, foreign = images.state.images / ("0" * 64), images.state.images / "notes"
    orphan.mkdir()
    (orphan / "content").touch()
    foreign.mkdir()
    assert await images.store.recover() == []
    assert not orphan.exists()
    assert foreign.exists()
    (await images.store.path(image.digest)).unlink()
    assert await images.store.recover() == [image.digest]
    assert (await images.store.get("one")).digest == image.digest
    await images.put("one")
    assert await images.store.recover() == []
