"""Makes the boots of the unit tests importable here too (importmode=importlib)."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "unit/trust"))
