"""The command line: one verb, one job, one file. `tinykron` alone prints the verbs."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from tinykron import __version__
from tinykron.backend import current_device, device
from tinykron.commands.options import Parser, common
from tinykron.commands.renamed import translated
from tinykron.errors import Interrupted, TinykronError
from tinykron.support.progress import say
from tinykron.threads import long_work

VERBS = {  # name: what it does; its options and its run are in the file of that name
    "info": "say what a checkpoint is: matrices, sizes, costs, what Kronecker factors would keep",
    "run": "run a recipe: take a checkpoint, make a smaller one, report what it cost",
    "train": "train a small model from a configuration, as the shipped ones were made",
    "compress": "make a checkpoint smaller within budgets; without training",
    "eval": "measure how well a model predicts a text, or does at a labelled task",
    "finetune": "fine-tune a model on a labelled task or on a text",
    "sort": "fine-tune a model so that chosen depths are models of their own, beside baselines",
    "grid": "train one model in which each depth, number of terms and width is a model",
    "promise": "find thresholds of exits that keep a promise, from a file of prompts",
    "generate": "continue a prompt",
    "reproduce": "answer a claim by experiment: mean and spread over seeds",
    "bench": "measure speed, beside PyTorch where that is installed",
    "lesson": "open a lesson in the browser, as a copy of your own; or check yours",
}
FILES = {"eval": "evaluate"}  # of another name than the verb
EXAMPLES = """\
examples:
  tinykron run kngpt2                          halve the shipped GPT-2, distil it, fine-tune it, report
  tinykron run better --model MODEL --data TEXT --set factorise.params=0.3 --out DIR
  tinykron compress MODEL --params 0.5 --out DIR  half the parameters: planned, fitted to a text, measured
  tinykron info MODEL --ratio 4                its matrices, its costs, what Kronecker factors would keep
  tinykron eval MODEL --data TEXT              perplexity of a text, with --context and --stride
  tinykron finetune --out my-bert              teach the shipped BERT which package a docstring belongs to
  tinykron eval my-bert --task docs/package    how well it does at that
  tinykron sort --exits 2,4,6 --out my-sorted  fine-tune exits after 2, 4, 6 and all blocks
  tinykron generate --prompt "The list type"   text from the shipped GPT-2
  tinykron grid --ranks 1,2,4 --exits 2,4,6,8 --out DIR  one model in which each depth and rank is a model
  tinykron train --out my-gpt2                 train a small GPT-2 on the text that every Python carries
  tinykron lesson                              the first lesson, in the browser; then `tinykron lesson next`
  tinykron bench engine                        the engine beside PyTorch, where that is installed
  tinykron bench kron                          Kronecker layers beside the dense one, and beside peers
a MODEL is a folder, a place in the Hugging Face cache, or a hub id (fetched only with --download)
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0; 1 for a broken promise; 2 for bad input; 130 after Ctrl-C."""
    code = 0
    try:
        for command in translated(sys.argv[1:] if arguments is None else arguments):
            code = code or _run(command)
    except BrokenPipeError:  # the reader of our output has gone: `tinykron ... | head`
        sys.stderr.close()
        return 0
    except (TinykronError, OSError) as error:  # OSError: a full disk, say; its message names the file
        say(f"tinykron: {error}")
        return 2
    except MemoryError as error:
        say(f"tinykron: out of memory: {error}; lower --batch, --context or --tokens, whichever the verb has")
        return 2
    except KeyboardInterrupt as stopped:
        known = isinstance(stopped, Interrupted)
        say("interrupted; the same command continues" if known else "\ntinykron: interrupted")
        return 130
    return code


def _run(arguments: Sequence[str]) -> int:
    parser = _parser(next((argument for argument in arguments if argument in VERBS), None))
    options = parser.parse_args(arguments)
    if options.verb is None:
        parser.print_help()
        return 0
    with long_work(), device(options.device or current_device()):
        return options.run(options)


def _parser(chosen: str | None) -> argparse.ArgumentParser:
    """Return the parser; only the file of the chosen verb is imported."""
    parser = Parser(
        prog="tinykron",
        description="Learn the compression of transformers by doing it.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"tinykron {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", title="verbs")
    for name, text in VERBS.items():
        verb = verbs.add_parser(name, help=text, description=text)
        if name == chosen:
            module = importlib.import_module(f"tinykron.commands.{FILES.get(name, name)}")
            module.options(verb)
            common(verb)
            verb.set_defaults(run=module.run)
    return parser
