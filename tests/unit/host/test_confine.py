"""A process that has given its rights up has none, and ends with its parent."""

import os
import subprocess
import sys

import pytest

SCRIPT = """
import os
from holdfast.host.confine import confine
from holdfast.host.processes import Identity
confine(Identity(64321, 64321), {parent})
print(os.getresuid(), os.getresgid(), os.getgroups())
try:
    open("/etc/shadow").read()
except PermissionError:
    print("refused")
try:
    os.setuid(0)
except PermissionError:
    print("for good")
"""


def confined(parent: int) -> subprocess.CompletedProcess[str]:
    script = SCRIPT.format(parent=parent)
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has rights to give up")
def test_rights_are_given_up_for_good() -> None:
    said = confined(os.getpid()).stdout.splitlines()
    ids = "(64321, 64321, 64321)"
    assert said == [f"{ids} {ids} []", "refused", "for good"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has rights to give up")
def test_it_does_not_outlive_a_parent_that_is_gone() -> None:
    done = confined(1)
    assert done.returncode == 1
    assert done.stdout == ""
