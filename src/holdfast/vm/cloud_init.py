"""What a VM's cloud-init seed says. Pure: from the spec to the texts of the NoCloud files.

Formats: cloud-init documentation, "NoCloud", "User data formats" and "Networking config version 2".
Structures are written as JSON, which is YAML, so no text of a user can end a string or begin a key.
"""

import base64
import binascii
import json
import re
import struct
from collections.abc import Mapping, Sequence
from typing import Any

from holdfast.spec.errors import InvalidInput
from holdfast.spec.failover import FailoverAddress
from holdfast.spec.names import host_name
from holdfast.spec.vm import CloudInit, Nic

# Of a clone, cloud-init has run for another instance before: what names the machine is made anew, once.
_OWN_MACHINE_ID = """\
if [ "$(ls /var/lib/cloud/instances | wc -l)" -gt 1 ]; then
    rm -f /etc/machine-id /var/lib/dbus/machine-id
    systemd-machine-id-setup
    [ ! -d /var/lib/dbus ] || ln -s /etc/machine-id /var/lib/dbus/machine-id
fi
"""

MAX_USER_DATA = 512 * 1024
"""Bytes of UTF-8."""

_MAX_KEYS = 64
_MAX_KEY = 16 * 1024
_USER = re.compile(r"[a-z_][a-z0-9_-]{0,31}", re.ASCII)
_KEY_TYPES = (
    "ssh-ed25519",
    "ssh-rsa",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "sk-ssh-ed25519@openssh.com",
    "sk-ecdsa-sha2-nistp256@openssh.com",
)
_BEGINNINGS = (
    "#cloud-config",
    "#!",
    "#include",
    "#cloud-boothook",
    "#part-handler",
    "## template: jinja",
    "Content-Type: multipart",
    "MIME-Version:",
)
"""First words by which cloud-init knows what user data is; anything else it silently passes over."""


class BadCloudInit(InvalidInput):
    id = "bad-cloud-init"


def check_cloud_init(cloud_init: CloudInit) -> None:
    """Pass where a seed can be made of it.

    Raises:
        BadCloudInit: the user name, a key or the user data is none that cloud-init would take.
    """
    if cloud_init.user is not None and not _USER.fullmatch(cloud_init.user):
        raise BadCloudInit(
            f"{cloud_init.user[:64]!r} is not a usable user name",
            value=cloud_init.user[:200],
            cure="Use 1 to 32 lower-case ASCII letters, digits, '-' and '_'; begin with a letter or '_'.",
        )
    if len(cloud_init.ssh_keys) > _MAX_KEYS:
        raise BadCloudInit(
            f"{len(cloud_init.ssh_keys)} SSH keys are too many",
            value=len(cloud_init.ssh_keys),
            cure=f"Give at most {_MAX_KEYS} keys.",
        )
    for key in cloud_init.ssh_keys:
        _check_key(key)
    if cloud_init.user_data is not None:
        _check_user_data(cloud_init.user_data)


def seed_files(cloud_init: CloudInit, name: str, vm_id: str, nics: Sequence[Nic]) -> dict[str, str]:
    """Names and texts of the files on the seed disc of the VM `name`.

    Raises:
        BadCloudInit: see `check_cloud_init`.
    """
    check_cloud_init(cloud_init)
    # A new instance-id makes cloud-init run again: a clone gets host keys of its own.
    meta = {"instance-id": vm_id, "local-hostname": host_name(name)}
    network = {"version": 2, "ethernets": {nic.id: _ethernet(nic) for nic in nics}}
    user_data = cloud_init.user_data
    if user_data is None:
        user_data = "#cloud-config\n" + _yaml(_user_data(cloud_init, host_name(name)))
    own_id = ["cloud-init-per", "instance", "holdfast-machine-id", "sh", "-c", _OWN_MACHINE_ID]
    return {
        "user-data": user_data,
        "vendor-data": "#cloud-config\n" + _yaml({"bootcmd": [own_id]}),
        "meta-data": _yaml(meta),
        "network-config": _yaml(network),
    }


def readdressed_seed(
    instance: str, nics: Sequence[Nic], addresses: Mapping[str, FailoverAddress]
) -> dict[str, str]:
    """Names and texts of a seed that gives NICs of a guest, which is set up already, other addresses.

    cloud-init sets a network up for an instance that it does not know; what else it would do anew for one is
    told to be left alone ("Module reference": users, ssh, locale, apt, set_hostname).

    Args:
        instance: an id that this guest has not had yet.
        addresses: by the NIC's id; others ask by DHCP.
    """
    ethernets = {
        nic.id: _fixed(nic, addresses[nic.id]) if nic.id in addresses else _ethernet(nic) for nic in nics
    }
    as_it_is = {
        "users": [],
        "ssh_deletekeys": False,
        "preserve_hostname": True,
        "locale": "false",
        "apt": {"preserve_sources_list": True},
    }
    return {
        "user-data": "#cloud-config\n" + _yaml(as_it_is),
        "meta-data": _yaml({"instance-id": instance}),
        "network-config": _yaml({"version": 2, "ethernets": ethernets}),
    }


def _fixed(nic: Nic, wanted: FailoverAddress) -> dict[str, Any]:
    families = {each.version for each in wanted.addresses}
    found: dict[str, Any] = {
        "match": {"macaddress": nic.mac},
        "dhcp4": 4 not in families,
        "addresses": [str(each) for each in wanted.addresses],
        "optional": True,
    }
    for each in wanted.gateways:
        # Not as routes: cloud-init 22.4 makes ::/64 of the destination ::/0.
        found[f"gateway{each.version}"] = str(each)
    if wanted.dns:
        found["nameservers"] = {"addresses": [str(each) for each in wanted.dns]}
    return found


def _ethernet(nic: Nic) -> dict[str, Any]:
    return {
        "match": {"macaddress": nic.mac},
        "dhcp4": True,
        "dhcp-identifier": "mac",  # a clone begins with its source's machine-id, and must not share the lease
        "optional": True,
    }


def _user_data(cloud_init: CloudInit, host: str) -> dict[str, Any]:
    said: dict[str, Any] = {"hostname": host, "preserve_hostname": False, "ssh_pwauth": False}
    keys = list(cloud_init.ssh_keys)
    if cloud_init.user is None:
        # The image's own default user gets them.
        return {**said, "ssh_authorized_keys": keys} if keys else said
    user = {
        "name": cloud_init.user,
        "shell": "/bin/bash",
        "lock_passwd": True,
        "ssh_authorized_keys": keys,
    }
    if cloud_init.user == "root":
        return {**said, "users": [user], "disable_root": False}
    return {**said, "users": [{**user, "sudo": "ALL=(ALL) NOPASSWD:ALL"}]}


def _yaml(structure: dict[str, Any]) -> str:
    # Not escaped to ASCII: YAML 1.1 reads a JSON pair of surrogates as two characters.
    return json.dumps(structure, indent=1, ensure_ascii=False) + "\n"


def _check_key(key: str) -> None:
    """Of the one-line form of sshd(8), "AUTHORIZED_KEYS FILE FORMAT", without options."""
    kind, _, rest = key.strip().partition(" ")
    body = rest.partition(" ")[0]
    if len(key) > _MAX_KEY or kind not in _KEY_TYPES or not (key.isprintable() and _holds(body, kind)):
        raise BadCloudInit(
            f"{key[:40]!r} is not an SSH public key",
            value=key[:200],
            cure="Give the one line of a public key file, such as ~/.ssh/id_ed25519.pub.",
        )


def _holds(body: str, kind: str) -> bool:
    """Whether the base64 text is a key of this type (RFC 4253, section 6.6)."""
    try:
        blob = base64.b64decode(body, validate=True)
        (length,) = struct.unpack_from(">L", blob)
    except (binascii.Error, struct.error, ValueError):
        return False
    return blob[4 : 4 + length] == kind.encode() and len(blob) > 4 + length


def _check_user_data(text: str) -> None:
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise BadCloudInit(
            "the user data is not text that UTF-8 can carry", cure="Give user data in UTF-8."
        ) from error
    if size > MAX_USER_DATA:
        raise BadCloudInit(
            f"the user data has {size} bytes",
            value=size,
            cure=f"Give at most {MAX_USER_DATA} bytes; let it fetch the rest.",
        )
    if "\0" in text or not text.startswith(_BEGINNINGS):
        raise BadCloudInit(
            f"cloud-init takes no user data that begins with {text[:20]!r} or holds a zero byte",
            value=text[:20],
            cure="Begin it with `#cloud-config`, `#!`, or another of cloud-init's user data formats.",
        )
