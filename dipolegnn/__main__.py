"""``python -m dipolegnn``: the command where its script is not on the path."""

import sys

from dipolegnn.cli import main

sys.exit(main())
