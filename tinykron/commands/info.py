"""`tinykron info`: what a checkpoint is."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from tinykron.commands.options import POSITIVE, model, model_folder, show


def options(parser: argparse.ArgumentParser) -> None:
    """Add what `info` takes."""
    model(parser)
    parser.add_argument("--ratio", type=POSITIVE, default=2.0, help="by which the factors are smaller (default 2)")


def run(options: argparse.Namespace) -> int:
    """Run `info`."""
    from tinykron import checkpoint
    from tinykron.jobs import describe

    folder = model_folder(options)
    found = describe.describe(folder, checkpoint.load(folder), options.ratio)
    show(options.json, lambda: asdict(found), lambda: describe.render(found))
    return 0
