"""`tinykron train`: a small model from a configuration."""

from __future__ import annotations

import argparse
import json

from tinykron.commands.options import SAYS_TEXT


def options(parser: argparse.ArgumentParser) -> None:
    """Add what `train` takes."""
    shipped = "TOML file (default: that of the shipped gpt2-tiny)"
    parser.add_argument("recipe", nargs="?", metavar="CONFIG", help=shipped)
    parser.add_argument("--data", metavar="TEXT", help=f"text file or folder (default: {SAYS_TEXT})")
    parser.add_argument("--out", metavar="DIR", required=True, help="folder to make")


def run(options: argparse.Namespace) -> int:
    """Run `train`."""
    from tinykron import data
    from tinykron.jobs import pretrain

    recipe = options.recipe or data.shipped_folder("weights") / "gpt2-tiny.toml"
    history = pretrain.train(recipe, options.out, options.data, options.seed)
    result = {"out": options.out, "steps": history.steps, "perplexity": history.perplexities[-1][1]}
    print(json.dumps(result) if options.json else f"{options.out}: held-out perplexity {result['perplexity']:.2f}")
    return 0
