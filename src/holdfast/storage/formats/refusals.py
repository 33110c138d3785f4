"""Why a file is not taken as an image."""

from holdfast.spec.errors import InvalidInput, Unsupported


class ImageNotRecognized(InvalidInput):
    id = "image-not-recognized"


class ImageKindMismatch(InvalidInput):
    id = "image-kind-mismatch"


class ImageTruncated(InvalidInput):
    id = "image-truncated"


class ImageDamaged(InvalidInput):
    id = "image-damaged"


class ImageSizeAbsurd(InvalidInput):
    id = "image-size-absurd"


class DiskLargerThanPlanned(InvalidInput):
    id = "disk-larger-than-planned"


class DiskHoldsMoreThanPlanned(InvalidInput):
    id = "disk-holds-more-than-planned"


class ImageHasBackingFile(InvalidInput):
    id = "image-has-backing-file"


class ImageHasDataFile(InvalidInput):
    id = "image-has-data-file"


class ImageNamesOtherFiles(InvalidInput):
    id = "image-names-other-files"


class ImageEncrypted(Unsupported):
    id = "image-encrypted"


class ImageFeatureUnknown(Unsupported):
    id = "image-feature-unknown"


class DiskTooLargeForVmdk(Unsupported):
    id = "disk-too-large-for-vmdk"
