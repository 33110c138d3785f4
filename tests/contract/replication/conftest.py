"""Real machines and links, with what the tests of layers and the unit tests have."""

import sys
from pathlib import Path

_HERE = Path(__file__).parent
_UNIT = _HERE.parents[1] / "unit"
sys.path[:0] = [
    str(each) for each in (_UNIT / "machine", _UNIT / "replication", _HERE.parent / "machine", _HERE)
]
