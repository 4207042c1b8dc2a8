"""Thresholds as a folder's property: found on prompts, with a promise, and kept beside the model in exits.json.

Letters: B batch, T positions, P prompts.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tinykron.checkpoint.folder import CONFIG, digest, load
from tinykron.checkpoint.safetensors_file import json_object
from tinykron.data.tokens import IGNORED
from tinykron.decode.arguments import SKIPPED
from tinykron.decode.generate import Trace, changes, generate
from tinykron.errors import CheckpointError, DataError, TinykronError, UntrainedExitWarning
from tinykron.exits.promises import Promised, check_prompts, ladder, losses_by_confidence, promise, prompts_needed
from tinykron.models.checks import check_exits
from tinykron.support import files
from tinykron.support.progress import Progress

FILE = "exits.json"
UNFINISHED = ".calibrating.json"  # what an interrupted search has found
LEVELS = (0.999, 0.99, 0.98, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)  # chosen before any prompt is seen
KEYS = ("prompt", "instruction", "question", "text")  # of a JSON line: the first that is there
AT_ONCE = 16  # prompts


@dataclass(frozen=True)
class Promise:
    """With probability 1 - epsilon over the prompts, at most a share delta of texts fails with these thresholds."""

    thresholds: dict[int, float]  # {blocks: least confidence}
    delta: float
    epsilon: float
    prompts: int  # that it was found on
    criterion: str  # when a text fails: "text", it is not the full model's; "loss", its loss is too far above
    bound: float | None  # nats a token above the full model's, of "loss"
    tokens: int | None  # new tokens of a text, of "text"
    skipped: str  # what blocks above know of tokens that left: see `generate`
    depth: float  # blocks behind a token of the prompts' texts, on average
    tested: tuple[dict[str, float], ...]  # in order: threshold, failures, p_value

    def __str__(self) -> str:
        what, fails = f"text of {self.tokens} tokens", "differs from the full model's"
        if self.criterion == "loss":
            what, fails = "prompt's own loss", f"is more than {self.bound:g} nats above the full model's"
        chosen = ", ".join(f"{blocks} blocks {level:g}" for blocks, level in sorted(self.thresholds.items()))
        return (
            f"leave where sure: {chosen}; {self.depth:.2f} blocks a token.\n"
            f"With probability {1.0 - self.epsilon:g} over the {self.prompts} prompts: of such prompts, the {what} "
            f"{fails} for at most a share of {self.delta:g}."
        )


# Calibrating ----------------------------------------------------------------------------------------------------------


def promise_folder(
    folder: str | Path,
    prompts: str | Path | Sequence[str],
    delta: float = 0.05,
    epsilon: float = 0.05,
    exits: Sequence[int] | None = None,
    bound: float | None = None,
    tokens: int = 40,
    skipped: str = "recompute",
    levels: Sequence[float] = LEVELS,
) -> tuple[Promised[dict[int, float]], Promise | None]:
    """Find the boldest thresholds that keep a promise, and write them into the folder; leave it alone if none does.

    folder   a causal model's
    prompts  texts, or a file of them as `read_prompts` takes it: drawn independently from what the model will meet
    delta    the share of prompts that may fail; epsilon: how likely, over the draw of the prompts, more do after all
    exits    blocks, rising, below all; None: those that the folder lists as trained
    bound    None: a prompt fails if its greedy text differs from the full model's; else if the mean loss of the prompt
             itself is more than so many nats a token above
    tokens   of a greedy text, fewer if it ends
    skipped  as in `generate`; with a bound, "recompute"
    levels   thresholds to try, the same for all exits, from the highest to the lowest
    Returns what was tested, and the promise, None if there is none. Raises TinykronError, before the model runs, for
    too few prompts (and says how many are needed), exits out of range, and prompts that do not fit the context.
    Interrupted, it goes on at the level where it was when it is called again with the same model and prompts.
    Learn-then-Test: see `exits.promise`.
    """
    folder = Path(folder)
    texts = read_prompts(prompts) if isinstance(prompts, (str, Path)) else list(prompts)
    check_prompts(len(texts), delta, epsilon)
    model = load(folder)
    depths = _exits(folder, model, exits)
    if skipped not in SKIPPED or (bound is not None and skipped != "recompute"):
        allowed = ", ".join(SKIPPED if bound is None else SKIPPED[:1])
        raise TinykronError(f"skipped: found {skipped!r}, expected {allowed}")
    if bound is not None and not bound >= 0.0:
        raise TinykronError(f"bound: expected nats a token of at least 0, found {bound}")
    if bound is None and not 1 <= tokens < model.context:
        limit = f"1 to {model.context - 1}, of a context of {model.context}"
        raise TinykronError(f"tokens: found {tokens}, expected {limit}")
    ids = _encoded(model, texts, tokens if bound is None else 0)
    ask = changes(model, ids, tokens, AT_ONCE, skipped=skipped) if bound is None else _losses_above(model, ids, bound)
    asked = {
        "model": digest(model),
        "prompts": ids,
        "exits": depths,
        "bound": bound,
        "tokens": tokens,
    }
    known = Known(folder, asked | {"skipped": skipped})
    with Progress("calibrating", len(levels) * len(ids), "prompts") as progress:

        def fails(thresholds: dict[int, float]) -> np.ndarray:
            level = thresholds[depths[0]]
            failed_P = known.failed(level, len(ids))
            if failed_P is None:
                failed_P = ask(thresholds)
                known.add(level, failed_P)
            progress.advance(len(ids), f"at {level:g}, {failed_P.sum()} fail")
            return failed_P

        found = promise(ladder(depths, levels), fails, delta, epsilon)
    if found.chosen is None:
        known.forget()
        return found, None
    depth = _depth(model, ids, found.chosen, tokens, skipped)
    tested = tuple(
        {"threshold": one.candidate[depths[0]], "failures": one.failures, "p_value": one.p_value}
        for one in found.tested
    )
    criterion, length = ("text", tokens) if bound is None else ("loss", None)
    made = Promise(found.chosen, delta, epsilon, len(ids), criterion, bound, length, skipped, depth, tested)
    files.write(folder / FILE, json.dumps(asdict(made), indent=2) + "\n")
    known.forget()
    return found, made


class Known:
    """Which prompts failed at the levels tried so far, kept in the folder: an interrupted search goes on there."""

    def __init__(self, folder: Path, asked: Mapping[str, Any]) -> None:
        """asked: all that the failures depend on but the level; what was found for anything else does not count."""
        self.path = folder / UNFINISHED
        self.asked = hashlib.blake2b(json.dumps(asked, sort_keys=True).encode(), digest_size=16).hexdigest()
        self.levels: dict[str, list[int]] = {}
        with suppress(
            OSError, ValueError, KeyError, TypeError
        ):  # where there is none, or a damaged one, it is made anew
            found = json.loads(self.path.read_text(encoding="utf-8"))
            self.levels = dict(found["levels"]) if found["asked"] == self.asked else {}

    def failed(self, level: float, prompts: int) -> np.ndarray | None:
        """Return which of the prompts failed, (P,) booleans; None where the level was not tried yet."""
        places = self.levels.get(repr(level))
        return None if places is None else np.isin(np.arange(prompts), places)

    def add(self, level: float, failed_P: np.ndarray) -> None:
        """Keep what a level gave."""
        self.levels[repr(level)] = np.flatnonzero(failed_P).tolist()
        files.write(self.path, json.dumps({"asked": self.asked, "levels": self.levels}) + "\n")

    def forget(self) -> None:
        """Remove the file: nothing is left to go on with."""
        self.path.unlink(missing_ok=True)


def refusal(found: Promised[dict[int, float]]) -> str:
    """Say that nothing can be promised, and how many prompts might."""
    first = found.tested[0]
    level = next(iter(first.candidate.values()))
    needed = prompts_needed(first.failures, found.prompts, found.delta, found.epsilon)
    said = f"no threshold can be promised: at {level:g}, {first.failures} of {found.prompts} prompts fail, "
    if needed is None:
        return said + f"and of so large a share no number of prompts proves {found.delta:g}"
    return said + f"too many to prove {found.delta:g} with; if as large a share fails, about {needed} prompts would do"


def _exits(folder: Path, model: Any, exits: Sequence[int] | None) -> tuple[int, ...]:
    if not model.causal:
        raise TinykronError(
            f"{folder}: a {type(model).__name__} is no causal language model; it has no exits to leave by"
        )
    blocks = len(model.blocks)
    if exits is None:
        exits = model.exits
    elif list(exits) != sorted(exits):
        raise TinykronError(f"exits: expected them from shallow to deep, found {tuple(exits)}")
    depths = tuple(exit for exit in check_exits(None, exits, blocks) if exit < blocks) if exits else ()
    if not depths:
        where = f"found {tuple(exits)}" if exits else f"{folder}: its {CONFIG} lists none"
        raise TinykronError(f"exits: expected some below {blocks} blocks, {where}")
    warn_untrained(folder, model.exits, depths)
    return depths


def _encoded(model: Any, texts: Sequence[str], new: int) -> list[list[int]]:
    """Return the token ids of prompts. Raises DataError for one that is too short or, with new tokens, too long."""
    if model.tokenizer is None:
        raise TinykronError("promise: the model has no tokenizer to read prompts with")
    ids, least = [model.tokenizer.encode(text).ids for text in texts], 1 if new else 2
    for number, row in enumerate(ids, 1):
        if not least <= len(row) <= model.context - new:
            limit = f"{least} to {model.context - new}, of a context of {model.context}"
            raise DataError(f"promise: prompt {number} has {len(row)} tokens, expected {limit}")
    return ids


def _losses_above(
    model: Any, ids: Sequence[Sequence[int]], bound: float
) -> Callable[[Mapping[int, float]], np.ndarray]:
    """Return a function of thresholds that says which texts then lose more than `bound` beyond the full model."""

    def losses_P(thresholds: Mapping[int, float]) -> np.ndarray:
        parts = []
        for start in range(0, len(ids), AT_ONCE):
            rows = ids[start : start + AT_ONCE]
            inputs_BT = np.zeros((len(rows), max(map(len, rows)) - 1), np.int64)
            targets_BT = np.full_like(inputs_BT, IGNORED)
            for row, text in enumerate(rows):
                inputs_BT[row, : len(text) - 1], targets_BT[row, : len(text) - 1] = text[:-1], text[1:]
            parts.append(losses_by_confidence(model, (inputs_BT, targets_BT), thresholds))
        return np.concatenate(parts)

    full_P = losses_P({})
    return lambda thresholds: losses_P(thresholds) > full_P + bound


def _depth(model: Any, ids: Sequence[Sequence[int]], thresholds: dict[int, float], tokens: int, skipped: str) -> float:
    """Return how many blocks are behind a token, on average, of the texts of some prompts."""
    depths = []
    for row in ids[: 2 * AT_ONCE]:
        trace, count = Trace(), min(tokens, model.context - len(row))
        if count:
            generate(model, row, count, confidence=thresholds, skipped=skipped, trace=trace)
            depths.append(trace.depths.ravel())
    return float(np.concatenate(depths).mean()) if depths else float(len(model.blocks))


# Files ----------------------------------------------------------------------------------------------------------------


def read_prompts(path: str | Path) -> list[str]:
    """Return the prompts in a file: one a line; of a .jsonl file, a JSON string or an object with one on each line.

    An object's prompt is its "prompt", "instruction", "question" or "text", the first that is there. Empty lines are
    left out. Raises DataError, naming file and line, for what is none of this.
    """
    path, prompts = Path(path), []
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text: {error}") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        if path.suffix != ".jsonl":
            prompts.append(line)
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}: line {number} is no JSON: {error}") from None
        if isinstance(value, dict):
            value = next((value[key] for key in KEYS if key in value), None)
        if not isinstance(value, str) or not value:
            raise DataError(f"{path}: line {number}: expected a text, or an object with one as {', '.join(KEYS)}")
        prompts.append(value)
    if not prompts:
        raise DataError(f"{path}: found no prompts")
    return prompts


def warn_untrained(folder: str | Path, trained: Sequence[int], exits: Iterable[int]) -> None:
    """Warn (UntrainedExitWarning) of exits that are not among those that a folder lists as trained."""
    others = [str(exit) for exit in exits if exit not in trained]
    if others:
        listed = ", ".join(map(str, trained)) or "none"
        found = f"exits {', '.join(others)} were" if len(others) > 1 else f"exit {others[0]} was"
        text = f"{folder}: {found} not trained: {CONFIG} lists {listed}"
        warnings.warn(text, UntrainedExitWarning, stacklevel=2)


def read(folder: str | Path) -> Promise:
    """Return the promise that a folder holds. Raises CheckpointError where there is none, or its file is damaged."""
    path = Path(folder) / FILE
    if not path.exists():
        hint = 'make one with "tinykron promise FOLDER --delta 0.05 --epsilon 0.05 --prompts FILE"'
        raise CheckpointError(f"{folder}: has no {FILE}, so no thresholds with a promise; {hint}")
    found = json_object(path)
    try:
        thresholds = {int(exit): float(level) for exit, level in found.pop("thresholds").items()}
        return Promise(thresholds=thresholds, tested=tuple(found.pop("tested")), **found)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path}: expected what `promise` writes, found something else: {error}") from None
