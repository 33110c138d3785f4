"""Files that a built image holds besides its packages, as texts by path. Pure.

What they are for: a console on the first serial port, DHCP on every NIC even where cloud-init says
nothing, a guest agent that answers early, and a boot without what only costs time in a VM.
"""

from holdfast.storage.apt_sources import Archives

MASKED = (
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "man-db.timer",
)
"""Units that work through the disk while a guest starts."""

ENABLED = ("systemd-networkd.service", "systemd-resolved.service", "systemd-timesyncd.service")

_KERNEL_ARGUMENTS = "console=tty0 console=ttyS0"

_AGENT = """\
[Unit]
# Answers before cloud-init and the network are done; it needs only its port.
DefaultDependencies=no
After=systemd-remount-fs.service systemd-tmpfiles-setup.service
Conflicts=shutdown.target
Before=shutdown.target
"""

_WAIT_ONLINE = """\
[Service]
# The first NIC with an address will do, and none is waited for long. They are named one by one,
# because cloud-init marks them as optional and none of those would ever count.
ExecStart=
ExecStart=-/bin/sh -c 'cd /sys/class/net && exec /lib/systemd/systemd-networkd-wait-online \\
  --any --timeout=10 $$(printf -- "-i %%s " e*)'
"""

_DHCP = """\
# Every NIC that nothing else, such as cloud-init, has configured.
[Match]
Type=ether

[Network]
DHCP=yes

[DHCPv4]
ClientIdentifier=mac
"""

_NETWORKD = """\
[DHCPv4]
# By the NIC's address: a clone has the machine-id of its source.
DUIDType=link-layer
"""

_CLOUD = """\
# Other sources are never there: looking for them costs time at each boot.
datasource_list: [NoCloud, None]
system_info:
  network:
    renderers: [networkd]
# Making a locale takes long; C.UTF-8 is always there.
locale: false
# Making RSA and DSA keys takes seconds; every SSH client of today knows these.
ssh_genkeytypes: [ed25519, ecdsa]
# Asks which disk a BIOS boots from; this system starts by UEFI.
grub_dpkg: {enabled: false}
"""

_INITRAMFS = """\
# What a virtual disk can be attached to, and no more.
MODULES=list
COMPRESS=zstd
"""

_INITRAMFS_HOOK = """\
#!/bin/sh
# Drivers of the disks and CD drives that a VM can have.
[ "$1" = prereqs ] && exit 0
. /usr/share/initramfs-tools/hook-functions
manual_add_modules virtio_pci virtio_blk virtio_scsi sd_mod sr_mod nvme ext4
"""

_GRUB_DEFAULTS = f"""\
GRUB_DEFAULT=0
GRUB_TIMEOUT=0
GRUB_DISTRIBUTOR=Debian
GRUB_CMDLINE_LINUX_DEFAULT=""
GRUB_CMDLINE_LINUX="{_KERNEL_ARGUMENTS}"
GRUB_DISABLE_OS_PROBER=true
"""


def first_files() -> dict[str, str]:
    """Files that must be there before packages with scripts are installed; 0644."""
    return {"etc/initramfs-tools/conf.d/holdfast.conf": _INITRAMFS}


def first_programs() -> dict[str, str]:
    """Likewise; 0755."""
    return {"etc/initramfs-tools/hooks/holdfast": _INITRAMFS_HOOK}


def root_files(archives: Archives, root_uuid: str, esp_serial: str) -> dict[str, str]:
    """Texts by path from the root, for the finished system; 0644."""
    esp_uuid = f"{esp_serial[:4]}-{esp_serial[4:]}".upper()
    # Without archives of ours the guest keeps the list that mmdebstrap has written.
    sources = {"etc/apt/sources.list": "", "etc/apt/sources.list.d/debian.sources": archives.deb822()}
    return {
        **(sources if archives.entries else {}),
        "etc/cloud/cloud.cfg.d/90_holdfast.cfg": _CLOUD,
        "etc/default/grub.d/holdfast.cfg": _GRUB_DEFAULTS,
        "etc/default/locale": "LANG=C.UTF-8\n",
        "etc/fstab": f"UUID={root_uuid} / ext4 errors=remount-ro 0 1\n"
        f"UUID={esp_uuid} /boot/efi vfat umask=0077,noauto,x-systemd.automount 0 2\n",
        "etc/hostname": "debian\n",
        "etc/hosts": "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n",
        "etc/machine-id": "",
        "etc/systemd/network/80-dhcp.network": _DHCP,
        "etc/systemd/networkd.conf.d/holdfast.conf": _NETWORKD,
        "etc/systemd/system/qemu-guest-agent.service.d/early.conf": _AGENT,
        "etc/systemd/system/systemd-networkd-wait-online.service.d/short.conf": _WAIT_ONLINE,
        "boot/grub/grub.cfg": boot_menu(root_uuid),
    }


def boot_menu(root_uuid: str) -> str:
    """GRUB's menu in the root file system, until the guest's own update-grub writes another.

    It goes by the links that Debian's kernel packages keep, so it also fits a newer kernel.
    """
    entries = [
        f"menuentry '{title}' {{\n  linux /vmlinuz{ending} root=UUID={root_uuid} ro {_KERNEL_ARGUMENTS}\n"
        f"  initrd /initrd.img{ending}\n}}\n"
        for title, ending in (("Debian", ""), ("Debian, the kernel before", ".old"))
    ]
    return f"set timeout=0\nset default=0\nsearch --no-floppy --fs-uuid --set=root {root_uuid}\n" + "".join(
        entries
    )


def esp_menu(root_uuid: str) -> str:
    """What the signed GRUB reads first, in its folder of the EFI system partition."""
    return f"search.fs_uuid {root_uuid} root\nset prefix=($root)'/boot/grub'\nconfigfile $prefix/grub.cfg\n"
