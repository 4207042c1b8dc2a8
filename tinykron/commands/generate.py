"""The command line's verbs that decode: `generate`, `bench exits`, and `sort --calibrate`."""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from tinykron.commands.sort_grid import numbers, within_budget
from tinykron.decode.sampling import whole
from tinykron.errors import TinykronError, UntrainedExitWarning

PROBE = 24  # tokens that `--speculate auto` writes to see which exit agrees with the model


def bench_options(bench: argparse.ArgumentParser) -> None:
    """Add what `bench exits` takes beside a model."""
    bench.add_argument("--exits", metavar="2,4,6", help="exits: to measure (default: those trained, else three)")
    bench.add_argument("--drafts", metavar="1,2,4", help="exits: tokens drafted a round (default 1,2,4,6)")
    bench.add_argument("--prompts", type=int, default=4, metavar="N", help="exits: to continue (default 4)")
    bench.add_argument("--shortlist", metavar="512,2048", help="exits: numbers of frequent tokens that drafts may know")
    bench.add_argument("--data", metavar="TEXT", help="exits: to take prompts from and measure losses on")
    bench.add_argument("--out", metavar="DIR", help="exits: folder for the table, its JSON and a heat map")


def bench_exits(options: argparse.Namespace, folder: Path) -> int:
    """Run `bench exits`."""
    from tinykron.bench import exits_report as report
    from tinykron.bench.exits import bench_exits as measure

    found = measure(
        folder,
        numbers("--exits", options.exits) if options.exits else None,
        numbers("--drafts", options.drafts) if options.drafts else None,
        options.data,
        options.prompts,
        threads=options.threads,
        repeats=options.repeats,
        shortlists=numbers("--shortlist", options.shortlist) if options.shortlist else None,
    )
    if options.out:
        report.write(found, options.out)
    print(json.dumps(report.as_dict(found), indent=2) if options.json else report.render(found).rstrip("\n"))
    if options.out:
        print(f"table, JSON and heat map: {options.out}", file=sys.stderr)
    return 130 if found.interrupted else 0


# generate -------------------------------------------------------------------------------------------------------------


def generate_options(sub: argparse.ArgumentParser) -> None:
    """Add what `generate` takes beside a model."""
    sub.add_argument("--prompt", default="The list type", help='text to continue (default "The list type")')
    sub.add_argument("--max-new-tokens", type=int, metavar="N", help="default 60, or what the context holds")
    sub.add_argument("--temperature", type=float, default=0.0, help="0 takes the likeliest token (default)")
    sub.add_argument("--top-k", type=int, metavar="K", help="draw from the K likeliest tokens")
    sub.add_argument("--top-p", type=float, metavar="P", help="draw from the likeliest tokens that reach P together")
    sub.add_argument("--exit", type=int, metavar="N", help="decode by the first N blocks")
    sub.add_argument("--confident", action="store_true", help="leave by the thresholds that the folder promises with")
    sub.add_argument(
        "--threshold", metavar="T", help="leave where so sure: .9 at trained exits, or 2:.9,4:.8; a draft, too"
    )
    sub.add_argument(
        "--missing", choices=("recompute", "copy"), help="keys of blocks that a token skipped: exact, or not"
    )
    sub.add_argument("--speculate", metavar="EXIT[:DRAFTS]", help="draft by an exit, the text stays; auto: choose one")
    sub.add_argument("--draft", metavar="MODEL[:DRAFTS]", help="draft by another model, the text stays")
    sub.add_argument("--shortlist", type=int, metavar="N", help="drafts know the folder's N most frequent tokens alone")


def generate(options: argparse.Namespace, folder: Path) -> int:
    """Run `generate`."""
    from tinykron import checkpoint
    from tinykron.decode.generate import Trace
    from tinykron.decode.generate import generate as write

    model = checkpoint.load(folder)
    if model.tokenizer is None:
        raise TinykronError(f"{folder}: expected a tokenizer.json, to read the prompt with")
    model = within_budget(options, folder, model)
    ids = model.tokenizer.encode(options.prompt).ids
    count = options.max_new_tokens
    if count is None:
        count = max(1, min(60, model.context - len(ids)))
    sampling = {name: getattr(options, name) for name in ("temperature", "top_k", "top_p")}
    with _told_of_exits():
        rule = _rule(options, folder, model, ids, count)
    said = ""  # the prompt goes before the first piece: by then the arguments have proved good

    def stream(piece: str) -> None:
        nonlocal said
        print(piece if said else options.prompt + piece, end="", flush=True)
        said = options.prompt + piece

    trace, start = Trace(), time.perf_counter()
    written = write(
        model,
        ids,
        count,
        **sampling,
        seed=options.seed or 0,
        stream=None if options.json else stream,
        trace=trace,
        **rule,
    )[0]
    seconds = time.perf_counter() - start
    found = account(trace, seconds)
    if options.json:
        text = model.tokenizer.decode(written[len(ids) :].tolist())
        print(json.dumps({"prompt": options.prompt, "text": text, "ids": written.tolist()} | found))
    else:
        print("" if said else options.prompt)
        print(_in_words(found), file=sys.stderr)
    return 0


def account(trace: Any, seconds: float) -> dict[str, Any]:
    """Return what a generation did, for JSON: speed, the share of tokens that each depth made, drafts."""
    depths = trace.depths[trace.depths > 0]
    found: dict[str, Any] = {"seconds": seconds, "tokens_per_second": len(depths) / max(seconds, 1e-9)}
    found["exits"] = {int(depth): float((depths == depth).mean()) for depth in np.unique(depths)}
    if trace.rounds:
        drafted, accepted = int(trace.drafted.sum()), int(trace.accepted.sum())
        found["drafts"] = {
            "rounds": trace.rounds,
            "drafted": drafted,
            "accepted": accepted,
            "depths": trace.draft_depths,
        }
        found["acceptance"] = trace.acceptance if trace.acceptance == trace.acceptance else None  # NaN: none was judged
    return found


def _in_words(found: dict[str, Any]) -> str:
    shares = ", ".join(f"{depth} blocks {share:.0%}" for depth, share in found["exits"].items())
    line = f"{found['tokens_per_second']:,.1f} tokens/s; {shares or 'no tokens'}"
    if "drafts" not in found:
        return line
    drafts, acceptance = found["drafts"], found["acceptance"]
    likely = "" if acceptance is None else f", each with probability {acceptance:.2f} where all before it were"
    makers = ", ".join(f"{number} by {depth} blocks" for depth, number in drafts["depths"].items())
    line += f"; {drafts['accepted']} of {drafts['drafted']} drafts accepted{likely}, {drafts['rounds']} rounds"
    return f"{line}; drafted {makers or 'none'}"


@contextmanager
def _told_of_exits() -> Iterator[None]:
    """Print warnings of exits that were not trained as one line each."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UntrainedExitWarning)
        yield
    for warning in caught:
        print(f"tinykron: warning: {warning.message}", file=sys.stderr)


def _rule(options: argparse.Namespace, folder: Path, model: Any, ids: list[int], count: int) -> dict[str, Any]:
    """Return what `tinykron.generate` takes for the options on exits and drafts."""
    from tinykron.exits import thresholds

    for one, other in (("confident", "threshold"), ("speculate", "draft")):
        if getattr(options, one) and getattr(options, other):
            raise TinykronError(f"--{one} and --{other}: expected one of the two")
    if options.speculate or options.draft:
        return _drafts(options, folder, model, ids, count)
    if options.shortlist is not None:
        raise TinykronError("--shortlist: the tokens of drafts; expected --speculate or --draft, too")
    rule: dict[str, Any] = {}
    if options.exit is not None:
        rule["exit"] = options.exit
        if options.exit != len(model.blocks):
            thresholds.warn_untrained(folder, model.exits, [options.exit])
    if options.confident:
        promise = thresholds.read(folder)
        if options.missing not in (None, promise.skipped):
            raise TinykronError(f"--missing: the folder's promise is for {promise.skipped}, found {options.missing}")
        if promise.tokens is not None and (count > promise.tokens or options.temperature > 0.0):
            line = f"tinykron: warning: the folder's promise is for greedy texts of at most {promise.tokens} tokens"
            print(line, file=sys.stderr)
        rule |= {"confidence": promise.thresholds, "skipped": promise.skipped}
    elif options.threshold:
        rule["confidence"] = _levels(options.threshold, model.exits, len(model.blocks))
        rule["skipped"] = options.missing or "recompute"
    elif options.missing:
        raise TinykronError("--missing: says what becomes of skipped blocks; expected --confident or --threshold, too")
    if "confidence" in rule:
        thresholds.warn_untrained(folder, model.exits, rule["confidence"])
    return rule


def _drafts(options: argparse.Namespace, folder: Path, model: Any, ids: list[int], count: int) -> dict[str, Any]:
    """Return the same for options that leave the text as it is."""
    from tinykron import checkpoint
    from tinykron.checkpoint import hub
    from tinykron.decode import shortlist

    if options.confident or options.missing:
        raise TinykronError("--confident and --missing: for texts without a draft; --threshold says where drafts leave")
    rule: dict[str, Any] = {} if options.exit is None else {"exit": options.exit}
    listed = None
    if options.shortlist is not None:
        listed = shortlist.read(folder, whole("--shortlist", options.shortlist, 1))
    if options.speculate:
        rule |= _speculation(options, model, ids, count, listed)
        trained, blocks = model.exits, rule.get("draft", 0)
    else:
        name, length = _place(options.draft)
        place = hub.resolve(name, options.download)
        draft = checkpoint.load(place)
        if draft.tokenizer is not None and draft.tokenizer.get_vocab() != model.tokenizer.get_vocab():
            raise TinykronError(f"--draft: {place} has another vocabulary than the model; expected the same one")
        rule |= {"draft": draft} | length
        trained, blocks = draft.exits, len(draft.blocks)
    if options.threshold and "draft" in rule:
        rule["confidence"] = _levels(options.threshold, trained, blocks)
    if "draft" in rule and listed is not None:
        rule["shortlist"] = listed
    return rule


def _levels(text: str, trained: tuple[int, ...], blocks: int) -> dict[int, float]:
    """Return the thresholds of ".9", for all trained exits below `blocks`, or of "2:.9,4:.8". Raises TinykronError."""
    pairs = [part.split(":") for part in text.split(",")] if ":" in text else []
    inner = [exit for exit in trained if exit < blocks]
    try:
        found = {int(exit): float(level) for exit, level in pairs} or dict.fromkeys(inner, float(text))
    except ValueError:
        expected = "a number, or exits and numbers such as 2:.9,4:.8"
        raise TinykronError(f"--threshold: expected {expected}, found {text!r}") from None
    if not found:
        raise TinykronError(f"--threshold: the folder lists no trained exits below {blocks}; name some: 2:.9,4:.8")
    if pairs and (list(found) != sorted(found) or len(found) < len(pairs)):
        raise TinykronError(f"--threshold: expected exits from shallow to deep, each once, found {text!r}")
    return found


def _length(text: str, option: str) -> dict[str, int]:
    """Return what a number of drafts behind a colon says; nothing for "" and "auto": their number adapts."""
    if text in ("", "auto"):
        return {}
    if not text.isdecimal():
        raise TinykronError(f"{option}: expected a number of drafts behind the colon, or auto, found {text!r}")
    return {"draft_length": int(text)}


def _speculation(
    options: argparse.Namespace, model: Any, ids: list[int], count: int, listed: np.ndarray | None
) -> dict[str, Any]:
    if options.speculate == "auto":
        if options.exit is not None:
            raise TinykronError("--speculate auto: chooses for all blocks, found --exit; say EXIT:DRAFTS")
        return _chosen(model, ids, min(count, PROBE, model.context - len(ids)), listed)
    exit, _, length = options.speculate.partition(":")
    if not exit.isdecimal():
        raise TinykronError(
            f"--speculate: expected EXIT, EXIT:DRAFTS or auto, such as 4:2, found {options.speculate!r}"
        )
    return {"draft": int(exit)} | _length(length, "--speculate")


def _chosen(model: Any, ids: list[int], probe: int, listed: np.ndarray | None) -> dict[str, Any]:
    """Return the exit and the number of drafts that are predicted to be fastest; none where none helps.

    The trained exits, or all, are asked along the model's own greedy text behind the prompt: how often each would have
    written the same, with the tokens it may know. What blocks and heads cost is timed.
    """
    from tinykron.decode import speed
    from tinykron.decode.speed import fastest_draft
    from tinykron.exits import analysis

    blocks = len(model.blocks)
    inner = [exit for exit in model.exits if exit < blocks] or list(range(1, blocks))
    lengths = [length for length in speed.LENGTHS if length < probe]
    found = None
    if inner and lengths:
        shares = analysis.drift(model, [ids], inner, probe, shortlist=listed).agreement_E
        size, lists = (None, {}) if listed is None else (len(listed), {len(listed): listed})
        costs = speed.costs_of(model, [1, *(length + 1 for length in lengths)], lists)
        acceptances = dict(zip(inner, shares.tolist(), strict=True))
        found = fastest_draft(acceptances, lengths, lambda e, length, a: costs.speedup(e, blocks, length, a, size))
    if found is None:
        print("speculate: no exit is predicted to help; decoding plainly", file=sys.stderr)
        return {}
    exit, length, speedup = found
    print(f"speculate: exit {exit}, {length} drafts: predicted {speedup:.2f} times as fast", file=sys.stderr)
    return {"draft": exit, "draft_length": length}


def _place(text: str) -> tuple[str, dict[str, int]]:
    """Return the model of MODEL or MODEL:DRAFTS, and what its end says of draft lengths."""
    name, colon, length = text.rpartition(":")
    if colon and (length.isdecimal() or length == "auto"):
        return name, _length(length, "--draft")
    return text, {}


# sort --calibrate -----------------------------------------------------------------------------------------------------


def calibrate_options(sub: argparse.ArgumentParser) -> None:
    """Add what calibrating thresholds takes; `--exits` is the verb's own."""
    keys = "delta=.05, the share of prompts that may fail; epsilon=.05; tokens=40; loss=NATS, missing=copy"
    sub.add_argument("--calibrate", nargs="*", metavar="KEY=VALUE", help=f"thresholds with a promise: {keys}")
    sub.add_argument("--prompts", metavar="FILE", help="of --calibrate: one a line, or JSON lines")


def calibrate(options: argparse.Namespace, folder: Path) -> int:
    """Calibrate a folder's thresholds; 1 where nothing can be promised."""
    from dataclasses import asdict

    from tinykron.exits import thresholds

    if not options.prompts:
        raise TinykronError("--calibrate: expected --prompts FILE")
    given = _settings(options.calibrate)
    named = options.exits and options.out is None  # else they were trained just now, and the folder names them
    exits = numbers("--exits", options.exits) if named else None
    try:
        with _told_of_exits():
            found, promise = thresholds.calibrate_folder(folder, options.prompts, exits=exits, **given)
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on at the threshold where it was", file=sys.stderr)
        return 130
    if options.json:
        print(json.dumps(asdict(found) | {"promise": promise and asdict(promise)}, indent=2))
    else:
        for one in found.tested:
            level = next(iter(one.candidate.values()))
            print(f"threshold {level:g}: {one.failures} of {found.prompts} fail, p {one.p_value:.2g}")
        print(f"{promise}\nwritten: {folder / thresholds.FILE}" if promise else thresholds.refusal(found))
    return 0 if promise else 1


def _settings(pairs: list[str]) -> dict[str, Any]:
    """Return delta=.05 and so on as arguments of `calibrate_folder`."""
    names = {"delta": "delta", "epsilon": "epsilon", "loss": "bound", "tokens": "tokens", "missing": "skipped"}
    given: dict[str, Any] = {}
    for pair in pairs:
        key, _, value = pair.partition("=")
        if key not in names:
            raise TinykronError(f"--calibrate: expected {', '.join(f'{name}=' for name in names)}, found {pair!r}")
        try:
            given[names[key]] = value if key == "missing" else int(value) if key == "tokens" else float(value)
        except ValueError:
            raise TinykronError(f"--calibrate: {key}: expected a number, found {value!r}") from None
    return given
