"""A process of ours that is about to read what nobody vouches for gives up its rights first. No state.

It does so itself, after it has loaded its code: whom it becomes may be unable to read that code.
"""

import ctypes
import os
import signal

from holdfast.host.processes import Identity

_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38  # prctl(2)
_libc = ctypes.CDLL(None, use_errno=True)


def confine(identity: Identity | None, parent: int) -> None:
    """Become `identity` (None: nobody else), for good; end when `parent` does. Call before any thread.

    Raises:
        OSError: the kernel would not have it.
    """
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    if identity:
        os.setgroups(identity.groups)
        os.setresgid(identity.gid, identity.gid, identity.gid)
        os.setresuid(identity.uid, identity.uid, identity.uid)
    # Changing the user has taken the wish away.
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        raise SystemExit(1)


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, value, 0, 0, 0):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
