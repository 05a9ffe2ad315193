"""`python -m ossicle` runs the command line, as `ossicle` does."""

import sys

from ossicle.cli import main

sys.exit(main())
