"""The command line's verb for exits: `sort`."""

from __future__ import annotations

import argparse
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from tinykron.commands.generate import calibrate
from tinykron.commands.sort_grid import numbers, run
from tinykron.errors import TinykronError

METHODS = ("sorted", "plain", "heads", "extracted", "balcony")
KINDS = ("text", "instructions", "questions")
LOSSES = ("mean", "sampled", "depth", "rotational")


def sort_options(sub: argparse.ArgumentParser) -> None:
    """Add what `sort` takes beside a model."""
    sub.add_argument("--exits", metavar="2,4,6", help="numbers of blocks to leave after; all blocks are always one")
    sub.add_argument("--out", metavar="DIR", help="folder to make (--calibrate alone needs none)")
    sub.add_argument("--config", metavar="FILE", help="settings in TOML, or sorted-llama-13b: the paper's")
    sub.add_argument("--method", choices=METHODS, help="sorted, or a baseline (default sorted)")
    sub.add_argument("--loss", choices=LOSSES, help="of sorted: how exits are weighted (default mean)")
    sub.add_argument("--distil", type=float, metavar="SHARE", help="of an inner exit's loss: KL from the last exit")
    sub.add_argument("--draws", type=int, metavar="N", help="exits drawn in a step of --loss sampled")
    sub.add_argument("--scale", type=float, metavar="E", help="by which depth weights grow (default 1)")
    sub.add_argument("--beside", metavar="plain,heads", help="methods to train as long, and to measure beside it")
    sub.add_argument("--kind", choices=KINDS, help="of the data: text (default), Alpaca's or TriviaQA's layout")
    sub.add_argument("--data", metavar="TEXT", help="file, or folder of text (default: what every Python carries)")
    sub.add_argument("--steps", type=int, metavar="N", help="of training (default 300)")
    sub.add_argument("--batch", type=int, metavar="N", help="windows or examples of a step (default 8)")
    sub.add_argument(
        "--accumulate", type=int, metavar="N", help="batches whose gradients are averaged before a step (default 1)"
    )
    sub.add_argument(
        "--context", type=int, metavar="N", help="tokens of a window (default 128) or example (default 512), at most"
    )
    sub.add_argument("--lr", type=float, help="learning rate (default 5e-4)")


def sort(options: argparse.Namespace, folder: Path) -> int:
    """Run `sort`; with --ranks, of a grid of exits and numbers of terms; then --calibrate what came out."""
    if options.calibrate is not None and options.out is None:
        return calibrate(options, folder)
    if options.out is None:
        raise TinykronError("sort: expected --out DIR, or --calibrate with --prompts for the folder itself")
    code = run(options, folder) if options.ranks is not None else _sort(options, folder)
    return calibrate(options, Path(options.out)) if code == 0 and options.calibrate is not None else code


def _sort(options: argparse.Namespace, folder: Path) -> int:
    from tinykron.jobs import sort

    names: list[str] = [field.name for field in fields(sort.Sorting) if field.name != "exits"]
    given: dict[str, Any] = {name: value for name in names if (value := getattr(options, name, None)) is not None}
    if options.exits is not None:
        given["exits"] = numbers("--exits", options.exits)
    elif options.config is None:
        raise TinykronError("sort: expected --exits, such as 2,4,6, or --config")
    settings = sort.Sorting.read(options.config, **given) if options.config else sort.Sorting(**given)
    beside = options.beside.split(",") if options.beside else []
    return _run(settings, folder, options.out, options.data, beside, options.json)


def sort_by(recipe: str, folder: Path, out: str, source: str | None, seed: int | None, as_json: bool) -> int:
    """Run a recipe that trains exits."""
    from tinykron.jobs import sort

    given = {} if seed is None else {"seed": seed}
    return _run(sort.Sorting.read(recipe, **given), folder, out, source, [], as_json)


def _run(settings: Any, folder: Path, out: str, source: str | None, beside: list[str], as_json: bool) -> int:
    from tinykron.jobs import sort

    found = sort.sort(folder, out, settings, source, beside)
    print(json.dumps(found.as_dict(), indent=2) if as_json else sort.render(found))
    return 0
