"""`python -m tinykron` is the command `tinykron`."""

from __future__ import annotations

import sys

from tinykron.commands.cli import main

sys.exit(main())
