"""`python -m virtue_pl` is the command `virtue-pl`."""

import sys

from virtue_pl.cli.main import main

sys.exit(main())
