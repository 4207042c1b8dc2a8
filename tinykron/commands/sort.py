"""`tinykron sort`: fine-tune a model so that chosen depths are models of their own."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from tinykron.commands.options import COUNT, LR, NATURAL, POSITIVE, SHARE, given, model, model_folder, numbers, show
from tinykron.errors import TinykronError

METHODS = ("sorted", "plain", "heads", "extracted", "balcony")
KINDS = ("text", "instructions", "questions")
LOSSES = ("mean", "sampled", "depth", "rotational")


def options(parser: argparse.ArgumentParser) -> None:
    """Add what `sort` takes."""
    model(parser)
    parser.add_argument("--exits", metavar="2,4,6", help="numbers of blocks to leave after; all blocks are always one")
    parser.add_argument("--out", metavar="DIR", required=True, help="folder to make")
    parser.add_argument("--config", metavar="FILE", help="settings in TOML, or sorted-llama-13b: the paper's")
    parser.add_argument("--method", choices=METHODS, help="sorted, or a baseline (default sorted)")
    parser.add_argument("--loss", choices=LOSSES, help="of sorted: how exits are weighted (default mean)")
    parser.add_argument("--distil", type=SHARE, metavar="SHARE", help="of an inner exit's loss: KL from the last exit")
    parser.add_argument("--draws", type=NATURAL, metavar="N", help="exits drawn in a step of --loss sampled")
    parser.add_argument("--scale", type=POSITIVE, metavar="E", help="by which depth weights grow (default 1)")
    parser.add_argument("--beside", metavar="plain,heads", help="methods to train as long, and to measure beside it")
    parser.add_argument("--kind", choices=KINDS, help="of the data: text (default), Alpaca's or TriviaQA's layout")
    parser.add_argument("--data", metavar="TEXT", help="file, or folder of text (default: what every Python carries)")
    parser.add_argument("--steps", type=COUNT, metavar="N", help="of training (default 300)")
    parser.add_argument("--batch", type=COUNT, metavar="N", help="windows or examples of a step (default 8)")
    parser.add_argument(
        "--accumulate", type=COUNT, metavar="N", help="batches whose gradients are averaged before a step (default 1)"
    )
    parser.add_argument(
        "--context", type=COUNT, metavar="N", help="tokens of a window (default 128) or example (default 512), at most"
    )
    parser.add_argument("--lr", type=LR, help="learning rate (default 5e-4)")


def run(options: argparse.Namespace) -> int:
    """Run `sort`."""
    from tinykron.jobs import sort

    chosen = given(options, "method kind loss distil draws scale steps batch accumulate context lr seed")
    if options.exits is not None:
        chosen["exits"] = numbers("--exits", options.exits)
    elif options.config is None:
        raise TinykronError("sort: expected --exits, such as 2,4,6, or --config")
    settings = sort.Sorting.read(options.config, **chosen) if options.config else sort.Sorting(**chosen)
    beside = options.beside.split(",") if options.beside else []
    return _run(settings, model_folder(options), options.out, options.data, beside, options.json)


def sort_by(recipe: str, folder: Path, out: str, source: str | None, seed: int | None, as_json: bool) -> int:
    """Run a recipe that trains exits."""
    from tinykron.jobs import sort

    chosen = {} if seed is None else {"seed": seed}
    return _run(sort.Sorting.read(recipe, **chosen), folder, out, source, [], as_json)


def _run(settings: Any, folder: Path, out: str, source: str | None, beside: list[str], as_json: bool) -> int:
    from tinykron.jobs import sort

    found = sort.sort(folder, out, settings, source, beside)
    show(as_json, found.as_dict, lambda: sort.render(found))
    return 0
