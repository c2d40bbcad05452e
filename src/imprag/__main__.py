"""``python -m imprag``, the same as ``imprag``."""

import sys

from imprag.cli import main

sys.exit(main())
