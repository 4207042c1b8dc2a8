"""`tinykron grid`: one model in which each depth, number of terms and width is a model."""

from __future__ import annotations

import argparse

from tinykron.commands.options import (
    COUNT,
    LR,
    NATURAL,
    SAYS_TEXT,
    SHARE,
    given,
    model,
    model_folder,
    numbers,
    show,
)
from tinykron.errors import TinykronError
from tinykron.support.numbers import option, real
from tinykron.support.progress import say


def options(parser: argparse.ArgumentParser) -> None:
    """Add what `grid` takes."""
    model(parser)
    parser.add_argument("--exits", metavar="2,4,6", required=True, help="numbers of blocks; all blocks are always one")
    parser.add_argument("--ranks", metavar="1,2,4", required=True, help="numbers of terms; all terms are always one")
    parser.add_argument(
        "--widths", metavar=".5,1", help="shares of the MLPs' units; all units are always one (default)"
    )
    text = "of a dense model's block matrices kept (default .5)"
    parser.add_argument("--share", type=option(real, above=0.0, below=1.0), metavar="S", help=text)
    parser.add_argument("--teacher", metavar="MODEL", help="whom points follow (default: the dense or the full model)")
    parser.add_argument("--full", type=LR, metavar="W", help="weight of the full model (default: as any point)")
    parser.add_argument("--distil", type=SHARE, metavar="SHARE", help="of a point's loss: KL from the teacher")
    parser.add_argument("--draws", type=NATURAL, metavar="N", help="points of a step (default 4); 0: all")
    parser.add_argument("--data", metavar="TEXT", help=f"text file or folder (default: {SAYS_TEXT})")
    parser.add_argument("--steps", type=COUNT, metavar="N", help="of training (default 300)")
    parser.add_argument("--batch", type=COUNT, metavar="N", help="windows of a drawn point (default 8)")
    parser.add_argument("--context", type=COUNT, metavar="N", help="tokens of a window, at most (default 128)")
    parser.add_argument("--lr", type=LR, help="learning rate (default 1e-3)")
    parser.add_argument("--out", metavar="DIR", required=True, help="folder to make")


def run(options: argparse.Namespace) -> int:
    """Run `grid`."""
    from tinykron.jobs import sort_grid

    settings = sort_grid.Elastic(
        numbers("--exits", options.exits),
        numbers("--ranks", options.ranks),
        _shares(options.widths),
        **given(options, "share distil draws full steps batch context lr seed"),
    )
    folder = model_folder(options)
    found = sort_grid.train_grid(folder, options.out, settings, options.data, options.teacher, say=say)
    show(options.json, found.as_dict, lambda: sort_grid.render(found))
    return 0


def _shares(text: str | None) -> tuple[float, ...]:
    """Return the numbers of ".5,1", 1 alone for None. Raises TinykronError for any other text."""
    try:
        return (1.0,) if text is None else tuple(real("--widths", float(part)) for part in text.split(","))
    except ValueError:
        raise TinykronError(f"--widths: expected shares such as .5,1, found {text!r}") from None
