"""`tinykron eval`: how well a model predicts a text, or does at a labelled task."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from tinykron.commands.options import COUNT, TASKS, model, model_folder, shipped, show
from tinykron.errors import TinykronError


def options(parser: argparse.ArgumentParser) -> None:
    """Add what `eval` takes."""
    model(parser)
    texts = "text file or folder (default: what training held out); the files of a --task"
    parser.add_argument("--data", metavar="TEXT", help=texts)
    parser.add_argument("--task", metavar="TASK", help=f"{TASKS}; qa/closed-book; similarity/sts")
    parser.add_argument("--split", choices=("valid", "test"), default="test", help="of lm/wikitext (default test)")
    parser.add_argument("--predict", metavar="DIR", help="of a --task: write its test set's answers for the server")
    windows = "tokens of a window (default: the model's, at most 2048)"
    parser.add_argument("--context", type=COUNT, metavar="N", help=windows)
    parser.add_argument("--stride", type=COUNT, metavar="N", help="between two windows (default: the context)")
    limit = "of tokens that a masked model hides (default: all)"
    parser.add_argument("--limit", type=COUNT, metavar="N", help=limit)


def run(options: argparse.Namespace) -> int:
    """Run `eval`."""
    from tinykron import checkpoint
    from tinykron.measure import perplexity

    if options.task:
        return _task(options, model_folder(options, shipped(options.task)))
    if options.predict:
        raise TinykronError("--predict: expected a --task whose test set is to be answered")
    loaded = checkpoint.load(model_folder(options))
    found = perplexity.evaluate(loaded, options.data, options.context, options.stride, options.limit)
    costs = {"perplexity": found.perplexity, "bits_per_byte": found.bits_per_byte}
    show(options.json, lambda: asdict(found) | costs, lambda: perplexity.render(found))
    return 0


def _task(options: argparse.Namespace, folder: Path) -> int:
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
    loaded = checkpoint.load(folder)
    if options.predict:
        files = tasks.answer_files(loaded, task, options.data, options.context)
        answers = Path(options.predict)
        answers.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (answers / name).write_text(text, encoding="utf-8")
        written = [str(answers / name) for name in files]
        print(json.dumps({"written": written}) if options.json else "\n".join(written))
        return 0
    found = tasks.evaluate(loaded, task, options.data, options.context)
    show(options.json, lambda: asdict(found) | {"score": found.score}, lambda: tasks.render(found))
    return 0


def _evaluate_wikitext(options: argparse.Namespace, folder: Path) -> int:
    from tinykron import checkpoint
    from tinykron.tasks import wikitext

    if options.data is None or options.predict or options.limit is not None:
        raise TinykronError(f"{wikitext.NAME}: expected --data DIR, and neither --predict nor --limit")
    loaded = checkpoint.load(folder)
    words = wikitext.measure(loaded, options.data, options.split, options.context, options.stride)
    found = words.evaluation
    costs = {"perplexity": found.perplexity, "words": words.words, "word_perplexity": words.word_perplexity}
    show(options.json, lambda: asdict(found) | costs, lambda: wikitext.render_words(words))
    return 0


def _evaluate_similarity(options: argparse.Namespace, folder: Path) -> int:
    from tinykron import checkpoint
    from tinykron.tasks import similarity

    if options.data is None or options.predict or options.limit is not None or options.stride is not None:
        raise TinykronError(f"{similarity.NAME}: expected --data, and neither --predict nor --limit nor --stride")
    found = similarity.measure(checkpoint.load(folder), options.data)
    show(options.json, lambda: asdict(found), lambda: similarity.render(found))
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
    loaded = checkpoint.load(folder)
    blocks = len(loaded.blocks)
    right = {
        exit: closed_book.exact_matches(loaded, questions, exit if exit < blocks else None, f"{exit} blocks")
        for exit in loaded.exits or (blocks,)
    }
    lines = [f"exact match of {len(questions):,} answers"]
    lines += [f"{exit} blocks: {share:.2f} %" for exit, share in right.items()]
    found = {"task": closed_book.NAME, "questions": len(questions), "exact_match": right}
    show(options.json, lambda: found, lambda: "\n".join(lines))
    return 0
