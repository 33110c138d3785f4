"""Real QEMU gets the same example machines as the golden files."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2] / "unit" / "machine"), str(Path(__file__).parent)]
