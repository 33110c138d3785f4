"""The image store: immutable content addressed by its SHA-256, and the names that point at it.

    images/<64 hex digits>/content     one file, whatever its kind; 0444 in a folder of 0711

The catalog's rows are the truth: a folder without a row is what a crash left and goes at the next
start. A row is written only after its file is whole and durable. Disk images are qcow2 files
without a backing file, made by our own conversion.
"""

import asyncio
import contextlib
import errno
import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import structlog
from sqlalchemy import ColumnElement, delete, func, select
from sqlalchemy.orm import Session

from holdfast.catalog.clock import aware, now
from holdfast.catalog.store import Catalog
from holdfast.catalog.tables import ImageNameRow, ImageRow
from holdfast.host.files import copy_sparse, remove_tree, sync_folder
from holdfast.host.folders import StateFolder
from holdfast.spec.errors import Conflict, NotFound
from holdfast.spec.image import Image, ImageKind, ImageOrigin
from holdfast.spec.names import check_name
from holdfast.spec.paging import BadSort, Page, PageQuery

log = structlog.get_logger(__name__)

_CHUNK = 4 * 1024 * 1024
_SOURCE = 1024  # characters that the record keeps
_SORTS = {"name", "created", "kind", "virtual_size", "stored_size"}
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}", re.ASCII)
_PREFIX = re.compile(r"(?:sha256:)?([0-9a-f]{12,64})", re.ASCII)
_FOLDER = re.compile(r"[0-9a-f]{64}", re.ASCII)


class ImageNotFound(NotFound):
    id = "image-not-found"


class ImageNameTaken(Conflict):
    id = "image-name-taken"


class ImageKindDiffers(Conflict):
    id = "image-kind-differs"


class ImageInUse(Conflict):
    id = "image-in-use"


class ImageUse(Protocol):
    """Who needs an image's content, running or not; the room of VMs knows.

    Asked in the very transaction that takes the record away: nobody can begin to need it meanwhile.
    """

    def vms_using(self, session: Session, digest: str) -> Sequence[str]: ...


@dataclass(frozen=True)
class _Content:
    """A file on its way into the store."""

    digest: str
    stored_size: int


class ImageStore:
    """Owner of the images of one state folder, on disk and in the catalog."""

    def __init__(self, catalog: Catalog, state: StateFolder, use: ImageUse | None = None) -> None:
        self._catalog = catalog
        self._state = state
        self._use = use
        self._lock = asyncio.Lock()

    async def get(self, name_or_digest: str) -> Image:
        """The image of a name (in any case), a digest, or twelve or more of a digest's hex digits.

        Raises:
            ImageNotFound: there is none.
        """
        return await self._catalog.read(lambda session: _to_image(session, _find(session, name_or_digest)))

    async def list(self, query: PageQuery) -> Page[Image]:
        """One page; the filter matches names. Content whose name moved on has no name, and sorts first."""
        return await self._catalog.read(lambda session: _page(session, query))

    def content(self, digest: str) -> Path:
        """Where the content of a digest lies, or would lie."""
        if not _DIGEST.fullmatch(digest):
            raise _not_found(digest)
        return self._state.images / digest.removeprefix("sha256:") / "content"

    async def path(self, digest: str) -> Path:
        """The content's file.

        Raises:
            ImageNotFound: it is not in the store.
        """
        path = self.content(digest)
        if not path.is_file():
            raise _not_found(digest)
        return path

    async def delete(self, name: str) -> None:
        """Remove a name, and with its last name the content; a digest stands for all its names.

        Raises:
            ImageNotFound: there is no such image.
            ImageInUse: VMs need the content that would go; the detail lists them.
        """
        async with self._lock:
            gone = await self._catalog.write(lambda session: self._delete(session, name))
            if gone:
                await asyncio.to_thread(remove_tree, self.content(gone).parent)

    def _delete(self, session: Session, name: str) -> str | None:
        """The digest of the content that has no record any more."""
        image = _to_image(session, _find(session, name))
        doomed = [each for each in image.names if each.lower() == name.lower()] or list(image.names)
        last = len(doomed) == len(image.names)
        users = self._use.vms_using(session, image.digest) if self._use and last else ()
        if users:
            raise ImageInUse(
                f"image {name!r} is used by {', '.join(users[:5])}{' and others' if users[5:] else ''}",
                value=name,
                cure="Delete those VMs first, or clone them with a full copy.",
                detail={"vms": list(users)},
            )
        _forget(session, image.digest, doomed, last)
        return image.digest if last else None

    async def publish(
        self,
        file: Path,
        *,
        name: str,
        kind: ImageKind,
        origin: ImageOrigin,
        source: str,
        virtual_size: int,
        replace: bool = False,
    ) -> Image:
        """Make `file` an image named `name`; safe to run again with the same file.

        `file` must be ours alone and lie on the store's file system; it stays (as another link to
        the same data) for the caller to remove, so that a crash half-way loses nothing. Content
        that is already stored only gets the name. With `replace` a name moves from its old content.

        Raises:
            ImageNameTaken: the name belongs to other content.
            ImageKindDiffers: the same content is stored as another kind.
        """
        check_name(name)
        content = await asyncio.to_thread(_seal, file)
        async with self._lock:
            check = _Newcomer(name, kind, content.digest, replace)
            await self._catalog.read(check.admit)
            await asyncio.to_thread(_put, file, self.content(content.digest))

            def store(session: Session) -> str | None:
                old = check.admit(session)
                left = old.digest if old and old.digest != content.digest else None
                if session.get(ImageRow, content.digest) is None:
                    row = ImageRow(
                        digest=content.digest,
                        kind=kind,
                        origin=origin,
                        source=source[:_SOURCE],
                        virtual_size=virtual_size,
                        stored_size=content.stored_size,
                        created=now(),
                    )
                    session.add(row)
                    session.flush()
                session.merge(ImageNameRow(name=old.name if old else name, digest=content.digest))
                return left

            left = await self._catalog.write(store)
            if left:
                await self._collect(left)
        return await self.get(content.digest)

    async def _collect(self, digest: str) -> None:
        """Remove content that has no name and that no VM needs."""

        def forget(session: Session) -> bool:
            if self._use and self._use.vms_using(session, digest):
                return False
            if session.scalar(select(ImageNameRow).where(ImageNameRow.digest == digest)):
                return False
            _forget(session, digest, [], True)
            return True

        if await self._catalog.write(forget):
            await asyncio.to_thread(remove_tree, self.content(digest).parent)

    async def recover(self) -> Sequence[str]:
        """At daemon start: remove what no record knows and what nobody needs any more.

        Returns the digests whose file is missing; their records stay, for the file may come back.
        """
        async with self._lock:
            rows = await self._catalog.read(lambda session: set(session.scalars(select(ImageRow.digest))))
            known = {digest.removeprefix("sha256:") for digest in rows}
            await asyncio.to_thread(_remove_unknown, self._state.images, known)
            nameless = select(ImageRow.digest).where(ImageRow.digest.not_in(select(ImageNameRow.digest)))
            for digest in await self._catalog.read(lambda session: session.scalars(nameless).all()):
                await self._collect(digest)
                rows.discard(digest)
        missing = sorted(digest for digest in rows if not self.content(digest).is_file())
        for digest in missing:
            log.warning("image content is missing", digest=digest, path=str(self.content(digest)))
        return missing


@dataclass(frozen=True)
class _Newcomer:
    name: str
    kind: ImageKind
    digest: str
    replace: bool

    def admit(self, session: Session) -> ImageNameRow | None:
        """The row that has the name already. Raises ImageNameTaken, ImageKindDiffers."""
        row = session.get(ImageRow, self.digest)
        if row is not None and row.kind != self.kind:
            raise ImageKindDiffers(
                f"the content of {self.name!r} is already stored as an image of kind {row.kind}",
                value=self.kind,
                cure=f"Use it as what it is: {self.digest}.",
            )
        old = session.scalar(select(ImageNameRow).where(ImageNameRow.name == self.name))
        if old is not None and old.digest != self.digest and not self.replace:
            raise ImageNameTaken(
                f"there is already an image named {old.name!r}",
                value=self.name,
                cure="Choose another name, or delete that image first.",
            )
        return old


def _seal(file: Path) -> _Content:
    """Nobody writes to it from here on, and what is hashed is on stable storage."""
    fd = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(fd, "rb", buffering=0) as reader:
        if os.geteuid() == 0:
            os.fchown(reader.fileno(), 0, 0)
        os.fchmod(reader.fileno(), 0o444)
        os.fsync(reader.fileno())
        digest, buffer = hashlib.sha256(), memoryview(bytearray(_CHUNK))
        while count := reader.readinto(buffer):
            digest.update(buffer[:count])
        return _Content(f"sha256:{digest.hexdigest()}", os.fstat(reader.fileno()).st_blocks * 512)


def _put(file: Path, content: Path) -> None:
    if content.is_file():
        return
    content.parent.mkdir(mode=0o711, exist_ok=True)
    content.parent.chmod(0o711)  # whatever the umask
    scratch = content.with_name("content.part")
    scratch.unlink(missing_ok=True)
    try:
        os.link(file, scratch)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP):
            raise
        copy_sparse(file, scratch)
        scratch.chmod(0o444)
    scratch.replace(content)
    sync_folder(content.parent)
    sync_folder(content.parent.parent)


def _remove_unknown(images: Path, known: set[str]) -> None:
    for entry in images.iterdir():
        # Anything else in there was put by a person and is left alone.
        if _FOLDER.fullmatch(entry.name) and entry.name not in known:
            remove_tree(entry)
        elif entry.name in known:
            with contextlib.suppress(FileNotFoundError):
                (entry / "content.part").unlink()


def require_stored(session: Session, digests: Iterable[str]) -> None:
    """In the transaction that begins to need them: every digest is in the store, and so remains.

    Raises:
        ImageNotFound: one was deleted meanwhile.
    """
    for digest in digests:
        if session.get(ImageRow, digest) is None:
            raise _not_found(digest)


def _find(session: Session, wanted: str) -> ImageRow:
    name = session.scalar(select(ImageNameRow).where(ImageNameRow.name == wanted))
    if name is not None:
        return session.get_one(ImageRow, name.digest)
    match = _PREFIX.fullmatch(wanted.lower())
    if match:
        prefix = f"sha256:{match[1]}"
        rows = session.scalars(select(ImageRow).where(ImageRow.digest.startswith(prefix)).limit(2)).all()
        if len(rows) == 1:
            return rows[0]
    raise _not_found(wanted)


def _not_found(wanted: str) -> ImageNotFound:
    return ImageNotFound(
        f"there is no image {wanted[:80]!r}",
        value=wanted[:80],
        cure="See `holdfast image list`; get one with `holdfast image build`, `pull` or `import`.",
    )


def _to_image(session: Session, row: ImageRow) -> Image:
    names = select(ImageNameRow.name).where(ImageNameRow.digest == row.digest).order_by(ImageNameRow.name)
    return Image(
        digest=row.digest,
        names=tuple(session.scalars(names)),
        kind=ImageKind(row.kind),
        origin=ImageOrigin(row.origin),
        source=row.source,
        virtual_size=row.virtual_size,
        stored_size=row.stored_size,
        created=aware(row.created),
    )


def _forget(session: Session, digest: str, names: Sequence[str], content: bool) -> None:
    session.execute(delete(ImageNameRow).where(ImageNameRow.name.in_(names)))
    if content:
        session.execute(delete(ImageRow).where(ImageRow.digest == digest))


def _matching(text: str) -> ColumnElement[bool]:
    """The condition on a name; see `PageQuery`."""
    if "*" in text or "?" in text:
        pattern = text.lower().replace("[", "[[]")
        return func.lower(ImageNameRow.name).bool_op("GLOB")(pattern)
    return ImageNameRow.name.icontains(text, autoescape=True)


def _page(session: Session, query: PageQuery) -> Page[Image]:
    key = query.sort.lstrip("-")
    if key not in _SORTS:
        raise BadSort(
            f"images cannot be sorted by {key!r}", value=key, cure=f"Use one of {', '.join(sorted(_SORTS))}."
        )
    names = select(func.lower(func.min(ImageNameRow.name)))
    first_name = names.where(ImageNameRow.digest == ImageRow.digest).scalar_subquery()
    column = first_name if key == "name" else getattr(ImageRow, key)
    statement = select(ImageRow)
    if query.filter:
        statement = statement.where(
            ImageRow.digest.in_(select(ImageNameRow.digest).where(_matching(query.filter)))
        )
    total = session.scalar(select(func.count()).select_from(statement.subquery())) or 0
    order = column.desc() if query.sort.startswith("-") else column
    rows = session.scalars(statement.order_by(order, ImageRow.digest).offset(query.offset).limit(query.limit))
    return Page(
        items=tuple(_to_image(session, row) for row in rows),
        total=total,
        offset=query.offset,
        limit=query.limit,
    )
