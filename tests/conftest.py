"""Makes the project's modules importable, from whichever folder the tests are started."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
