"""The numbers of TPM 2.0 that we use: Trusted Platform Module Library, part 2, section 6 to 8."""

from enum import IntEnum, IntFlag


class Algorithm(IntEnum):
    """TPM_ALG_ID, section 6.3."""

    RSA = 0x0001
    AES = 0x0006
    KEYEDHASH = 0x0008
    XOR = 0x000A
    SHA256 = 0x000B
    SHA384 = 0x000C
    SHA512 = 0x000D
    NULL = 0x0010
    ECDSA = 0x0018
    ECDAA = 0x001A
    ECC = 0x0023
    CFB = 0x0043


class Curve(IntEnum):
    """TPM_ECC_CURVE, section 6.4."""

    P256 = 0x0003
    P384 = 0x0004


class Code(IntEnum):
    """TPM_CC, section 6.5.2, by their names there."""

    CreatePrimary = 0x0131
    Startup = 0x0144
    ActivateCredential = 0x0147
    NV_Read = 0x014E
    PolicySecret = 0x0151
    Create = 0x0153
    Load = 0x0157
    Quote = 0x0158
    Unseal = 0x015E
    FlushContext = 0x0165
    PolicyCommandCode = 0x016C
    NV_ReadPublic = 0x0169
    ReadPublic = 0x0173
    StartAuthSession = 0x0176
    GetCapability = 0x017A
    PCR_Read = 0x017E
    PolicyPCR = 0x017F
    PCR_Extend = 0x0182


class Permanent(IntEnum):
    """TPM_RH, section 7.4."""

    OWNER = 0x40000001
    NULL = 0x40000007
    PASSWORD = 0x40000009
    ENDORSEMENT = 0x4000000B


class Attributes(IntFlag):
    """TPMA_OBJECT, section 8.3."""

    FIXED_TPM = 1 << 1
    FIXED_PARENT = 1 << 4
    SENSITIVE_DATA_ORIGIN = 1 << 5
    USER_WITH_AUTH = 1 << 6
    ADMIN_WITH_POLICY = 1 << 7
    NO_DA = 1 << 10
    RESTRICTED = 1 << 16
    DECRYPT = 1 << 17
    SIGN = 1 << 18


class Session(IntFlag):
    """TPMA_SESSION, section 8.4."""

    CONTINUE = 1 << 0
    DECRYPT = 1 << 5
    """The first parameter of the command is encrypted."""
    ENCRYPT = 1 << 6
    """The first parameter of the response is encrypted."""


class Tag(IntEnum):
    """TPM_ST, section 6.9."""

    NO_SESSIONS = 0x8001
    SESSIONS = 0x8002


class SessionKind(IntEnum):
    """TPM_SE, section 6.11."""

    HMAC = 0x00
    POLICY = 0x01


EK_CERTIFICATE_RSA = 0x01C00002
"""NV index: TCG EK Credential Profile for TPM Family 2.0, section 2.2.1.4."""
EK_CERTIFICATE_ECC = 0x01C0000A
EK_RSA = 0x81010001
"""Persistent handle: TCG TPM v2.0 Provisioning Guidance, section 7.8."""
EK_ECC = 0x81010002


class HandleKind(IntEnum):
    """TPM_HT as the first handle of its kind, section 7.2."""

    HMAC_SESSIONS = 0x02000000
    POLICY_SESSIONS = 0x03000000
    OBJECTS = 0x80000000
    PERSISTENT = 0x81000000
