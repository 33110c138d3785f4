"""Long work on images: import, pull and build. Each run owns one scratch folder until it ends.

    scratch/operation-<id>/    source    the file as it came (import, pull)
                               image     what becomes the image of a disk

The folder outlives a restart of the daemon while the operation is not ended; its first phase makes
it, the last one removes it, and so does undoing. Foreign files are converted as `identity`.
"""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from holdfast.host.files import own, remove_tree, sync_folder
from holdfast.host.folders import StateFolder
from holdfast.host.processes import Identity, Processes
from holdfast.host.space import require_space
from holdfast.operations.engine import Operations
from holdfast.operations.procedure import Job, Phase, Procedure
from holdfast.spec.errors import HoldfastError, NotFound
from holdfast.spec.image import ImageKind, ImageOrigin
from holdfast.spec.image_requests import ImageBuild, ImagePull
from holdfast.spec.names import check_name
from holdfast.spec.operation import Operation
from holdfast.spec.units import GIB
from holdfast.storage.build import Built
from holdfast.storage.catalogue import find_origin, listed_checksum, parse_checksum, redacted
from holdfast.storage.convert import to_qcow2
from holdfast.storage.download import Downloader
from holdfast.storage.images import ImageNameTaken, ImageNotFound, ImageStore
from holdfast.storage.inspect import inspect
from holdfast.storage.recipes import recipe_named
from holdfast.storage.scratch import operation_folder


class UploadGone(NotFound):
    id = "upload-gone"


class Builder(Protocol):
    async def build(
        self, recipe: str, target: Path, work: Path, owner: str, progress: Callable[[float, str], None]
    ) -> Built: ...


class _Step:
    """A phase over the operation's folder; what it makes goes with the folder."""

    title = ""
    weight = 1.0

    def __init__(self, state: StateFolder) -> None:
        self._scratch = state.scratch

    def folder(self, job: Job) -> Path:
        return operation_folder(self._scratch, job.id)

    async def make_folder(self, job: Job) -> Path:
        folder = self.folder(job)
        # Others may pass through: the file is converted by a user without rights.
        await asyncio.to_thread(folder.mkdir, mode=0o711, exist_ok=True)
        await asyncio.to_thread(folder.chmod, 0o711)
        return folder

    async def undo(self, job: Job) -> None:
        await asyncio.to_thread(remove_tree, self.folder(job))


class TakeUpload(_Step):
    title = "take the file over"
    weight = 0.1

    async def do(self, job: Job) -> None:
        folder = await self.make_folder(job)
        upload, source = Path(job.params["path"]), folder / "source"

        def take() -> bool:
            if upload.is_file() and not source.exists():
                upload.rename(source)
                sync_folder(folder)
            return source.is_file()

        if not await asyncio.to_thread(take):
            raise UploadGone(
                "the uploaded file is gone", value=job.subject, cure="Send it again and import it again."
            )

    async def undo(self, job: Job) -> None:
        await super().undo(job)
        await asyncio.to_thread(Path(job.params["path"]).unlink, missing_ok=True)


class Download(_Step):
    title = "download"
    weight = 10.0

    def __init__(self, state: StateFolder, downloader: Downloader) -> None:
        super().__init__(state)
        self._downloader = downloader

    async def do(self, job: Job) -> None:
        folder = await self.make_folder(job)
        url, listed = job.params["url"], job.params["checksums_url"]
        if job.params["checksum"] or listed:
            if "checksum" not in job.notes:
                job.notes["checksum"] = job.params["checksum"] or await self._listed(url, listed, job)
                await job.keep()
            checksum = parse_checksum(job.notes["checksum"])
        else:
            checksum = None
        await self._downloader.fetch(url, folder / "source", checksum, job.progress)

    async def _listed(self, url: str, list_url: str, job: Job) -> str:
        job.progress(0.0, "reading the list of checksums")
        text = await self._downloader.text(list_url)
        return str(listed_checksum(text, url.rsplit("/", 1)[-1], job.params["algorithm"]))


class Inspect(_Step):
    """Decides what the file is, and refuses what must not become an image."""

    title = "inspect the file"
    weight = 0.2

    async def do(self, job: Job) -> None:
        kind = job.params.get("kind")
        source = self.folder(job) / "source"
        found = await asyncio.to_thread(inspect, source, ImageKind(kind) if kind else None)
        job.notes |= {"format": found.format, "kind": found.kind.value, "virtual_size": found.virtual_size}

    async def undo(self, job: Job) -> None:
        """Nothing was made."""


class Convert(_Step):
    title = "convert to qcow2"
    weight = 5.0

    def __init__(self, state: StateFolder, processes: Processes, identity: Identity | None) -> None:
        super().__init__(state)
        self._processes = processes
        self._identity = identity

    async def do(self, job: Job) -> None:
        if job.notes["kind"] != ImageKind.DISK:
            return
        source, target = self.folder(job) / "source", self.folder(job) / "image"

        def prepare() -> None:
            require_space(source.parent, source.stat().st_blocks * 512 + GIB)
            source.chmod(0o400)
            if self._identity:
                own(source, self._identity.uid, self._identity.gid)

        await asyncio.to_thread(prepare)
        await to_qcow2(
            self._processes,
            source,
            job.notes["format"],
            target,
            owner=f"operation:{job.id}",
            identity=self._identity,
            progress=job.progress,
            virtual_size=job.notes["virtual_size"],
        )
        # The converter read a foreign file: what it wrote is looked at as if it were one too.
        found = await asyncio.to_thread(inspect, target, ImageKind.DISK)
        job.notes["virtual_size"] = found.virtual_size

    async def undo(self, job: Job) -> None:
        await asyncio.to_thread((self.folder(job) / "image").unlink, missing_ok=True)


class Build(_Step):
    title = "build"
    weight = 10.0

    def __init__(self, state: StateFolder, builder: Builder) -> None:
        super().__init__(state)
        self._builder = builder

    async def do(self, job: Job) -> None:
        folder = await self.make_folder(job)
        work, target = folder / "work", folder / "image"

        def begin() -> None:
            remove_tree(work)
            target.unlink(missing_ok=True)
            work.mkdir(mode=0o700)

        await asyncio.to_thread(begin)
        owner = f"operation:{job.id}"
        built = await self._builder.build(job.params["recipe"], target, work, owner, job.progress)
        job.notes |= {"kind": ImageKind.DISK.value, "virtual_size": built.virtual_size}


class Publish(_Step):
    title = "put it into the store"
    weight = 1.0

    def __init__(self, state: StateFolder, images: ImageStore, origin: ImageOrigin) -> None:
        super().__init__(state)
        self._images = images
        self._origin = origin

    async def do(self, job: Job) -> None:
        kind = ImageKind(job.notes["kind"])
        name = job.params["name"]
        if "had_name" not in job.notes:
            job.notes["had_name"] = await _digest_of(self._images, name) is not None
            await job.keep()
        try:
            image = await self._images.publish(
                self.folder(job) / ("image" if kind is ImageKind.DISK else "source"),
                name=name,
                kind=kind,
                origin=self._origin,
                source=job.params["source"],
                virtual_size=job.notes["virtual_size"],
            )
        except HoldfastError:
            job.notes["had_name"] = True  # the name is somebody else's, or nobody's
            raise
        job.notes["digest"] = image.digest

    async def undo(self, job: Job) -> None:
        """Only a name that this run gave is taken away."""
        name = job.params["name"]
        if job.notes.get("had_name") is False and await _digest_of(self._images, name) is not None:
            await self._images.delete(name)


class RemoveFolder(_Step):
    title = "clean up"
    weight = 0.1

    async def do(self, job: Job) -> None:
        await asyncio.to_thread(remove_tree, self.folder(job))


async def _digest_of(images: ImageStore, name: str) -> str | None:
    try:
        image = await images.get(name)
    except ImageNotFound:
        return None
    return image.digest if any(each.lower() == name.lower() for each in image.names) else None


def procedures(
    state: StateFolder,
    processes: Processes,
    images: ImageStore,
    builder: Builder,
    downloader: Downloader,
    identity: Identity | None,
) -> list[Procedure]:
    """`identity`: who converts foreign files; None where the daemon itself has no rights to lose."""

    def published(job: Job) -> dict[str, Any]:
        return {"image": job.params["name"], "digest": job.notes["digest"]}

    inspecting, converting = Inspect(state), Convert(state, processes, identity)
    last = RemoveFolder(state)
    steps: dict[str, tuple[Phase, ...]] = {
        "image.import": (TakeUpload(state), inspecting, converting),
        "image.pull": (Download(state, downloader), inspecting, converting),
        "image.build": (Build(state, builder),),
    }
    origins = {
        "image.import": ImageOrigin.IMPORTED,
        "image.pull": ImageOrigin.PULLED,
        "image.build": ImageOrigin.BUILT,
    }
    return [
        Procedure(kind, (*first, Publish(state, images, origins[kind]), last), published)
        for kind, first in steps.items()
    ]


class ImageWork:
    """What the API asks for; each returns its operation at once, and its result names the image."""

    def __init__(self, operations: Operations, images: ImageStore) -> None:
        self._operations = operations
        self._images = images

    async def build(self, request: ImageBuild, actor: str) -> Operation:
        """Raises UnknownRecipe, ImageNameTaken."""
        recipe_named(request.recipe)
        name = request.name or request.recipe
        await self._require_free(name)
        params = {"recipe": request.recipe, "name": name, "source": request.recipe}
        return await self._operations.submit("image.build", name, params, actor)

    async def pull(self, request: ImagePull, actor: str) -> Operation:
        """Raises NotInCatalogue, UrlNotAllowed, BadChecksum, ImageNameTaken."""
        origin = find_origin(request.source, request.checksum)
        name = check_name(request.name or origin.name)
        await self._require_free(name)
        params = {
            "url": origin.url,
            "checksum": str(origin.checksum) if origin.checksum else None,
            "checksums_url": origin.checksums_url,
            "algorithm": origin.algorithm,
            "name": name,
            "source": redacted(origin.url),
        }
        return await self._operations.submit("image.pull", name, params, actor)

    async def import_file(
        self, path: Path, name: str, kind: ImageKind | None, source: str, actor: str
    ) -> Operation:
        """Takes the file at `path` over. Raises ImageNameTaken; then the file stays for another try."""
        check_name(name)
        await self._require_free(name)
        params = {
            "path": os.fspath(path),
            "name": name,
            "kind": kind.value if kind else None,
            "source": source or path.name,
        }
        return await self._operations.submit("image.import", name, params, actor)

    async def _require_free(self, name: str) -> None:
        if await _digest_of(self._images, name) is not None:
            raise ImageNameTaken(
                f"there is already an image named {name!r}",
                value=name,
                cure="Choose another name with --name, or delete that image first.",
            )
