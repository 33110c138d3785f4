"""Fetches a source by its address, resumed where it was cut off; what came waits as an upload.

scratch/operation-<id>/source  ──whole──▶  scratch/uploads/<id of the upload>
"""

import asyncio
from pathlib import Path
from typing import Any

from holdfast.host.files import remove_tree, sync_folder
from holdfast.host.folders import StateFolder
from holdfast.operations.engine import Operations
from holdfast.operations.procedure import Job, Procedure
from holdfast.spec.appliance import ImportFetch
from holdfast.spec.ids import new_id
from holdfast.spec.operation import Operation
from holdfast.storage.catalogue import parse_checksum, redacted, require_allowed
from holdfast.storage.download import Downloader
from holdfast.storage.scratch import operation_folder


class Fetch:
    title = "download"
    weight = 10.0

    def __init__(self, state: StateFolder, downloader: Downloader) -> None:
        self._scratch = state.scratch
        self._downloader = downloader

    async def do(self, job: Job) -> None:
        folder = operation_folder(self._scratch, job.id)
        await asyncio.to_thread(folder.mkdir, mode=0o700, exist_ok=True)
        checksum = parse_checksum(job.params["checksum"]) if job.params["checksum"] else None
        await self._downloader.fetch(job.params["url"], folder / "source", checksum, job.progress)

    async def undo(self, job: Job) -> None:
        await asyncio.to_thread(remove_tree, operation_folder(self._scratch, job.id))


class KeepAsUpload:
    title = "put it with the uploads"
    weight = 0.1

    def __init__(self, state: StateFolder) -> None:
        self._scratch = state.scratch

    async def do(self, job: Job) -> None:
        folder, uploads = operation_folder(self._scratch, job.id), self._scratch / "uploads"
        target = uploads / job.params["upload"]

        def keep() -> None:
            uploads.mkdir(mode=0o700, exist_ok=True)
            if not target.exists():
                (folder / "source").rename(target)
                sync_folder(uploads)
            remove_tree(folder)

        await asyncio.to_thread(keep)
        job.notes["size"] = target.stat().st_size

    async def undo(self, job: Job) -> None:
        await asyncio.to_thread((self._scratch / "uploads" / job.params["upload"]).unlink, missing_ok=True)


def procedures(state: StateFolder, downloader: Downloader) -> list[Procedure]:
    def result(job: Job) -> dict[str, Any]:
        return {"upload": job.params["upload"], "name": job.subject, "size": job.notes["size"]}

    return [Procedure("appliance.fetch", (Fetch(state, downloader), KeepAsUpload(state)), result)]


class SourceFetcher:
    """What the API asks for; the operation's result names the upload."""

    def __init__(self, operations: Operations, state: StateFolder) -> None:
        self._operations = operations
        self._state = state

    async def fetch(self, request: ImportFetch, actor: str) -> Operation:
        """Raises UrlNotAllowed, BadChecksum."""
        require_allowed(request.url, request.checksum is not None)
        if request.checksum:
            parse_checksum(request.checksum)
        upload = new_id()
        params = {
            "url": request.url,
            "checksum": request.checksum,
            "upload": upload,
            # Spared when the daemon starts in the middle.
            "uploads": [str(self._state.scratch / "uploads" / upload)],
        }
        name = Path(redacted(request.url).partition("?")[0]).name or "source"
        return await self._operations.submit("appliance.fetch", name[:255], params, actor)
