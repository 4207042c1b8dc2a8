"""The relations of Sorted LLaMA that decode: leaving where sure, drafting by an exit, thresholds with a promise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tinykron import kron
from tinykron.decode.generate import Trace, changes, generate
from tinykron.decode.speed import predicted_speedup
from tinykron.exits import analysis
from tinykron.exits.losses import SortedLoss
from tinykron.exits.promises import ladder, promise
from tinykron.studies.claims import Relation, Values, above, below, both, falling, less, not_above, relation, rising
from tinykron.studies.sorted_students import Study, named

DECODING: list[Relation] = []
BLOCKS = "blocks of plain decoding over blocks run, a pass of few tokens counted as one"


def passes(model: Any, prompts: Sequence[Sequence[int]], exit: int, draft_length: int, new_tokens: int) -> Values:
    """Return what drafting by an exit gives. Counted are blocks: one costs about the same for one token and for few."""
    rounds = drafted = accepted = tokens = differing = 0
    for prompt in prompts:
        trace = Trace()
        text = generate(model, prompt, new_tokens, draft=exit, draft_length=draft_length, stop=(), trace=trace)
        differing += int((text != generate(model, prompt, new_tokens, stop=())).sum())
        rounds, drafted = rounds + trace.rounds, drafted + int(trace.drafted.sum())
        accepted, tokens = accepted + int(trace.accepted.sum()), tokens + new_tokens
    blocks = len(model.blocks)
    cost = (drafted + rounds) * exit + rounds * (blocks - exit)
    return {"gain": tokens * blocks / cost, "accepted": accepted / max(1, drafted), "differing": differing}


@relation(
    DECODING,
    "S7",
    "leaving where sure gains more than drafting",
    "1.34 and 1.16 times (table 2)",
    BLOCKS,
    less("gain by drafts", "gain by confidence"),
)
def s7(study: Study, seed: int) -> Values:
    """Thresholds as in the paper's appendix: .95 for the shallowest exit, then .9, then .8."""
    model, prompts = study.soft(seed), study.prompts(seed)
    thresholds = dict(zip(study.inner, (0.95, 0.9, 0.8, 0.8, 0.8, 0.8, 0.7), strict=False))
    depths, same = [], 0
    for prompt in prompts:
        trace = Trace()
        text = generate(model, prompt, study.scale.new_tokens, confidence=thresholds, stop=(), trace=trace)
        depths.append(trace.depths.mean())
        same += np.array_equal(text, generate(model, prompt, study.scale.new_tokens, stop=()))
    drafted = passes(model, prompts, study.inner[0], 4, study.scale.new_tokens)
    return {
        "gain by confidence": study.blocks / float(np.mean(depths)),
        "gain by drafts": drafted["gain"],
        "texts unchanged by confidence": same / len(prompts),
    }


@relation(
    DECODING,
    "S8",
    "drafting pays for long outputs, not for short ones",
    "1.16 and .82 times (table 2)",
    BLOCKS,
    both(less("short", "long"), above("long", 1.0), below("short", 1.0)),
)
def s8(study: Study, seed: int) -> Values:
    model, prompts = study.soft(seed), study.prompts(seed)
    exit, long = study.inner[0], study.scale.new_tokens
    found = {f"gain at {n}": passes(model, prompts, exit, 4, n)["gain"] for n in (2, long)}
    return {"short": found["gain at 2"], "long": found[f"gain at {long}"]}


@relation(
    DECODING,
    "S9",
    "greedy drafting changes nothing",
    "exact match 37.95 became 34.2 to 34.4 (table 2)",
    "tokens that differ from plain decoding",
    below("differing tokens", 1.0),
)
def s9(study: Study, seed: int) -> Values:
    model, prompts = study.soft(seed), study.prompts(seed)
    each = [passes(model, prompts, exit, 4, study.scale.new_tokens)["differing"] for exit in study.inner]
    return {"differing tokens": sum(each), "of": len(each) * len(prompts) * study.scale.new_tokens}


@relation(
    DECODING,
    "S10",
    "a deeper draft is accepted more often and gains less",
    "rejected .37 .31 .26, gain 1.16 1.11 1.11 (table 2)",
    "share accepted, and gain in blocks, by exit",
    both(rising("accepted"), falling("gain")),
)
def s10(study: Study, seed: int) -> Values:
    model, prompts = study.soft(seed), study.prompts(seed)
    each = {exit: passes(model, prompts, exit, 4, study.scale.new_tokens) for exit in study.inner}
    return named("accepted", {exit: found["accepted"] for exit, found in each.items()}) | named(
        "gain", {exit: found["gain"] for exit, found in each.items()}
    )


@relation(
    DECODING,
    "S13",
    "a sorted draft beside the target drafts better than the target's own exits",
    "1.55 and 1.22 times (S2D)",
    BLOCKS,
    less("own exits", "sorted draft"),
    "At the best exit, 4 tokens a draft.",
)
def s13(study: Study, seed: int) -> Values:
    """The target is plainly fine-tuned; drafts come from its exits, or from a sorted model of its first blocks."""
    target, prompts, length = study.sft(seed), study.prompts(seed), study.scale.new_tokens
    deepest = study.inner[-1]
    draft = study.trained(
        f"draft-{deepest}", seed, lambda model: SortedLoss(model, study.weights(model)), blocks=deepest
    )
    own = analysis.drift(target, prompts, study.inner, length)
    other = analysis.drift(draft, prompts, study.inner, length, reference=target)
    gains = [
        max(
            predicted_speedup(exit, study.blocks, 4, acceptance, shared)
            for exit, acceptance in zip(study.inner, drift.agreement_E, strict=True)
        )
        for drift, shared in ((own, True), (other, False))
    ]
    return {"own exits": gains[0], "sorted draft": gains[1]}


@relation(
    DECODING,
    "B5",
    "a draft that shares the model's states saves work",
    "LayerSkip: 9 to 20 ms a token",
    "positions times blocks",
    less("shared", "separate"),
)
def b5(study: Study, seed: int) -> Values:
    """The same drafts from the model's own exit, and from a copy of its first blocks as a model of its own."""
    model, exit = study.soft(seed), study.inner[0]
    other = kron.cut(model, exit)
    found = dict.fromkeys(("shared", "separate"), 0)
    for prompt in study.prompts(seed):
        for name, draft in (("shared", exit), ("separate", other)):
            trace = Trace()
            generate(model, prompt, study.scale.new_tokens, draft=draft, draft_length=4, stop=(), trace=trace)
            found[name] += trace.steps + trace.draft_steps * exit // len(other.blocks)
    return {name: float(value) for name, value in found.items()}


@relation(
    DECODING,
    "B6",
    "calibrated thresholds keep their promise",
    "thresholds set by hand",
    "share of fresh prompts whose text changes",
    not_above("calibrated, changed", "allowed"),
)
def b6(study: Study, seed: int) -> Values:
    """Thresholds calibrated on some prompts; on others, how many texts they change."""
    model, length, delta = study.soft(seed), min(16, study.scale.new_tokens), study.scale.delta
    count = max(study.scale.prompts, 40)
    prompts = study.prompts(seed, 2 * count)
    found = promise(
        ladder(study.inner, (0.999, 0.99, 0.97, 0.95, 0.9, 0.8)), changes(model, prompts[:count], length), delta, 0.1
    )
    changed = changes(model, prompts[count:], length)
    by_hand = dict.fromkeys(study.inner, 0.9)
    return {
        "calibrated, changed": float(changed(found.chosen or {}).mean()),
        "threshold .9, changed": float(changed(by_hand).mean()),
        "allowed": delta,
    }
