"""The command line's part for elastic models: `sort --ranks`, and `generate --budget`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from tinykron.errors import TinykronError


def add_options(sort: argparse.ArgumentParser) -> None:
    """Add what `sort` takes to train a grid, beside the exits, the text and the training."""
    of_grid = sort.add_argument_group("with --ranks, a grid of exits and numbers of Kronecker terms")
    of_grid.add_argument("--ranks", metavar="1,2,4", help="numbers of terms; all terms are always one")
    of_grid.add_argument(
        "--widths", metavar=".5,1", help="shares of the MLPs' units; all units are always one (default)"
    )
    of_grid.add_argument("--share", type=float, metavar="S", help="of a dense model's block matrices kept (default .5)")
    of_grid.add_argument("--teacher", metavar="MODEL", help="whom points follow (default: the dense or the full model)")
    of_grid.add_argument("--full", type=float, metavar="W", help="weight of the full model (default: as any point)")


def run(options: argparse.Namespace, folder: Path) -> int:
    """Run `sort` with --ranks on the model in a folder."""
    from tinykron.jobs import sort_grid

    for name in ("config", "method", "loss", "scale", "beside", "kind", "accumulate"):
        if getattr(options, name) is not None:
            raise TinykronError(f"--{name}: is for exits alone, found --ranks beside it")
    names = ("share", "distil", "draws", "full", "steps", "batch", "context", "lr", "seed")
    given = {name: getattr(options, name, None) for name in names}
    settings = sort_grid.Elastic(
        numbers("--exits", options.exits),
        numbers("--ranks", options.ranks),
        shares(options.widths),
        **{name: value for name, value in given.items() if value is not None},
    )
    found = sort_grid.train_grid(
        folder,
        options.out,
        settings,
        options.data,
        options.teacher,
        say=lambda line: print(line, file=sys.stderr, flush=True),
    )
    print(json.dumps(found.as_dict(), indent=2) if options.json else sort_grid.render(found))
    return 0


def numbers(name: str, text: str | None) -> tuple[int, ...]:
    """Return the whole numbers of "2,4,8". Raises TinykronError for any other text."""
    parts = (text or "").split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise TinykronError(f"{name}: expected whole numbers such as 2,4,8, found {text!r}")
    return tuple(int(part) for part in parts)


def shares(text: str | None) -> tuple[float, ...]:
    """Return the numbers of ".5,1", 1 alone for None. Raises TinykronError for any other text."""
    try:
        return (1.0,) if text is None else tuple(float(part) for part in text.split(","))
    except ValueError:
        raise TinykronError(f"--widths: expected shares such as .5,1, found {text!r}") from None


def budget_options(generate: argparse.ArgumentParser) -> None:
    """Add what `generate` takes to run a part of an elastic model."""
    generate.add_argument(
        "--budget", type=float, metavar="S", help="of an elastic model: the best point that takes a share S of its cost"
    )
    generate.add_argument("--budget-of", choices=("flops", "bytes"), default="flops", help="the cost (default flops)")


def within_budget(options: argparse.Namespace, folder: Path, model: Any) -> Any:
    """Return what a --budget leaves of the model of a folder, cut out; the model without one. Say what it is."""
    if options.budget is None:
        return model
    from tinykron import kron
    from tinykron.exits import pareto

    measured = pareto.read(folder)
    best = measured.best(options.budget, options.budget_of)
    costs = f"{best.flops / measured.full.flops:.2f} of the FLOPs, {best.bytes / measured.full.bytes:.2f} of the bytes"
    print(f"{best.point}: {costs}, held-out loss {best.loss:.3f} nats a token", file=sys.stderr)
    return kron.cut(model, *best.point)
