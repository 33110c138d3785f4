"""Platform configuration registers: which are meant, what they hold, and the policy over them."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from holdfast.trust.tpm.numbers import Algorithm, Code
from holdfast.trust.tpm.wire import Reader, TpmNonsense, u8, u16, u32

PCR_COUNT = 24
_MAX_BANKS = 16
_MAX_SELECT = 32

PcrValues = Mapping[int, bytes]
"""SHA-256 values by the number of their PCR."""


@dataclass(frozen=True)
class PcrSelection:
    """PCRs 0 to 23 of the SHA-256 bank, in rising order (TPML_PCR_SELECTION, part 2, section 10.9.7)."""

    pcrs: tuple[int, ...]

    @classmethod
    def of(cls, pcrs: Iterable[int]) -> "PcrSelection":
        """Raises ValueError for a number that is no PCR."""
        chosen = tuple(sorted(set(pcrs)))
        if any(not 0 <= pcr < PCR_COUNT for pcr in chosen):
            raise ValueError(f"PCRs are 0 to {PCR_COUNT - 1}, not {chosen}")
        return cls(chosen)

    def encode(self) -> bytes:
        bits = sum(1 << pcr for pcr in self.pcrs)
        return u32(1) + u16(Algorithm.SHA256) + u8(3) + bits.to_bytes(3, "little")

    @classmethod
    def read(cls, reader: Reader) -> "PcrSelection":
        """Raises TpmNonsense where PCRs of another bank are selected, or such above 23."""
        count = reader.u32()
        if count > _MAX_BANKS:
            raise TpmNonsense(f"a selection of {count} PCR banks", value=count)
        chosen = 0
        for _ in range(count):
            bank, size = reader.u16(), reader.u8()
            if size > _MAX_SELECT:
                raise TpmNonsense(f"a PCR selection of {size} bytes", value=size)
            bits = int.from_bytes(reader.take(size), "little")
            if bits and (bank != Algorithm.SHA256 or bits >> PCR_COUNT):
                raise TpmNonsense("PCRs of a bank other than SHA-256 are selected", value=bank)
            chosen |= bits
        return cls(tuple(pcr for pcr in range(PCR_COUNT) if chosen >> pcr & 1))

    def digest(self, values: PcrValues) -> bytes:
        """What a quote and PolicyPCR say of these values: SHA-256 over them in rising order.

        Raises KeyError where one is missing.
        """
        return hashlib.sha256(b"".join(values[pcr] for pcr in self.pcrs)).digest()

    def policy(self, values: PcrValues) -> bytes:
        """The policy that holds while the PCRs have these values (part 3, section 23.7, PolicyPCR)."""
        start = bytes(hashlib.sha256().digest_size)
        step = u32(Code.PolicyPCR) + self.encode() + self.digest(values)
        return hashlib.sha256(start + step).digest()

    def activation_policy(self, values: PcrValues) -> bytes:
        """Like `policy`, and for ActivateCredential only (part 3, section 23.11, PolicyCommandCode)."""
        step = u32(Code.PolicyCommandCode) + u32(Code.ActivateCredential)
        return hashlib.sha256(self.policy(values) + step).digest()
