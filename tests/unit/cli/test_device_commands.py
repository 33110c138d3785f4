"""`holdfast nic` and the other devices, as a person runs them."""

import json
from typing import Any

from command_line import run


def test_a_nic_is_added_moved_listed_and_removed(daemon: Any) -> None:
    run(daemon, "vm", "create", "web")
    added = run(daemon, "nic", "add", "web", "--switch", "lan", "--vlan", "20", "--format", "json")
    wire = json.loads(added.stdout)
    assert (wire["id"], wire["switch"], wire["vlan"], wire["guest_sees"]) == ("nic0", "lan", 20, True)
    assert "Free ports  7" in run(daemon, "nic", "add", "web").stdout
    assert run(daemon, "nic", "set", "web", "nic0").returncode == 2
    assert "dmz" in run(daemon, "nic", "set", "web", "nic0", "--switch", "dmz").stdout
    listed = run(daemon, "nic", "list", "web").stdout
    assert "dmz" in listed and "user-mode network" in listed and "GUEST SEES" in listed
    gone = run(daemon, "nic", "remove", "web", "nic0", "--force")
    assert gone.returncode == 0 and "cut off" in gone.stdout
    assert [
        nic["id"] for nic in json.loads(run(daemon, "nic", "list", "web", "--format", "json").stdout)
    ] == ["nic1"]
    assert run(daemon, "nic", "remove", "web", "nic0").returncode == 3


def test_a_usb_device_is_added_listed_and_removed(daemon: Any) -> None:
    run(daemon, "vm", "create", "web")
    added = json.loads(run(daemon, "usb", "add", "web", "046d:c31c", "--format", "json").stdout)
    assert (added["id"], added["device"], added["plugged"]) == ("usb0", "046d:c31c", True)
    assert run(daemon, "usb", "add", "web", "../046d").returncode == 2
    assert "046d:c31c" in run(daemon, "usb", "list", "web").stdout
    assert "Next start" in run(daemon, "usb", "remove", "web", "usb0").stdout
    assert run(daemon, "usb", "remove", "web", "usb0").returncode == 3
