"""`python -m earshot` is `earshot`."""

import sys

from earshot.cli import main

sys.exit(main())
