"""The example machines are a module of the tests."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
