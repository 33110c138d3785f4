"""Small VMs in a live daemon: their images, and the request that makes one."""

from live_host import LiveHost
from small_guest import SmallGuest


def with_small_images(host: LiveHost, guest: SmallGuest) -> LiveHost:
    host.add_image(guest.kernel, "small-kernel")
    host.add_image(guest.initrd, "small-initrd")
    return host


def small_vm(name: str, append: str, **more: object) -> dict[str, object]:
    """The request for a small VM."""
    return {
        "name": name,
        "cpus": 1,
        "memory": "96MiB",
        "kernel": {"kernel": "small-kernel", "initrd": "small-initrd", "append": append},
        "disks": [{"size": "16MiB"}],
        "nics": [],
        **more,
    }
