"""`python -m parlance` is the command `parlance`."""

import sys

from parlance.cli.main import main

sys.exit(main())
