"""`tinykron compress`: a smaller checkpoint within budgets."""

from __future__ import annotations

import argparse

from tinykron.commands.options import COUNT, POSITIVE, model, model_folder, show
from tinykron.errors import TinykronError
from tinykron.support.progress import say

PRESETS = "kngpt2, kroneckerbert8, kroneckerbert21, krony-pt-92m (67m to 96m)"


def options(parser: argparse.ArgumentParser) -> None:
    """Add what `compress` takes."""
    model(parser)
    for budget, what in (("params", "parameters"), ("bytes", "bytes"), ("flops", "matrices' FLOPs a token")):
        text = f"share of the {what} up to 1, or their number"
        parser.add_argument(f"--{budget}", type=POSITIVE, metavar="N", help=text)
    parser.add_argument("--preset", metavar="NAME", help=f"a paper's shapes: {PRESETS}")
    parser.add_argument("--plan", metavar="FILE", help="a plan.json of an earlier run, edited or not")
    texts = "text file or folder (default: the text of every Python)"
    parser.add_argument("--calibration", metavar="TEXT", help=texts)
    parser.add_argument("--tokens", type=COUNT, default=8192, metavar="N", help="to calibrate on (default 8192)")
    parser.add_argument("--plain", action="store_true", help="do not calibrate: plain nearest sums")
    parser.add_argument("--out", metavar="DIR", help="folder to make (required unless --dry-run)")
    parser.add_argument("--merge", metavar="DIR", help="also make a dense folder with the same logits")
    dtypes = ("float32", "bfloat16", "float16")
    parser.add_argument("--dtype", choices=dtypes, help="of the files (default: as stored)")
    parser.add_argument("--dry-run", action="store_true", help="say sizes and memory, and do nothing")


def run(options: argparse.Namespace) -> int:
    """Run `compress`: exit code 1 where a budget is not kept."""
    from tinykron.jobs import compress

    if not options.out and not options.dry_run:
        raise TinykronError("compress: expected --out DIR, or --dry-run")
    budget = compress.Budget(options.params, options.bytes, options.flops, options.preset, options.plan)
    outcome = compress.compress(
        model_folder(options),
        None if options.dry_run else options.out,
        budget,
        options.calibration,
        options.tokens,
        not options.plain,
        options.merge,
        options.dtype,
        say=print if options.dry_run else say,
        seed=options.seed or 0,
    )
    if outcome is None:
        return 0
    show(options.json, outcome.as_dict, lambda: compress.render(outcome))
    return 0 if all(outcome.promises.values()) else 1
