"""``python -m composer_distill`` is the command ``composer-distill``."""

import sys

from composer_distill.cli import main

sys.exit(main())
