"""`tinykron run`: a recipe, from a checkpoint to a report."""

from __future__ import annotations

import argparse
from pathlib import Path

from tinykron.commands.options import model, model_folder
from tinykron.errors import TinykronError
from tinykron.support.progress import say


def options(parser: argparse.ArgumentParser) -> None:
    """Add what `run` takes."""
    parser.add_argument("recipe", nargs="?", metavar="RECIPE", help="a name that --list shows, or a .toml file")
    parser.add_argument("--list", action="store_true", help="say which recipes there are")
    parser.add_argument("--show", action="store_true", help="print the recipe's file, to copy and edit")
    parser.add_argument(
        "--data", metavar="TEXT", help="text file or folder (default: the text that every Python carries)"
    )
    parser.add_argument("--task", metavar="TASK", help="fine-tune on this one, in place of the recipe's")
    parser.add_argument("--task-data", metavar="DIR", help="folder of the task's files; docs/ tasks need none")
    parser.add_argument("--pairs", metavar="CSV", help="sentence pairs with scores, to measure a BERT's embeddings by")
    change = "in place of what the recipe says: pretrain.lr=1e-4, factorise.params=0.3"
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=change)
    parser.add_argument(
        "--out", metavar="DIR", help="folder to make (default: the recipe's name, or name-2, name-3, ...)"
    )
    model(parser, "--model")


def run(options: argparse.Namespace) -> int:
    """Run `run`."""
    from tinykron.checkpoint import hub
    from tinykron.jobs import recipes, report, stages

    if options.list:
        for name in recipes.names():
            print(f"{name}: {recipes.title(name)}")
        return 0
    if options.recipe is None:
        raise TinykronError(f"run: expected a recipe: {', '.join(recipes.names())}, or a .toml file")
    if options.show:
        print(recipes.text(options.recipe), end="")
        return 0
    if recipes.trains_exits(options.recipe):
        return _sort(options)
    changes = [*options.set, *([f"seed={options.seed}"] if options.seed is not None else [])]
    recipe = recipes.read(options.recipe, changes)
    if options.task:
        recipe = recipes.with_task(recipe, options.task)
    teacher = hub.resolve(options.model, options.download) if options.model else None
    out = Path(options.out) if options.out else _free(Path(recipe.name))
    found = stages.run(recipe, out, stages.Inputs(teacher, options.data, options.task_data, options.pairs))
    print(report.as_json(found) if options.json else report.render(found))
    say(f"report and models: {out}")
    return 0


def _sort(options: argparse.Namespace) -> int:
    """Run a recipe that trains exits, as `sort --config` does."""
    from tinykron.commands import sort

    refused = [name for name in ("task", "task_data", "pairs", "set") if getattr(options, name)]
    if refused:
        raise TinykronError(
            f"--{refused[0].replace('_', '-')}: {options.recipe} trains exits; `tinykron sort` has more"
        )
    folder = model_folder(options)
    out = options.out or str(_free(Path(Path(options.recipe).stem)))
    return sort.sort_by(options.recipe, folder, out, options.data, options.seed, options.json)


def _free(folder: Path) -> Path:
    """Return the first of folder, folder-2, folder-3, ... that does not exist."""
    number, free = 1, folder
    while free.exists():
        number += 1
        free = folder.with_name(f"{folder.name}-{number}")
    return free
