"""The rig of the tests of layers serves those of replication too."""

import sys
from pathlib import Path

_CONTRACT = Path(__file__).parents[1] / "machine"
sys.path[:0] = [
    str(Path(__file__).parents[2] / "unit" / "machine"),
    str(_CONTRACT),
    str(Path(__file__).parent),
]
