"""What can stand between this host and a VM of vSphere."""

from holdfast.spec.errors import Conflict, Failed, InvalidInput, NotFound, TimedOut, Unsupported

BUSY = "TaskInProgress"
"""Value of a VsphereRefused: something else is being done with the VM there."""


class VsphereUnreachable(Failed):
    id = "vsphere-unreachable"


class VsphereCertificateUnknown(Conflict):
    """The value is the certificate's SHA-256 thumbprint."""

    id = "vsphere-certificate-unknown"


class VsphereCertificateChanged(Conflict):
    """The value is the new certificate's SHA-256 thumbprint."""

    id = "vsphere-certificate-changed"


class VsphereCertificateUnusable(Unsupported):
    """The value is the certificate's SHA-256 thumbprint."""

    id = "vsphere-certificate-unusable"


class VsphereLoginRefused(InvalidInput):
    id = "vsphere-login-refused"


class VsphereVmNotFound(NotFound):
    id = "vsphere-vm-not-found"


class VsphereVmAmbiguous(Conflict):
    id = "vsphere-vm-ambiguous"


class VsphereRefused(Failed):
    """The server said no; the value is the name of its fault."""

    id = "vsphere-refused"


class VsphereDiskUnreadable(Unsupported):
    id = "vsphere-disk-unreadable"


class VsphereTransferFailed(Failed):
    id = "vsphere-transfer-failed"


class VsphereLeaseLost(Failed):
    id = "vsphere-lease-lost"


class ChangesUnknown(Failed):
    id = "vsphere-changes-unknown"


class VsphereTimedOut(TimedOut):
    id = "vsphere-timed-out"


class VsphereVmRunsAgain(Conflict):
    id = "vsphere-vm-runs-again"


class VsphereShutdownTimedOut(TimedOut):
    id = "vsphere-shutdown-timed-out"
