"""What a TPM or the way to it may answer instead of a result, in words."""

from holdfast.spec.errors import Failed, InvalidInput, TimedOut, Unsupported
from holdfast.trust.tpm.numbers import Code

_FORMAT_ONE = 0x080

_WORDS = {
    0x100: ("not-started", "it was not started"),
    0x101: ("failure", "it is in failure mode"),
    0x124: ("auth-type", "this kind of authorization is not allowed"),
    0x125: ("auth-missing", "an authorization is missing"),
    0x128: ("pcr-changed", "a PCR has changed since the policy was checked"),
    0x143: ("command-code", "it does not know this command"),
    0x148: ("nv-locked", "the NV index is locked"),
    0x149: ("nv-authorization", "the NV index may not be read in this way"),
    0x14A: ("nv-uninitialized", "the NV index was never written"),
    0x082: ("attributes", "the attributes do not fit"),
    0x083: ("hash", "it does not support this hash"),
    0x084: ("value", "a value is out of range or does not fit"),
    0x085: ("hierarchy", "the hierarchy is disabled or not the right one"),
    0x08B: ("handle", "there is no such handle"),
    0x08E: ("auth-fail", "the authorization is wrong"),
    0x092: ("scheme", "it does not support this scheme"),
    0x095: ("size", "a size does not fit"),
    0x096: ("symmetric", "it does not support this symmetric algorithm"),
    0x09A: ("insufficient", "the command ended too early"),
    0x09D: ("policy-fail", "the policy is not satisfied"),
    0x09F: ("integrity", "the integrity check failed: made for another TPM, or altered"),
    0x0A2: ("bad-auth", "the authorization is wrong"),
    0x0A6: ("curve", "it does not support this curve"),
    0x902: ("object-memory", "it has no room for another object"),
    0x903: ("session-memory", "it has no room for another session"),
    0x905: ("session-handles", "it has no room for another session"),
    0x908: ("yielded", "it was interrupted"),
    0x90A: ("testing", "it is testing itself"),
    0x921: ("lockout", "it is locked out after too many wrong authorizations"),
    0x922: ("retry", "it is busy"),
    0x923: ("nv-unavailable", "its NV memory cannot be reached now"),
}

_CURES = {
    "not-started": "Restart the machine that it belongs to.",
    "auth-fail": "Clear the password of the TPM's owner and endorsement hierarchies.",
    "bad-auth": "Clear the password of the TPM's owner and endorsement hierarchies.",
    "hierarchy": "Enable the TPM's owner and endorsement hierarchies in the firmware setup.",
    "lockout": "Wait until the TPM's lockout is over, or reset it with `tpm2_dictionarylockout`.",
    "object-memory": "Use the TPM by its resource manager, /dev/tpmrm0.",
    "session-memory": "Use the TPM by its resource manager, /dev/tpmrm0.",
    "session-handles": "Use the TPM by its resource manager, /dev/tpmrm0.",
}


class TpmRefused(Failed):
    """The TPM answered a command with an error.

    Part 2, section 6.6: codes of format one carry in bits 6 and 8 to 11 which handle, parameter or
    session is meant; `reason` is without that.
    """

    id = "tpm-refused"

    def __init__(self, command: Code, code: int) -> None:
        known = _WORDS.get(plain_code(code))
        self.command = command
        self.code = code
        self.reason = known[0] if known else ""
        """A short name of the usual errors (part 2's TPM_RC_, in kebab case), or empty."""
        words = f"{known[1]} ({code:#05x})" if known else f"error {code:#05x}"
        super().__init__(
            f"the TPM refused {command_name(command)}{_place(code)}: {words}",
            value=code,
            cure=_CURES.get(self.reason, "Check the TPM with `tpm2_getcap properties-fixed`."),
            detail={"command": command_name(command)},
        )


class TpmNotReachable(Failed):
    id = "tpm-not-reachable"


class TpmTooSlow(TimedOut):
    id = "tpm-too-slow"


class TpmForged(Failed):
    """What came over the bus does not carry the TPM's own proof."""

    id = "tpm-forged"


class NoTpm(Unsupported):
    id = "no-tpm"


class BadTpmAddress(InvalidInput):
    id = "bad-tpm-address"


def plain_code(code: int) -> int:
    """A response code without the place that it names."""
    return _FORMAT_ONE | (code & 0x3F) if code & _FORMAT_ONE else code


def command_name(command: Code) -> str:
    """Such as `TPM2_NV_Read`."""
    return f"TPM2_{command.name}"


def _place(code: int) -> str:
    if not code & _FORMAT_ONE or not code >> 8 & 0xF:
        return ""
    number = code >> 8 & 0xF
    if code & 0x40:
        return f", parameter {number}"
    return f", session {number - 8}" if number >= 8 else f", handle {number}"
