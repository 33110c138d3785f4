"""Why a source is not taken: nothing has been changed when one of these is raised."""

from holdfast.spec.errors import Failed, InvalidInput, NotFound, Unsupported


class DescriptorTooLarge(InvalidInput):
    id = "descriptor-too-large"


class DescriptorDamaged(InvalidInput):
    id = "descriptor-damaged"


class DescriptorUnsafe(InvalidInput):
    id = "descriptor-unsafe"


class DescriptorMissing(InvalidInput):
    id = "descriptor-missing"


class DescriptorAmbiguous(InvalidInput):
    id = "descriptor-ambiguous"


class MachineNotThere(NotFound):
    id = "machine-not-in-appliance"


class AmountAbsurd(InvalidInput):
    id = "amount-absurd"


class ArchiveDamaged(InvalidInput):
    id = "archive-damaged"


class ArchiveTruncated(InvalidInput):
    id = "archive-truncated"


class ArchivePathUnsafe(InvalidInput):
    id = "archive-path-unsafe"


class ArchiveHasLink(InvalidInput):
    id = "archive-has-link"


class ArchiveDuplicateName(InvalidInput):
    id = "archive-duplicate-name"


class ArchiveTooLarge(InvalidInput):
    id = "archive-too-large"


class ArchiveMemberUnknown(Unsupported):
    id = "archive-member-unknown"


class ManifestDamaged(InvalidInput):
    id = "manifest-damaged"


class ManifestMismatch(Failed):
    id = "manifest-mismatch"


class CertificateDamaged(InvalidInput):
    id = "certificate-damaged"


class ArchiveCompressed(Unsupported):
    id = "archive-compressed"
