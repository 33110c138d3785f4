"""Whether the kernel's clock is synchronised, by adjtimex(2); no service is asked."""

import ctypes
import os
import struct

_STA_UNSYNC = 0x0040  # linux/timex.h
_TIME_ERROR = 5
_STATUS_AT = 40  # offset of `status` in struct timex of 64-bit Linux: modes, offset, freq, maxerror, esterror
_SIZE = 256  # struct timex has 208 bytes

_libc = ctypes.CDLL(None, use_errno=True)


def clock_synchronised() -> bool:
    """Whether something (NTP, PTP, the hypervisor's agent) keeps the clock right.

    Raises:
        OSError: the kernel does not tell.
    """
    timex = ctypes.create_string_buffer(_SIZE)
    state = _libc.adjtimex(timex)
    if state < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    (status,) = struct.unpack_from("i", timex.raw, _STATUS_AT)
    return state != _TIME_ERROR and not status & _STA_UNSYNC
