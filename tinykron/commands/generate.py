"""`tinykron generate`: continue a prompt; leave early, speculate, run a part of an elastic model."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from tinykron.commands.options import COUNT, LR, SHARE, model, model_folder, told_of_exits
from tinykron.errors import TinykronError
from tinykron.support.progress import say

PROBE = 24  # tokens that `--speculate auto` writes to see which exit agrees with the model


def options(parser: argparse.ArgumentParser) -> None:
    """Add what `generate` takes."""
    model(parser)
    parser.add_argument("--prompt", default="The list type", help='text to continue (default "The list type")')
    parser.add_argument("--max-new-tokens", type=COUNT, metavar="N", help="default 60, or what the context holds")
    parser.add_argument("--temperature", type=LR, default=0.0, help="0 takes the likeliest token (default)")
    parser.add_argument("--top-k", type=COUNT, metavar="K", help="draw from the K likeliest tokens")
    parser.add_argument("--top-p", type=SHARE, metavar="P", help="draw from the likeliest tokens that reach P together")
    parser.add_argument("--exit", type=COUNT, metavar="N", help="decode by the first N blocks")
    parser.add_argument(
        "--confident", action="store_true", help="leave by the thresholds that the folder promises with"
    )
    parser.add_argument(
        "--threshold", metavar="T", help="leave where so sure: .9 at trained exits, or 2:.9,4:.8; a draft, too"
    )
    parser.add_argument(
        "--missing", choices=("recompute", "copy"), help="keys of blocks that a token skipped: exact, or not"
    )
    parser.add_argument(
        "--speculate", metavar="EXIT[:DRAFTS]", help="draft by an exit, the text stays; auto: choose one"
    )
    parser.add_argument("--draft", metavar="MODEL[:DRAFTS]", help="draft by another model, the text stays")
    parser.add_argument(
        "--shortlist", type=COUNT, metavar="N", help="drafts know the folder's N most frequent tokens alone"
    )
    parser.add_argument(
        "--budget", type=SHARE, metavar="S", help="of an elastic model: the best point that takes a share S of its cost"
    )
    parser.add_argument("--budget-of", choices=("flops", "bytes"), default="flops", help="the cost (default flops)")


def run(options: argparse.Namespace) -> int:
    """Run `generate`."""
    from tinykron import checkpoint
    from tinykron.decode.generate import Trace, generate

    folder = model_folder(options)
    loaded = checkpoint.load(folder)
    if loaded.tokenizer is None:
        raise TinykronError(f"{folder}: expected a tokenizer.json, to read the prompt with")
    loaded = _within_budget(options, folder, loaded)
    ids = loaded.tokenizer.encode(options.prompt).ids
    count = options.max_new_tokens
    if count is None:
        count = max(1, min(60, loaded.context - len(ids)))
    sampling = {name: getattr(options, name) for name in ("temperature", "top_k", "top_p")}
    with told_of_exits():
        rule = _rule(options, folder, loaded, ids, count)
    said = ""  # the prompt goes before the first piece: by then the arguments have proved good

    def stream(piece: str) -> None:
        nonlocal said
        print(piece if said else options.prompt + piece, end="", flush=True)
        said = options.prompt + piece

    trace, start = Trace(), time.perf_counter()
    written = generate(
        loaded,
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
        text = loaded.tokenizer.decode(written[len(ids) :].tolist())
        print(json.dumps({"prompt": options.prompt, "text": text, "ids": written.tolist()} | found))
    else:
        print("" if said else options.prompt)
        say(_in_words(found))
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
            say(line)
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
        listed = shortlist.read(folder, options.shortlist)
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
        say("speculate: no exit is predicted to help; decoding plainly")
        return {}
    exit, length, speedup = found
    say(f"speculate: exit {exit}, {length} drafts: predicted {speedup:.2f} times as fast")
    return {"draft": exit, "draft_length": length}


def _place(text: str) -> tuple[str, dict[str, int]]:
    """Return the model of MODEL or MODEL:DRAFTS, and what its end says of draft lengths."""
    name, colon, length = text.rpartition(":")
    if colon and (length.isdecimal() or length == "auto"):
        return name, _length(length, "--draft")
    return text, {}


def _within_budget(options: argparse.Namespace, folder: Path, model: Any) -> Any:
    """Return what a --budget leaves of the model of a folder, cut out; the model without one. Say what it is."""
    if options.budget is None:
        return model
    from tinykron import kron
    from tinykron.exits import pareto

    measured = pareto.read(folder)
    best = measured.best(options.budget, options.budget_of)
    costs = f"{best.flops / measured.full.flops:.2f} of the FLOPs, {best.bytes / measured.full.bytes:.2f} of the bytes"
    say(f"{best.point}: {costs}, held-out loss {best.loss:.3f} nats a token")
    return kron.cut(model, *best.point)
