"""The command line's verbs for labelled tasks: `finetune`, and `eval --task`."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, replace
from math import isnan
from pathlib import Path
from typing import Any

from tinykron.errors import TinykronError

TASK_HELP = "lm/wikitext; glue/sst2, glue/mnli, ...; squad/1.1, squad/2.0; docs/package, docs/neighbours, docs/returns"
PRESETS = "tiny, bert, kroneckerbert, kroneckerbert8, kroneckerbert21"


def finetune_options(tune: argparse.ArgumentParser) -> None:
    """Add what `finetune` takes beside a model."""
    tune.add_argument(
        "--task", metavar="TASK", default="docs/package", help=f"{TASK_HELP}; lm/text (default docs/package)"
    )
    tune.add_argument("--data", metavar="DIR", help="folder of the task's files; docs/ tasks need none")
    tune.add_argument("--out", metavar="DIR", required=True, help="folder to make")
    tune.add_argument("--preset", metavar="NAME", help=f"settings: {PRESETS} (default tiny without a MODEL, else bert)")
    tune.add_argument("--lr", type=float, nargs="+", metavar="LR", help="learning rates to try, in place of a preset's")
    tune.add_argument("--epochs", type=int, metavar="N", help="at most; the best one is kept")
    tune.add_argument("--batch", type=int, metavar="N", help="examples of a step")
    tune.add_argument("--accumulate", type=int, metavar="N", help="batches averaged before a step (default 1)")
    tune.add_argument(
        "--split-batch", type=int, metavar="N", help="parts into which a batch is cut, one after the other in memory"
    )
    tune.add_argument("--context", type=int, metavar="N", help="most tokens of an example")
    tune.add_argument("--patience", type=int, metavar="N", help="epochs without a better score before it stops")
    tune.add_argument("--seeds", type=int, default=1, metavar="N", help="to try with each learning rate (default 1)")
    tune.add_argument("--class-weights", action="store_true", default=None, help="let all classes count alike")


def shipped(task: str) -> str:
    """Return the shipped model that a task is tried with."""
    return "gpt2-tiny" if task.startswith(("lm/", "qa/")) else "bert-tiny"


def evaluate(options: argparse.Namespace, folder: Path) -> int:
    """Run `eval` with a --task."""
    from tinykron import checkpoint, tasks
    from tinykron.tasks import closed_book, similarity, wikitext

    if options.task == wikitext.NAME:
        return _evaluate_wikitext(options, folder)
    if options.task == similarity.NAME:
        return _evaluate_similarity(options, folder)
    if options.task == closed_book.NAME:
        return _evaluate_questions(options, folder)
    if options.stride is not None or options.limit is not None:
        raise TinykronError("--stride and --limit are for texts; a --task takes whole examples")
    task = tasks.find(options.task, (wikitext.NAME, similarity.NAME, closed_book.NAME))
    model = checkpoint.load(folder)
    if options.predict:
        files = tasks.answer_files(model, task, options.data, options.context)
        answers = Path(options.predict)
        answers.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (answers / name).write_text(text, encoding="utf-8")
        written = [str(answers / name) for name in files]
        print(json.dumps({"written": written}) if options.json else "\n".join(written))
        return 0
    found = tasks.evaluate(model, task, options.data, options.context)
    print(_json(asdict(found) | {"score": found.score}) if options.json else tasks.render(found))
    return 0


def _evaluate_wikitext(options: argparse.Namespace, folder: Path) -> int:
    from tinykron import checkpoint
    from tinykron.tasks import wikitext

    if options.data is None or options.predict or options.limit is not None:
        raise TinykronError(f"{wikitext.NAME}: expected --data DIR, and neither --predict nor --limit")
    model = checkpoint.load(folder)
    words = wikitext.measure(model, options.data, options.split, options.context, options.stride)
    if options.json:
        found = words.evaluation
        costs = {"perplexity": found.perplexity, "words": words.words, "word_perplexity": words.word_perplexity}
        print(json.dumps(asdict(found) | costs, indent=2))
    else:
        print(wikitext.render_words(words))
    return 0


def _evaluate_similarity(options: argparse.Namespace, folder: Path) -> int:
    from tinykron import checkpoint
    from tinykron.tasks import similarity

    if options.data is None or options.predict or options.limit is not None or options.stride is not None:
        raise TinykronError(f"{similarity.NAME}: expected --data, and neither --predict nor --limit nor --stride")
    found = similarity.measure(checkpoint.load(folder), options.data)
    print(_json(asdict(found)) if options.json else similarity.render(found))
    return 0


def _evaluate_questions(options: argparse.Namespace, folder: Path) -> int:
    """Answer closed-book questions by all blocks, and by each exit that the folder says was trained."""
    from tinykron import checkpoint
    from tinykron.tasks import closed_book, standins

    if options.predict or options.limit is not None or options.stride is not None or options.context is not None:
        raise TinykronError(f"{closed_book.NAME}: expected --data alone")
    if options.data is None:
        [(name, text)] = standins.files("docs/questions").items()
        questions = closed_book.parse_trivia(text, name)
    else:
        questions = closed_book.read_questions(options.data)
    model = checkpoint.load(folder)
    blocks = len(model.blocks)
    right = {
        exit: closed_book.exact_matches(model, questions, exit if exit < blocks else None, f"{exit} blocks")
        for exit in model.exits or (blocks,)
    }
    if options.json:
        print(_json({"task": closed_book.NAME, "questions": len(questions), "exact_match": right}))
    else:
        lines = [f"{exit} blocks: {share:.2f} %" for exit, share in right.items()]
        print("\n".join([f"exact match of {len(questions):,} answers", *lines]))
    return 0


def finetune(options: argparse.Namespace, folder: Path) -> int:
    """Run `finetune`."""
    from tinykron import tasks
    from tinykron.jobs import finetune_text
    from tinykron.jobs.finetune import finetune, preset, summary

    if options.task in finetune_text.NAMES:
        return _finetune_text(options, folder)
    task = tasks.find(options.task, finetune_text.NAMES)
    lrs, settings = preset(options.preset or ("bert" if options.model else "tiny"), task)
    names = ("epochs", "batch", "accumulate", "split_batch", "context", "patience", "class_weights", "seed")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    found = finetune(
        folder, task, options.out, options.data, replace(settings, **given), options.lr or lrs, options.seeds
    )
    if options.json:
        print(_json(asdict(found) | {"out": options.out}))
    else:
        print("\n".join([*summary(found.runs), tasks.render(found.saved)]))
    return 0


def _finetune_text(options: argparse.Namespace, folder: Path) -> int:
    from tinykron.jobs import finetune_text

    if options.preset or options.patience is not None or options.class_weights or options.seeds > 1:
        raise TinykronError(f"{options.task}: takes neither --preset nor --patience, --seeds or --class-weights")
    names = ("epochs", "batch", "accumulate", "split_batch", "context", "seed")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    if options.lr:
        if len(options.lr) > 1:
            raise TinykronError(f"{options.task}: --lr: found {len(options.lr)}, expected one")
        given["lr"] = options.lr[0]
    settings = finetune_text.TextTuning(**given)
    found = finetune_text.finetune_text(folder, options.task, options.out, options.data, settings)
    print(_json(asdict(found) | {"out": options.out}) if options.json else finetune_text.render(found))
    return 0


def _json(value: dict[str, Any]) -> str:
    """Return JSON, which has no NaN: a metric that is not defined is null."""

    def defined(part: Any) -> Any:
        if isinstance(part, dict):
            return {key: defined(inner) for key, inner in part.items()}
        if isinstance(part, list):
            return [defined(inner) for inner in part]
        return None if isinstance(part, float) and isnan(part) else part

    return json.dumps(defined(value), indent=2)
