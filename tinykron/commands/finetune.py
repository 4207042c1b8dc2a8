"""`tinykron finetune`: fine-tune a model on a labelled task or on a text."""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace

from tinykron.commands.options import COUNT, LR, NATURAL, TASKS, given, model, model_folder, shipped, show
from tinykron.errors import TinykronError

PRESETS = "tiny, bert, kroneckerbert, kroneckerbert8, kroneckerbert21"


def options(parser: argparse.ArgumentParser) -> None:
    """Add what `finetune` takes."""
    model(parser)
    parser.add_argument(
        "--task", metavar="TASK", default="docs/package", help=f"{TASKS}; lm/text (default docs/package)"
    )
    parser.add_argument("--data", metavar="DIR", help="folder of the task's files; docs/ tasks need none")
    parser.add_argument("--out", metavar="DIR", required=True, help="folder to make")
    parser.add_argument(
        "--preset", metavar="NAME", help=f"settings: {PRESETS} (default tiny without a MODEL, else bert)"
    )
    parser.add_argument("--lr", type=LR, nargs="+", metavar="LR", help="learning rates to try, in place of a preset's")
    parser.add_argument("--epochs", type=COUNT, metavar="N", help="at most; the best one is kept")
    parser.add_argument("--batch", type=COUNT, metavar="N", help="examples of a step")
    parser.add_argument("--accumulate", type=COUNT, metavar="N", help="batches averaged before a step (default 1)")
    parser.add_argument(
        "--split-batch", type=COUNT, metavar="N", help="parts into which a batch is cut, one after the other in memory"
    )
    parser.add_argument("--context", type=COUNT, metavar="N", help="most tokens of an example")
    parser.add_argument("--patience", type=NATURAL, metavar="N", help="epochs without a better score before it stops")
    parser.add_argument(
        "--seeds", type=COUNT, default=1, metavar="N", help="to try with each learning rate (default 1)"
    )
    parser.add_argument("--class-weights", action="store_true", default=None, help="let all classes count alike")


def run(options: argparse.Namespace) -> int:
    """Run `finetune`."""
    from tinykron import tasks
    from tinykron.jobs import finetune_text
    from tinykron.jobs.finetune import finetune, preset, summary

    if options.task in finetune_text.NAMES:
        return _finetune_text(options)
    task = tasks.find(options.task, finetune_text.NAMES)
    lrs, settings = preset(options.preset or ("bert" if options.model else "tiny"), task)
    chosen = given(options, "epochs batch accumulate split_batch context patience class_weights seed")
    found = finetune(
        model_folder(options, shipped(options.task)),
        task,
        options.out,
        options.data,
        replace(settings, **chosen),
        options.lr or lrs,
        options.seeds,
    )
    text = "\n".join([*summary(found.runs), tasks.render(found.saved)])
    show(options.json, lambda: asdict(found) | {"out": options.out}, lambda: text)
    return 0


def _finetune_text(options: argparse.Namespace) -> int:
    from tinykron.jobs import finetune_text

    if options.preset or options.patience is not None or options.class_weights or options.seeds > 1:
        raise TinykronError(f"{options.task}: takes neither --preset nor --patience, --seeds or --class-weights")
    chosen = given(options, "epochs batch accumulate split_batch context seed")
    if options.lr:
        if len(options.lr) > 1:
            raise TinykronError(f"{options.task}: --lr: found {len(options.lr)}, expected one")
        chosen["lr"] = options.lr[0]
    settings = finetune_text.TextTuning(**chosen)
    found = finetune_text.finetune_text(
        model_folder(options, shipped(options.task)), options.task, options.out, options.data, settings
    )
    show(options.json, lambda: asdict(found) | {"out": options.out}, lambda: finetune_text.render(found))
    return 0
