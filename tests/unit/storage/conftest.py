"""Makes the VMDKs of this room importable beside its tests (importmode=importlib)."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
