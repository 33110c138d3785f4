"""`host show`: the processor, where memory is, and the devices."""

from collections import Counter
from typing import Any

from holdfast.cli.sheets.sheet import Sheet
from holdfast.cli.sheets.words import ranges, size


def host_sheet(host: dict[str, Any]) -> str:
    """The inventory of a host, in wire form."""
    sheet = Sheet()
    sheet.line("Name", host["name"])
    sheet.line("Kernel", host["kernel"])
    sheet.line("CPU", host["cpu_model"])
    sheet.line("CPUs", _count(host["cpus"]))
    kinds = Counter(cpu["kind"] for cpu in host["cpus"])
    if set(kinds) != {"uniform"}:
        sheet.line("Kinds", ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items())))
    sheet.line("Memory", f"{size(host['memory'])}, {size(host['memory_available'])} available")
    nodes = (
        (node["id"], ranges(node["cpus"]), size(node["memory"]), size(node["free"])) for node in host["nodes"]
    )
    sheet.rows("NUMA nodes", ("node", "cpus", "memory", "free"), nodes)
    devices = (
        (
            device["address"],
            device["kind"],
            f"{device['vendor']} {device['device']}",
            device["driver"],
            device["iommu_group"],
        )
        for device in host["devices"]
    )
    sheet.rows("Devices", ("address", "kind", "device", "driver", "iommu group"), devices)
    return sheet.text()


def _count(cpus: list[dict[str, Any]]) -> str:
    """`16 (1 socket, 8 cores), 2 offline`."""
    online = [cpu for cpu in cpus if cpu["online"]]
    sockets = len({cpu["socket"] for cpu in online})
    cores = len({(cpu["socket"], cpu["core"]) for cpu in online})
    shape = f"{sockets} socket{'s' * (sockets != 1)}, {cores} core{'s' * (cores != 1)}"
    offline = len(cpus) - len(online)
    return f"{len(online)} ({shape})" + (f", {offline} offline" if offline else "")
