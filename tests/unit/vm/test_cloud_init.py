"""Texts of the seed, read back by a YAML parser of their own."""

import base64
import contextlib
import struct

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from holdfast.spec.vm import CloudInit, Nic
from holdfast.vm.cloud_init import MAX_USER_DATA, BadCloudInit, check_cloud_init, seed_files


def make_key(kind: str = "ssh-ed25519", comment: str = "me@example") -> str:
    blob = struct.pack(">L", len(kind)) + kind.encode() + struct.pack(">L", 32) + bytes(range(32))
    return f"{kind} {base64.b64encode(blob).decode()} {comment}".rstrip()


NICS = (Nic(id="nic0", mac="52:54:00:00:00:01"), Nic(id="nic1", mac="52:54:00:00:00:02"))
ID = "0190aaaa-0000-7000-8000-000000000001"


def seed(cloud_init: CloudInit, name: str = "My VM") -> dict[str, object]:
    files = seed_files(cloud_init, name, ID, NICS)
    assert set(files) == {"user-data", "vendor-data", "meta-data", "network-config"}
    return {key: yaml.safe_load(text) for key, text in files.items()}


def test_a_user_with_keys() -> None:
    key = make_key()
    files = seed(CloudInit(user="ann", ssh_keys=(key,)))
    assert files["user-data"] == {
        "hostname": "my-vm",
        "preserve_hostname": False,
        "ssh_pwauth": False,
        "users": [
            {
                "name": "ann",
                "shell": "/bin/bash",
                "lock_passwd": True,
                "ssh_authorized_keys": [key],
                "sudo": "ALL=(ALL) NOPASSWD:ALL",
            }
        ],
    }
    assert files["meta-data"] == {"instance-id": ID, "local-hostname": "my-vm"}


def test_each_nic_is_known_by_its_mac_and_never_waited_for() -> None:
    network = seed(CloudInit())["network-config"]
    assert network == {
        "version": 2,
        "ethernets": {
            nic.id: {
                "match": {"macaddress": nic.mac},
                "dhcp4": True,
                "dhcp-identifier": "mac",
                "optional": True,
            }
            for nic in NICS
        },
    }


def test_keys_without_a_user_go_to_the_images_own() -> None:
    key = make_key()
    said = seed(CloudInit(ssh_keys=(key,)))["user-data"]
    assert isinstance(said, dict)
    assert said["ssh_authorized_keys"] == [key]
    assert "users" not in said


def test_root_may_log_in_where_it_is_the_user() -> None:
    said = seed(CloudInit(user="root", ssh_keys=(make_key(),)))["user-data"]
    assert isinstance(said, dict)
    assert said["disable_root"] is False


def test_user_data_given_whole_wins() -> None:
    text = "#cloud-config\npackages: [nginx]\n"
    files = seed_files(CloudInit(user="ann", user_data=text), "x", ID, ())
    assert files["user-data"] == text


@pytest.mark.parametrize(
    "cloud_init",
    [
        CloudInit(user=""),
        CloudInit(user="Ann"),
        CloudInit(user="ann\n"),
        CloudInit(user="a:b"),
        CloudInit(user="1a"),
        CloudInit(user="a" * 33),
        CloudInit(ssh_keys=("",)),
        CloudInit(ssh_keys=("ssh-ed25519",)),
        CloudInit(ssh_keys=("ssh-ed25519 AAAA x",)),
        CloudInit(ssh_keys=("ssh-dss " + make_key().split()[1],)),
        CloudInit(ssh_keys=(make_key().replace("ssh-ed25519", "ssh-rsa", 1),)),
        CloudInit(ssh_keys=(make_key() + "\nssh-rsa AAAA",)),
        CloudInit(ssh_keys=(make_key(comment="\u2028x"),)),
        CloudInit(ssh_keys=('command="x" ' + make_key(),)),
        CloudInit(ssh_keys=(make_key(),) * 65),
        CloudInit(user_data=""),
        CloudInit(user_data="packages: [nginx]"),
        CloudInit(user_data="#cloud-config\n" + "x" * MAX_USER_DATA),
        CloudInit(user_data="#cloud-config\n\0"),
    ],
)
def test_what_cloud_init_would_not_take_is_refused(cloud_init: CloudInit) -> None:
    with pytest.raises(BadCloudInit):
        check_cloud_init(cloud_init)


def test_text_beyond_utf_8_is_refused() -> None:
    with pytest.raises(BadCloudInit):
        check_cloud_init(CloudInit.model_construct(user_data="#cloud-config\n\ud800"))


@given(user=st.text(max_size=40), comment=st.text(max_size=80), name=st.text(max_size=63))
def test_no_text_breaks_out_of_its_place(user: str, comment: str, name: str) -> None:
    key = make_key(comment=comment)
    with contextlib.suppress(BadCloudInit):
        said = seed(CloudInit(user=user, ssh_keys=(key,)), name)["user-data"]
        assert isinstance(said, dict)
        assert set(said) <= {"hostname", "preserve_hostname", "ssh_pwauth", "users", "disable_root"}
        (only,) = said["users"]
        assert only["name"] == user
        assert only["ssh_authorized_keys"] == [key]


@given(comment=st.text(st.characters(exclude_categories=("C", "Z")), max_size=80))
def test_a_key_with_any_printable_comment_comes_back_as_it_was(comment: str) -> None:
    key = make_key(comment=comment)
    said = seed(CloudInit(user="ann", ssh_keys=(key,)))["user-data"]
    assert isinstance(said, dict)
    assert said["users"][0]["ssh_authorized_keys"] == [key]


def test_a_clone_gets_a_machine_id_of_its_own_once() -> None:
    ((per, how_often, name, *command),) = seed(CloudInit())["vendor-data"]["bootcmd"]
    assert (per, how_often, name) == ("cloud-init-per", "instance", "holdfast-machine-id")
    assert command[:2] == ["sh", "-c"] and "systemd-machine-id-setup" in command[2]
