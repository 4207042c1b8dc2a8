"""`python -m tinykron` is the command `tinykron`."""

from __future__ import annotations

import sys

from tinykron.cli import main

sys.exit(main())
