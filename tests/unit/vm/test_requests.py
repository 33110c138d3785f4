"""What a request about a VM may say: a MAC address ends up in QEMU's arguments and in dnsmasq's files."""

import pytest
from pydantic import ValidationError

from holdfast.spec.vm_requests import NewNic


@pytest.mark.parametrize("mac", ["52:54:00:AB:cd:01", "52-54-00-ab-cd-01"])
def test_a_mac_is_kept_in_one_form(mac: str) -> None:
    assert NewNic(mac=mac).mac == "52:54:00:ab:cd:01"


@pytest.mark.parametrize(
    "mac",
    [
        "",
        "zz",
        "52:54:00:ab:cd",
        "52:54:00:ab:cd:01\n",
        "52:54:00:ab:cd:01,x",
        "52:54:00:ab:cd:0\u0661",
        "01:00:5e:00:00:01",
        "ff:ff:ff:ff:ff:ff",
        "00:00:00:00:00:00",
    ],
)
def test_what_is_no_mac_of_a_single_nic_is_refused(mac: str) -> None:
    with pytest.raises(ValidationError):
        NewNic(mac=mac)
