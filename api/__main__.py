"""``python -m api`` is ``factor-search``."""

import sys

from api.cli import main

sys.exit(main())
