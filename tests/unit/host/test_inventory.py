"""The inventory of a hybrid host with two NUMA nodes, and of stranger ones."""

from pathlib import Path

import pytest
from fake_host import hybrid_host, put

from holdfast.host.inventory import inventory, parse_cpu_list, read_cpus, read_inventory, read_nodes
from holdfast.spec.units import GIB


def test_kinds_of_cores_and_their_places(tmp_path: Path) -> None:
    cpus = read_cpus(hybrid_host(tmp_path))
    assert [cpu.kind for cpu in cpus] == ["performance"] * 4 + ["efficiency"] * 4
    assert [cpu.core for cpu in cpus] == [0, 0, 4, 4, 8, 9, 10, -1]
    assert [cpu.node for cpu in cpus] == [0] * 4 + [1] * 4
    assert [cpu.online for cpu in cpus] == [True] * 7 + [False]


def test_nodes_and_memory(tmp_path: Path) -> None:
    found = read_inventory(hybrid_host(tmp_path))
    assert [(node.id, node.cpus, node.memory, node.free) for node in found.nodes] == [
        (0, (0, 1, 2, 3), 16 * GIB, 8 * GIB),
        (1, (4, 5, 6), 16 * GIB, 8 * GIB),
    ]
    assert (found.memory, found.memory_available) == (32 * GIB, 16 * GIB)
    assert (found.name, found.kernel) == ("rock", "6.12.0-amd64")
    assert found.cpu_model == "Intel(R) Core(TM) i5"


def test_devices_are_named_and_bridges_left_out(tmp_path: Path) -> None:
    devices = read_inventory(hybrid_host(tmp_path)).devices
    assert [(d.address, d.kind, d.vendor, d.device, d.driver, d.iommu_group) for d in devices] == [
        ("0000:01:00.0", "gpu", "NVIDIA Corporation", "AD102 [GeForce RTX 4090]", "vfio-pci", 12),
        ("0000:02:00.0", "nvme", "Samsung Electronics Co Ltd", "NVMe SSD Controller SM981", "nvme", 13),
        ("0000:03:00.0", "network", "Intel Corporation", "Ethernet Controller I225-V", "igc", None),
        ("0000:04:00.0", "storage", "0xabcd", "0x0001", None, 14),
    ]


@pytest.mark.parametrize("measure", ["cpu_capacity", "cpufreq/base_frequency"])
def test_kinds_by_capacity_where_counters_do_not_tell(tmp_path: Path, measure: str) -> None:
    put(tmp_path, {f"sys/devices/system/cpu/{name}": "0-2\n" for name in ("present", "online")})
    for cpu, value in enumerate((1024, 1009, 446)):
        put(tmp_path, {f"sys/devices/system/cpu/cpu{cpu}/{measure}": f"{value}\n"})
    assert [cpu.kind for cpu in read_cpus(tmp_path)] == ["performance", "performance", "efficiency"]


def test_favoured_cores_are_not_another_kind(tmp_path: Path) -> None:
    put(tmp_path, {f"sys/devices/system/cpu/{name}": "0-1\n" for name in ("present", "online")})
    put(tmp_path, {f"sys/devices/system/cpu/cpu{cpu}/cpu_capacity": f"{1024 - cpu * 15}\n" for cpu in (0, 1)})
    assert {cpu.kind for cpu in read_cpus(tmp_path)} == {"uniform"}


def test_a_kernel_without_numa_is_one_node(tmp_path: Path) -> None:
    put(
        tmp_path,
        {
            "proc/meminfo": "MemTotal: 1048576 kB\nMemAvailable: 524288 kB\n",
            "sys/devices/system/cpu/online": "0-1\n",
        },
    )
    assert [(node.cpus, node.memory, node.free) for node in read_nodes(tmp_path)] == [((0, 1), GIB, GIB // 2)]


@pytest.mark.parametrize(
    ("text", "cpus"), [("", ()), ("0\n", (0,)), ("0-2,5", (0, 1, 2, 5)), ("1-1", (1,)), ("65535", (65535,))]
)
def test_cpu_lists(text: str, cpus: tuple[int, ...]) -> None:
    assert parse_cpu_list(text) == cpus


@pytest.mark.parametrize("text", ["a", "3-1", "0-99999999999", "1-2-3"])
def test_senseless_cpu_lists_are_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_cpu_list(text)


async def test_this_very_machine_has_cpus_and_memory() -> None:
    found = await inventory()
    assert found.cpus and found.nodes and 0 < found.memory_available <= found.memory
