"""Thresholds whose loss keeps a bound with a stated probability: tests on prompts, one candidate after the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, log
from typing import Any, Generic, TypeVar

import numpy as np

from tinykron.backend import to_host
from tinykron.data.tokens import IGNORED
from tinykron.decode.sampling import confidence
from tinykron.errors import ShapeError, TinykronError
from tinykron.exits.losses import Batch
from tinykron.nn import evaluating
from tinykron.tensor import no_grad

Candidate = TypeVar("Candidate")


def losses_by_confidence(model: Any, batch: Batch, thresholds: Mapping[int, float]) -> np.ndarray:
    """Return each text's mean cross-entropy, (B,) float64 in nats, if each token leaves at the first sure exit.

    batch       token ids and targets, (B, T) each; a target of -100 does not count
    thresholds  {blocks: least confidence}; {} gives the loss of the full model
    Every position has the keys and values of all before it, as decoding has that recomputes what was skipped.
    """
    inputs_BT, targets_BT, *others = batch
    counts_BT = targets_BT != IGNORED
    places_BT1 = np.where(counts_BT, targets_BT, 0)[..., None]
    depths = sorted({*thresholds, len(model.blocks)})
    with no_grad(), evaluating(model):
        served = model(inputs_BT, *others, exits=depths).exits
    loss_BT, left_BT = np.zeros(targets_BT.shape), np.zeros(targets_BT.shape, bool)
    for depth in depths:
        logits_BTV = to_host(served[depth].data).astype(np.float64)
        logits_BTV -= logits_BTV.max(axis=-1, keepdims=True)
        here_BT = np.log(np.exp(logits_BTV).sum(axis=-1)) - np.take_along_axis(logits_BTV, places_BT1, -1)[..., 0]
        sure_BT = ~left_BT if depth == depths[-1] else ~left_BT & (confidence(logits_BTV) >= thresholds[depth])
        loss_BT[sure_BT] = here_BT[sure_BT]
        left_BT |= sure_BT
    return (loss_BT * counts_BT).sum(axis=1) / np.maximum(counts_BT.sum(axis=1), 1)


@dataclass(frozen=True)
class Tested(Generic[Candidate]):
    """A candidate that was put to the test."""

    candidate: Candidate
    failures: int  # prompts whose output is not as it should be
    p_value: float  # how likely so few are, if their true share is `delta`


@dataclass(frozen=True)
class Promised(Generic[Candidate]):
    """Which thresholds may be used, and what that promises."""

    chosen: Candidate | None  # the last candidate that passed; None: not even the first, so use no early exit
    delta: float  # the share of prompts that may fail
    epsilon: float  # the probability that more do after all
    prompts: int
    tested: tuple[Tested[Candidate], ...]  # in order; the last one failed, unless all passed

    def __str__(self) -> str:
        rows = [f"{one.candidate}: {one.failures} of {self.prompts}, p {one.p_value:.2g}" for one in self.tested]
        promise = (
            f"with probability {1.0 - self.epsilon:g} over the prompts, at most a share of {self.delta:g} fails with "
            f"{self.chosen}"
            if self.chosen is not None
            else f"no candidate holds failures to a share of {self.delta:g}; leave early nowhere"
        )
        return "\n".join([*rows, promise])


def promise(
    candidates: Sequence[Candidate],
    fails: Callable[[Candidate], Sequence[bool] | np.ndarray],
    delta: float,
    epsilon: float = 0.05,
) -> Promised[Candidate]:
    """Return the boldest thresholds of which it is safe to say: at most a share `delta` of prompts fails.

    candidates  from careful to bold, in an order chosen before the prompts were seen: see `ladder`
    fails       says for each prompt whether its output fails with a candidate, (P,): that it differs from the full
                model's (`generate.changes`), or that a loss is above a bound (`losses_by_confidence`). The prompts are
                to be drawn independently, from what the model will meet
    epsilon     how likely, over the draw of the prompts, the promise may be broken
    Each candidate is tested in turn with the exact binomial tail, and the first that does not pass ends the search, so
    that no correction for several tests is needed. Raises TinykronError where there are too few prompts to prove it.
    Learn-then-Test, Angelopoulos et al. 2021, with fixed-sequence testing; for early exits: CALM, Schuster et al. 2022.
    """
    check_prompts(None, delta, epsilon)
    if not candidates:
        raise TinykronError("promise: expected at least one candidate")
    chosen, tested, prompts = None, [], 0
    for candidate in candidates:
        failed_P = np.asarray(fails(candidate))
        if failed_P.ndim != 1 or failed_P.dtype != bool or len(failed_P) != (prompts or len(failed_P)):
            expected = f"({prompts},)" if prompts else "(prompts,)"
            found = f"{failed_P.dtype} {failed_P.shape}"
            raise ShapeError(f"promise: of each candidate, expected booleans {expected}, found {found}")
        prompts = len(failed_P)
        check_prompts(prompts, delta, epsilon)
        failures = int(failed_P.sum())
        p_value = binomial_tail(failures, prompts, delta)
        tested.append(Tested(candidate, failures, p_value))
        if p_value > epsilon:
            break
        chosen = candidate
    return Promised(chosen, delta, epsilon, prompts, tuple(tested))


def check_prompts(prompts: int | None, delta: float, epsilon: float) -> None:
    """Raise TinykronError unless so many prompts can prove a share of `delta`; None: for delta and epsilon alone."""
    for name, value in (("delta", delta), ("epsilon", epsilon)):
        if not 0.0 < value < 1.0:
            raise TinykronError(f"promise: {name}: expected a number between 0 and 1, found {value}")
    if prompts is not None and (1.0 - delta) ** prompts > epsilon:
        least = ceil(log(epsilon) / log(1.0 - delta))
        raise TinykronError(f"promise: {prompts} prompts prove nothing, whatever they give; at least {least} can")


def prompts_needed(failures: int, prompts: int, delta: float, epsilon: float) -> int | None:
    """Return about how many prompts would prove `delta`, if as large a share of them fails; None: no number would."""
    share, count = failures / prompts, prompts
    if share >= delta:
        return None
    while binomial_tail(ceil(share * count), count, delta) > epsilon:
        count += 1 + count // 50
    return count


def binomial_tail(count: int, trials: int, probability: float) -> float:
    """Return the probability of at most `count` successes in so many independent trials."""
    from scipy.special import bdtr  # imported when first used: scipy is half of tinykron's import time

    return float(bdtr(count, trials, probability))


def ladder(exits: Sequence[int], levels: Sequence[float]) -> list[dict[int, float]]:
    """Return candidates for `promise`: one threshold for all exits, from the highest level to the lowest."""
    return [dict.fromkeys(exits, level) for level in sorted(levels, reverse=True)]
