"""What verbs share: the options that several take, and how results are printed."""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import isnan
from pathlib import Path
from typing import Any

from tinykron.errors import TinykronError, UntrainedExitWarning
from tinykron.support.numbers import COUNTED, option, real, whole
from tinykron.support.progress import say

COUNT = option(whole, least=1, most=COUNTED)  # a whole number from 1 on
NATURAL = option(whole, most=COUNTED)  # from 0 on
SEED = option(whole)
POSITIVE = option(real, above=0.0)
SHARE = option(real, least=0.0, most=1.0)
LR = option(real, least=0.0)  # a learning rate
TASKS = "lm/wikitext; glue/sst2, glue/mnli, ...; squad/1.1, squad/2.0; docs/package, docs/neighbours, docs/returns"
SAYS_TEXT = "the text that every Python carries"


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are errors of ours: one line, exit code 2."""

    def error(self, message: str) -> Any:
        raise TinykronError(f"{message}; see `{self.prog} --help`")


def common(parser: argparse.ArgumentParser, **defaults: Any) -> None:
    """Add what every verb takes; `defaults` for a verb below a verb."""
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: $TINYKRON_DEVICE, else cpu", **defaults)
    parser.add_argument("--seed", type=SEED, metavar="N", help="of everything that is drawn (default 0)", **defaults)
    parser.add_argument("--json", action="store_true", help="print the result as JSON", **defaults)


def model(parser: argparse.ArgumentParser, flag: str = "model") -> None:
    """Add the model that a verb works on, as an argument or, of a flag, as an option."""
    options: dict[str, Any] = {} if flag.startswith("-") else {"nargs": "?"}
    text = "a folder, a cache path or a hub id (default: the shipped gpt2-tiny)"
    parser.add_argument(flag, metavar="MODEL", help=text, **options)
    parser.add_argument("--download", action="store_true", help="fetch a hub id that is not in the cache")


def model_folder(options: argparse.Namespace, shipped: str = "gpt2-tiny") -> Path:
    """Return the folder of the model that a verb was given, or of a shipped one."""
    from tinykron import data
    from tinykron.checkpoint import hub

    return hub.resolve(options.model, options.download) if options.model else data.weights_folder(shipped)


def shipped(task: str) -> str:
    """Return the shipped model that a task is tried with."""
    return "gpt2-tiny" if task.startswith(("lm/", "qa/")) else "bert-tiny"


def numbers(name: str, text: str | None) -> tuple[int, ...]:
    """Return the whole numbers of "2,4,8". Raises TinykronError for any other text."""
    parts = (text or "").split(",")
    if not all(part.strip().isdecimal() and len(part) < 19 for part in parts):
        raise TinykronError(f"{name}: expected whole numbers such as 2,4,8, found {text!r}")
    return tuple(int(part) for part in parts)


def given(options: argparse.Namespace, names: str) -> dict[str, Any]:
    """Return the options of these names that were typed."""
    found = {name: getattr(options, name) for name in names.split()}
    return {name: value for name, value in found.items() if value is not None}


def show(as_json: bool, values: Callable[[], Any], text: Callable[[], str]) -> None:
    """Print a result as JSON or as text."""
    print(to_json(values()) if as_json else text())


def to_json(value: Any) -> str:
    """Return JSON, which has no NaN: a number that is not defined is null."""

    def defined(part: Any) -> Any:
        if isinstance(part, dict):
            return {key: defined(inner) for key, inner in part.items()}
        if isinstance(part, (list, tuple)):
            return [defined(inner) for inner in part]
        return None if isinstance(part, float) and isnan(part) else part

    return json.dumps(defined(value), indent=2)


@contextmanager
def told_of_exits() -> Iterator[None]:
    """Print warnings of exits that were not trained as one line each."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UntrainedExitWarning)
        yield
    for warning in caught:
        say(f"tinykron: warning: {warning.message}")
