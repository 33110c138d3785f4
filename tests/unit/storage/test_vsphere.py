"""Addresses, areas and names of files: the small pure parts of reading from vSphere."""

import ssl
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.spec.errors import HoldfastError
from holdfast.spec.vsphere import BadVsphereAddress, parse_address
from holdfast.storage.remote_disk import Area, Piece, Remaining, after, merged
from holdfast.storage.vsphere.certificate import Trust
from holdfast.storage.vsphere.lease import ExportedDisk
from holdfast.storage.vsphere.refusals import VsphereDiskUnreadable
from holdfast.storage.vsphere.remote import server_of
from holdfast.storage.vsphere.transfer import Server, flat_url, within

AREAS = st.lists(st.builds(Area, st.integers(0, 400), st.integers(0, 60)), max_size=12)


def test_an_address_is_taken_apart() -> None:
    found = parse_address("vsphere://administrator%40vsphere.local@vc.example:8443/Lab/web%2F1")
    assert (found.host, found.port, found.user) == ("vc.example", 8443, "administrator@vsphere.local")
    assert (found.datacenter, found.vm, found.server) == ("Lab", "web/1", "vc.example:8443")
    assert parse_address("vsphere://[::1]/web").server == "[::1]:443"
    assert parse_address("vsphere://vc.example/").vm is None


@pytest.mark.parametrize(
    "address",
    [
        *("vsphere://me:secret@vc/web", "https://vc/web", "vsphere:///web", "vsphere://vc/a/b/c"),
        *("vsphere://vc:x/web", "vsphere://[::1/web", "vsphere://vc/web?x=1", ""),
    ],
)
def test_what_is_no_address_is_refused_and_no_password_repeated(address: str) -> None:
    with pytest.raises(BadVsphereAddress) as refused:
        parse_address(address)
    assert "secret" not in str(refused.value.as_dict())


@given(st.text(max_size=80))
def test_any_text_is_taken_or_refused(text: str) -> None:
    try:
        parse_address(f"vsphere://{text}")
    except HoldfastError as refused:
        assert refused.id == "bad-vsphere-address"


def marks(areas: tuple[Area, ...]) -> set[int]:
    return {byte for area in areas for byte in range(area.start, area.end)}


@given(AREAS, st.integers(0, 50))
def test_merged_areas_are_in_order_and_hold_all(areas: list[Area], gap: int) -> None:
    found = merged(areas, gap)
    assert marks(found) >= marks(tuple(areas))
    assert all(first.end + gap < second.start for first, second in pairwise(found))
    if not gap:
        assert marks(found) == marks(tuple(areas))


@given(AREAS, st.integers(0, 500))
def test_only_what_lies_behind_a_position_is_left(areas: list[Area], position: int) -> None:
    whole = merged(areas, 0)
    assert marks(after(whole, position)) == {byte for byte in marks(whole) if byte >= position}


@given(AREAS, st.lists(st.integers(0, 500), max_size=5))
def test_what_is_taken_from_the_front_is_all_of_it_once(areas: list[Area], ends: list[int]) -> None:
    whole = merged(areas, 0)
    remaining, taken = Remaining(whole), []
    for end in (*sorted(ends), 500):
        part = remaining.take(end)
        assert all(each.end <= end for each in part)
        taken += part
    assert marks(merged(taken, 0)) == marks(whole)
    assert sum(each.length for each in taken) == len(marks(whole))


@given(AREAS, st.integers(0, 400), st.integers(1, 99), st.integers(0, 500))
def test_of_a_piece_only_what_was_asked_for_is_passed_on(
    areas: list[Area], offset: int, length: int, reached: int
) -> None:
    whole = merged(areas, 0)
    piece = Piece(offset, bytes((offset + at) % 251 for at in range(length)))
    parts = within(piece, whole, reached)
    if offset + length <= reached:
        assert parts == []
        return
    found = {part.offset + at: byte for part in parts for at, byte in enumerate(part.data)}
    assert found == {at: at % 251 for at in marks(whole) if offset <= at < offset + length}


async def test_only_its_own_server_is_told_the_session() -> None:
    async def cookie() -> str:
        return "vmware_soap_session=x"

    context = ssl.create_default_context()
    server = Server("https://vc:443", context, cookie)
    for own, told in ((True, "vmware_soap_session=x"), (False, "")):
        trust = Trust(ssl.create_default_context(), "AA", "thumbprint")
        found = server_of(ExportedDisk("https://esx/nfc/1", trust, own), server)
        assert await found.cookie() == told and found.context is trust.context


def test_the_content_of_a_disk_is_named_by_its_descriptor() -> None:
    url = flat_url("https://vc:443", "[ds 1] web/we b.vmdk", "Lab%2f1/DC")
    assert url == "https://vc:443/folder/web/we%20b-flat.vmdk?dcPath=Lab%252f1%2FDC&dsName=ds%201"
    for file in ("web.vmdk", "[ds] ../x.vmdk", "[ds] a/../../x.vmdk", "[ds] x.vmx", ""):
        with pytest.raises(VsphereDiskUnreadable):
            flat_url("https://vc:443", file, "DC")
