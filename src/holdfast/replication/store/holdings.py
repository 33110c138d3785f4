"""What lies in a replica's folder, and how it is read after a crash.

    base/<disk>              all of a disk as it was at the oldest point; sparse
    journal/<number>         blocks of later cycles
    index/<first>-<last>     what changed in a span of cycles; its last one is a point
    index/base, base.copy    the oldest point: when, which sizes, attachments. The newer readable one counts
    open/<token>             a point that is open
    pins/<token>             points that are kept apart, see `pins`
    damage                   what was found damaged

The names of the spans are the list of points: a cycle is there once its index has its name durably, and a
longer span stands for the shorter ones within it, of which a crash may have left some. What else lies there
is removed. All state here is read again from the folder; `lock` guards it, `upkeep` keeps those apart who
read blocks and who give their room back.
"""

import contextlib
import re
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from holdfast.replication.store.files import Files
from holdfast.replication.store.index import (
    FILE_SHIFT,
    Head,
    Index,
    IndexDamaged,
    IndexWriter,
    Merging,
    open_index,
)
from holdfast.replication.store.journal import LARGEST, Journal
from holdfast.replication.store.opened import Opened, read_opened
from holdfast.replication.store.pins import read_pins, write_pin
from holdfast.replication.store.record import Damage, Damages, read_damages, reason_lost

_SPAN = re.compile(r"([0-9a-f]{16})-([0-9a-f]{16})")
NEW = ".new"
_FOLDERS = ("base", "journal", "index", "open", "pins")


class Holdings:
    def __init__(self, folder: Path, files: Files, largest_file: int = LARGEST) -> None:
        """Read what is there, and finish what a crash interrupted. Raises OSError."""
        self.folder = folder
        self.files = files
        self.journal = Journal(folder / "journal", files, largest_file)
        self.lock = threading.RLock()
        self.upkeep = threading.RLock()
        self.base: Index | None = None
        self.spans: list[Index] = []
        """Ascending, behind the base."""
        self.damages: tuple[Damage, ...] = ()
        self.opened: dict[str, Opened] = {}
        self.pins: dict[str, tuple[int, ...]] = {}
        """Points that are kept, by token."""
        self.readers = 0
        """How many wait for `upkeep` to read: whoever holds it for long lets them through."""
        self._checked: set[str] = set()
        """Names of the indexes whose bodies were seen to be whole."""
        self.arriving_from: int | None = None
        """The journal's end when the cycle began that is arriving."""
        for name in _FOLDERS:
            (folder / name).mkdir(mode=0o700, exist_ok=True)
        files.sync_folder(folder)
        self._load()

    @property
    def heads(self) -> list[Head]:
        """Of all points, the oldest first."""
        with self.lock:
            based = [self.base] if self.base and not self.base.head.overwritten else []
            return [each.head for each in based + self.spans]

    @property
    def next_number(self) -> int:
        return 1 + max([head.last for head in self.heads] + [each.found for each in self.damages] + [0])

    def base_path(self, disk: str) -> Path:
        return self.folder / "base" / disk

    def index_path(self, head: Head) -> Path:
        return self.folder / "index" / f"{head.first:016x}-{head.last:016x}"

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Hold `upkeep`, ahead of work that can go on later."""
        with self.lock:
            self.readers += 1
        try:
            with self.upkeep:
                yield
        finally:
            with self.lock:
                self.readers -= 1

    def attachments(self, last: int) -> dict[str, bytes]:
        """Those of the point `last`: each as the latest span up to it brought it."""
        with self.lock:
            found: dict[str, bytes] = self.base.attachments() if self.base else {}
            for each in self.spans:
                if each.head.last <= last:
                    found |= each.attachments()
            return found

    def write_index(
        self, head: Head, changes: Mapping[str, Merging], attachments: Mapping[str, bytes], name: str = ""
    ) -> Index:
        """Durable under its name when this returns; it stands in no list yet."""
        path = self.folder / "index" / name if name else self.index_path(head)
        scratch = path.with_name(path.name + NEW)
        self.files.remove(scratch)
        writer = IndexWriter(self.files, scratch)
        for disk, each in changes.items():
            writer.section(disk, each.zeros, each.entries())
        for attached, data in attachments.items():
            writer.attach(attached, data)
        writer.finish(head)
        self.files.rename(scratch, path)
        self.files.sync_folder(path.parent)
        return open_index(path)

    def write_base(self, head: Head, attachments: Mapping[str, bytes]) -> None:
        """Twice, since it is all that says what the base is."""
        self.write_index(head, {}, attachments, "base.copy")
        base = self.write_index(head, {}, attachments, "base")
        with self.lock:
            self.base = base
            self.spans = [each for each in self.spans if each.head.last > head.last]

    def remove_indexes(self, gone: Sequence[Index]) -> None:
        for each in gone:
            self.files.remove(each.path)
            self._checked.discard(each.path.name)
        if gone:
            self.files.sync_folder(self.folder / "index")

    def needed_files(self) -> set[int]:
        """Numbers of the journal's files that something lies in, or will once what arrives is whole."""
        with self.lock:
            found = {number for each in self.spans for number in each.head.files}
            for opened in self.opened.values():
                found |= {layer.region.place >> FILE_SHIFT for layer in opened.layers}
            if self.arriving_from is not None:
                found |= set(range(self.arriving_from >> FILE_SHIFT, (self.journal.end >> FILE_SHIFT) + 1))
            return found

    def pin(self, token: str, numbers: Collection[int]) -> None:
        """Keep these points, in place of those that the token kept. Raises OSError."""
        with self.lock:
            write_pin(self.folder / "pins", self.files, token, numbers)
            self.pins = {**self.pins, token: tuple(numbers)}
            if not numbers:
                del self.pins[token]

    def add_damage(self, damage: Damage) -> None:
        """Remember it, unless it is known."""
        with self.lock:
            if damage not in self.damages:
                self.damages = (*self.damages, damage)
                self._write_damages()

    def drop_damages(self) -> None:
        """Forget those that the base is younger than and no point suffers from any more."""
        with self.lock:
            base, heads = self.base, self.heads
            left = tuple(
                each
                for each in self.damages
                if base is None
                or base.head.last < each.found
                or any(reason_lost(head, (each,)) for head in heads)
            )
            if left != self.damages:
                self.damages = left
                self._write_damages()

    def lose(self, index: Index, reason: str) -> None:
        """A span whose index cannot be used: the points from its first on are lost."""
        with self.lock:
            newest = self.heads[-1].last
            self.add_damage(Damage(first=index.head.first, found=newest, reason=reason))
            self.spans = [each for each in self.spans if each is not index]
        self.remove_indexes([index])

    def usable(self, index: Index, again: bool = False) -> bool:
        """Whether a span's index is what was written; one that is not is lost, and remembered as damage.

        It is read once in the life of this object, or `again`.
        """
        if index.path.name in self._checked and not again:
            return True
        try:
            index.require_body()
        except IndexDamaged as error:
            self.lose(
                index, f"the index of the receiver's cycles up to {index.head.last} is damaged: {error}"
            )
            return False
        self._checked.add(index.path.name)
        return True

    def _write_damages(self) -> None:
        path = self.folder / "damage"
        scratch = path.with_name(path.name + NEW)
        self.files.remove(scratch)
        self.files.write(scratch, 0, Damages(damages=self.damages).model_dump_json().encode())
        self.files.sync(scratch)
        self.files.rename(scratch, path)
        self.files.sync_folder(self.folder)

    def _load(self) -> None:
        for path in [*self.folder.glob(f"*{NEW}"), *self.folder.glob(f"*/*{NEW}")]:
            self.files.remove(path)
        damages = read_damages(self.folder / "damage")
        self.damages = damages or ()
        self.opened = read_opened(self.folder / "open")
        self.pins = read_pins(self.folder / "pins")
        self.base = self._load_base()
        self.spans, rests, unreadable = self._load_spans()
        self._find_gaps(unreadable)
        for rest in rests:
            self._finish(rest)
        ends = [head.end for head in self.heads] + [each.end for each in self.opened.values()]
        self.journal.settle(max(ends, default=0), self.needed_files())
        if damages is None:
            newest = self.heads[-1].last if self.heads else 0
            self.add_damage(
                Damage(first=1, found=newest, reason="the list of what is damaged was itself damaged")
            )

    def _load_base(self) -> Index | None:
        found: list[Index] = []
        for name in ("base", "base.copy"):
            try:
                each = open_index(self.folder / "index" / name)
                each.require_body()
                found.append(each)
            except (IndexDamaged, FileNotFoundError):
                continue
        found.sort(key=lambda each: (each.head.last, each.head.overwritten))
        return found[-1] if found else None

    def _load_spans(self) -> tuple[list[Index], list[Index], int]:
        """Spans that count; those that others stand for; and the last cycle of what cannot be read, or 0."""
        spans: list[Index] = []
        rests: list[Index] = []
        unreadable = 0
        covered = self.base.head.last if self.base else 0
        names = [match for path in (self.folder / "index").iterdir() if (match := _SPAN.fullmatch(path.name))]
        # Of those that begin alike the longest comes first.
        for match in sorted(names, key=lambda each: (int(each[1], 16), -int(each[2], 16))):
            first, last = int(match[1], 16), int(match[2], 16)
            path = self.folder / "index" / match[0]
            try:
                index = open_index(path)
                if (index.head.first, index.head.last) != (first, last):
                    raise IndexDamaged(f"{path.name}: it is that of another span")
            except IndexDamaged:
                unreadable = max(unreadable, last)
                self.files.remove(path)
                continue
            if last <= covered:
                rests.append(index)
            else:
                spans.append(index)
                covered = last
        return spans, rests, unreadable

    def _find_gaps(self, unreadable: int) -> None:
        expected = self.base.head.last + 1 if self.base else 1
        for first, last in [(each.head.first, each.head.last) for each in self.spans] + [(unreadable + 1, 0)]:
            if first > expected:
                self._missing(expected, first - 1)
            expected = max(expected, last + 1)

    def _missing(self, first: int, last: int) -> None:
        if any(each.first <= first and each.found >= last for each in self.damages):
            return
        newest = max([head.last for head in self.heads] + [last])
        reason = f"the index of the receiver's cycles {first} to {last} is missing or damaged"
        self.add_damage(Damage(first=first, found=newest, reason=reason))

    def _finish(self, rest: Index) -> None:
        """Give back the room of what a longer span or the base stands for, and its name."""
        counting = [
            span
            for span in self.spans
            if span.head.first <= rest.head.first and rest.head.last <= span.head.last
        ]
        with contextlib.suppress(IndexDamaged):  # then its room stays taken until its file goes
            for each in (rest, *counting):
                each.require_body()
            self._free_rest(rest, counting)
        self.remove_indexes([rest])

    def _free_rest(self, rest: Index, counting: Sequence[Index]) -> None:
        for section in rest.head.sections:
            places = rest.changes(section.disk).entries["at"]
            for span in counting:
                places = np.setdiff1d(places, span.changes(section.disk).entries["at"])
            self.journal.free(places)
