"""The algebra of layers, against a model that knows what every layer holds."""

import random
from dataclasses import dataclass, field

import pytest

from holdfast.spec.disk_requests import own_layers
from holdfast.spec.units import GIB
from holdfast.spec.vm import Disk, VmSpec, VolumeFormat
from holdfast.vm import layers
from holdfast.vm.layers import Direction, Merge

EMPTY = VmSpec(cpus=1, memory=GIB)


def spec(*disks: Disk) -> VmSpec:
    return EMPTY.model_copy(update={"disks": disks})


def disk(*chain: str, id: str = "disk0", **more: object) -> Disk:
    return Disk.model_validate({"id": id, "volume": chain[0], "below": chain[1:], "size": GIB, **more})


def test_a_chain_gets_a_top_and_gives_it_back() -> None:
    before = spec(disk("disk0-1", "disk0"), disk("disk1", id="disk1"))
    tops = {"disk0": "disk0-2", "disk1": "disk1-1"}
    after = layers.with_tops(before, tops)
    assert [own_layers(each) for each in after.disks] == [
        ("disk0-2", "disk0-1", "disk0"),
        ("disk1-1", "disk1"),
    ]
    assert layers.with_tops(after, tops) == after
    assert layers.without_tops(after, tops) == before
    assert layers.without_tops(before, tops) == before
    assert layers.depth(after) == 3


@pytest.mark.parametrize(
    ("disk_id", "taken", "wanted"),
    [
        ("disk0", (), "disk0-1"),
        ("disk0", ("disk0", "disk0-7", "disk0-10"), "disk0-11"),
        ("disk1", ("disk1", "disk10-4", "disk1-x"), "disk1-1"),
    ],
)
def test_the_next_name_is_above_all_that_are_taken(disk_id: str, taken: tuple[str, ...], wanted: str) -> None:
    assert layers.next_layer(disk_id, taken) == wanted


def test_only_a_layer_that_nothing_needs_and_one_stands_on_may_be_merged() -> None:
    shared = [spec(disk("disk0-2", "disk0")), spec(disk("disk0-1", "disk0"))]
    assert layers.mergeable(shared) == []
    needed = [spec(disk("disk0-1", "disk0")), spec(disk("disk0"))]
    assert layers.mergeable(needed) == []
    free = [spec(disk("disk0-2", "disk0-1", "disk0")), spec(disk("disk0-1", "disk0"))]
    assert layers.mergeable(free) == [Merge("disk0", "disk0", "disk0-1")]


def test_a_raw_layer_that_goes_up_leaves_a_qcow2_one() -> None:
    raw = disk("disk0-1", "disk0", format="raw")
    up = layers.merged(spec(raw), Merge("disk0", "disk0", "disk0-1"), Direction.UP).disks[0]
    assert (up.volume, up.below, up.format) == ("disk0-1", (), VolumeFormat.QCOW2)
    down = layers.merged(spec(raw), Merge("disk0", "disk0", "disk0-1"), Direction.DOWN).disks[0]
    assert (down.volume, down.below, down.format) == ("disk0", (), VolumeFormat.RAW)


@dataclass
class Model:
    """A VM of one disk whose layers are dictionaries from block to value."""

    chance: random.Random
    current: VmSpec = field(default_factory=lambda: spec(disk("disk0")))
    kept: dict[str, tuple[VmSpec, dict[int, int]]] = field(default_factory=dict)
    content: dict[str, dict[int, int]] = field(default_factory=lambda: {"disk0": {}})
    serial: int = 0

    def specs(self) -> list[VmSpec]:
        return [self.current, *(each for each, _ in self.kept.values())]

    def shown(self, of: VmSpec) -> dict[int, int]:
        found: dict[int, int] = {}
        for layer in reversed(own_layers(of.disks[0])):
            found |= self.content[layer]
        return found

    def write(self) -> None:
        self.serial += 1
        self.content[self.current.disks[0].volume][self.chance.randrange(8)] = self.serial

    def _put_on(self, below: VmSpec) -> None:
        name = layers.next_layer("disk0", layers.named(self.specs())["disk0"])
        self.content[name] = {}
        self.current = layers.with_tops(below, {"disk0": name})

    def checkpoint(self) -> None:
        self.serial += 1
        self.kept[str(self.serial)] = (self.current, self.shown(self.current))
        self._put_on(self.current)

    def apply(self) -> None:
        if self.kept:
            self._put_on(self.kept[self.chance.choice(sorted(self.kept))][0])

    def delete(self) -> None:
        if self.kept:
            del self.kept[self.chance.choice(sorted(self.kept))]

    def merge(self) -> None:
        found = layers.mergeable(self.specs())
        if not found:
            return
        merge, way = self.chance.choice(found), self.chance.choice([*Direction])
        both = self.content[merge.lower] | self.content[merge.upper]
        self.content[merge.upper if way is Direction.UP else merge.lower] = both
        self.current = layers.merged(self.current, merge, way)
        self.kept = {key: (layers.merged(of, merge, way), was) for key, (of, was) in self.kept.items()}
        assert layers.gone(merge, way) not in layers.named(self.specs())["disk0"]

    def tidy(self) -> None:
        named = layers.named(self.specs())["disk0"]
        assert named <= self.content.keys()
        self.content = {name: held for name, held in self.content.items() if name in named}


@pytest.mark.parametrize("seed", range(60))
def test_nothing_that_is_done_to_layers_changes_what_is_read(seed: int) -> None:
    model = Model(random.Random(seed))
    for _ in range(120):
        before = model.shown(model.current)
        verb = model.chance.choice(("write", "write", "checkpoint", "apply", "delete", "merge", "tidy"))
        getattr(model, verb)()
        if verb in ("checkpoint", "delete", "merge", "tidy"):
            assert model.shown(model.current) == before
        for of, was in model.kept.values():
            assert model.shown(of) == was
    while layers.mergeable(model.specs()):
        model.merge()
    model.tidy()
    model.kept.clear()
    while layers.mergeable(model.specs()):
        model.merge()
    model.tidy()
    assert len(model.content) == 1
