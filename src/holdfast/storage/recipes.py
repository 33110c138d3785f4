"""What the images that we build are made of: suites and packages. Words only."""

from dataclasses import dataclass

from holdfast.spec.errors import NotFound

_BOOT = ("linux-image-cloud-amd64", "initramfs-tools", "zstd", "shim-signed", "grub-efi-amd64", "efibootmgr")
_SYSTEM = ("systemd-sysv", "systemd-resolved", "systemd-timesyncd", "libpam-systemd", "udev", "dbus")
_CLOUD = ("cloud-init", "cloud-guest-utils", "qemu-guest-agent", "openssh-server", "sudo", "e2fsprogs")
_HANDY = ("ca-certificates", "dosfstools", "iproute2", "iputils-ping", "less", "nano")


class UnknownRecipe(NotFound):
    id = "unknown-recipe"


@dataclass(frozen=True)
class Recipe:
    """One image: a Debian suite with a signed boot chain, cloud-init and the guest agent."""

    name: str
    title: str
    suite: str
    packages: tuple[str, ...] = (*_BOOT, "grub-efi-amd64-signed", *_SYSTEM, *_CLOUD, *_HANDY)


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe("debian-12", "Debian 12 (bookworm)", "bookworm"),
        Recipe("debian-13", "Debian 13 (trixie)", "trixie"),
    )
}


def recipe_named(name: str) -> Recipe:
    """Raises:
    UnknownRecipe: there is none of that name.
    """
    try:
        return RECIPES[name]
    except KeyError as error:
        raise UnknownRecipe(
            f"there is no recipe {name[:64]!r}",
            value=name[:200],
            cure=f"Use one of: {', '.join(RECIPES)}.",
        ) from error
