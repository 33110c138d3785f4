"""Whether this host lets programs use io_uring: old kernels lack it, containers and admins forbid it."""

import ctypes
import os
from pathlib import Path

_SETUP = 425  # io_uring_setup(2); the same number on every architecture
_PARAMS_BYTES = 120  # struct io_uring_params, linux/io_uring.h
_libc = ctypes.CDLL(None, use_errno=True)


def io_uring_usable(root: Path = Path("/")) -> bool:
    """Ask the kernel for a ring and give it back.

    kernel.io_uring_disabled counts too: its value 1 would let root have one, but not a VM's own user.
    """
    try:
        if (root / "proc/sys/kernel/io_uring_disabled").read_text(errors="replace").strip() != "0":
            return False
    except OSError:
        pass  # kernels below 6.6 have no such setting
    _libc.syscall.restype = ctypes.c_long
    fd = _libc.syscall(ctypes.c_long(_SETUP), ctypes.c_uint(1), ctypes.create_string_buffer(_PARAMS_BYTES))
    if fd < 0:
        return False
    os.close(fd)
    return True
