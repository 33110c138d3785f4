"""The certificates of the hand-over from 2011 to 2023, and platform keys that belong to distributions.

Known by the SHA-256 of their DER, as Microsoft publishes them ("Windows Secure Boot Key Creation and
Management Guidance") and Debian's package `ovmf` and virt-firmware carry them. When one expires is
read out of the certificate itself. Pure.
"""

from dataclasses import dataclass
from typing import Literal

OWNER = "77fa9abd-0359-4d32-bd60-28f4e78f784b"
"""The signature owner that Microsoft asks for (same guidance)."""


@dataclass(frozen=True)
class MicrosoftCertificate:
    id: str
    name: str
    """Its common name."""
    variable: Literal["KEK", "db"]
    generation: Literal[2011, 2023]
    fingerprint: str
    """SHA-256 of the DER, 64 hexadecimal digits."""
    successors: tuple[str, ...] = ()
    """Ids of those of 2023 that take over its work."""


CERTIFICATES = (
    MicrosoftCertificate(
        "windows-pca-2011",
        "Microsoft Windows Production PCA 2011",
        "db",
        2011,
        "e8e95f0733a55e8bad7be0a1413ee23c51fcea64b3c8fa6a786935fddcc71961",
        ("windows-uefi-ca-2023",),
    ),
    MicrosoftCertificate(
        "uefi-ca-2011",
        "Microsoft Corporation UEFI CA 2011",
        "db",
        2011,
        "48e99b991f57fc52f76149599bff0a58c47154229b9f8d603ac40d3500248507",
        ("uefi-ca-2023", "option-rom-uefi-ca-2023"),
    ),
    MicrosoftCertificate(
        "kek-ca-2011",
        "Microsoft Corporation KEK CA 2011",
        "KEK",
        2011,
        "a1117f516a32cefcba3f2d1ace10a87972fd6bbe8fe0d0b996e09e65d802a503",
        ("kek-2k-ca-2023",),
    ),
    MicrosoftCertificate(
        "windows-uefi-ca-2023",
        "Windows UEFI CA 2023",
        "db",
        2023,
        "076f1fea90ac29155ebf77c17682f75f1fdd1be196da302dc8461e350a9ae330",
    ),
    MicrosoftCertificate(
        "uefi-ca-2023",
        "Microsoft UEFI CA 2023",
        "db",
        2023,
        "f6124e34125bee3fe6d79a574eaa7b91c0e7bd9d929c1a321178efd611dad901",
    ),
    MicrosoftCertificate(
        "option-rom-uefi-ca-2023",
        "Microsoft Option ROM UEFI CA 2023",
        "db",
        2023,
        "e5be3e64c6e66a281457ecdece0d6d0787577aad2a3a0144262c10c14ba8d8f1",
    ),
    MicrosoftCertificate(
        "kek-2k-ca-2023",
        "Microsoft Corporation KEK 2K CA 2023",
        "KEK",
        2023,
        "3cd3f0309edae228767a976dd40d9f4affc4fbd5218f2e8cc3c9dd97e8ac6f9d",
    ),
)

BY_ID = {each.id: each for each in CERTIFICATES}
BY_FINGERPRINT = {each.fingerprint: each for each in CERTIFICATES}

PLATFORM_KEYS = {
    "2f569e8edaf9657dc4951c29598725255c7f821472db71374211fe44d082546f": "Windows OEM Devices PK 2023",
    "5fb05ed84c5170d542ed6a7b7487dd57b8faedb02f7e107b0409e1d22cac4169": "Debian's OVMF",
    "7f122fab825041c2b0c67696bb151db6f39fed7df2d1104107f5b892b354ef5c": "Red Hat's and Fedora's OVMF",
}
"""Platform keys that Holdfast or a distribution puts into variable stores: their VMs are ours to keep
current. Any other PK is somebody's own, and so are the decisions about it."""
