"""Early exits: how sure a token is, thresholds that keep a promise, and losses that make every exit a usable model.

Letters: B batch, T positions, V vocabulary, P prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np

from tinykron import fused, shapes
from tinykron.backend import to_device, to_host
from tinykron.data.tokens import IGNORED
from tinykron.distill.distances import logit_kl
from tinykron.distill.losses import Losses
from tinykron.distill.objective import Distillation, total
from tinykron.errors import TinykronError
from tinykron.nn import evaluating
from tinykron.tensor import Tensor
from tinykron.train.accumulate import accumulated

Batch = Sequence[Any]  # inputs, targets, and what else the model's forward takes: a mask, token types

POSITIONS_AT_ONCE = 256  # that the head reads: bounds the logits that are alive in a training step


# Thresholds with a promise --------------------------------------------------------------------------------------------


# Losses ---------------------------------------------------------------------------------------------------------------


def exit_loss(
    model: Any, batch: Batch, weights: Mapping[int, float], distillation: float = 0.0
) -> tuple[Tensor, dict[str, float]]:
    """Return a weighted sum over exits of their losses, from one pass, and each exit's own values in nats.

    weights       {blocks: weight}, such as `equal_weights` makes: Sorted LLaMA's eq. 1, SoFT
    distillation  share of an inner exit's loss that is KL(last exit || exit), the last one held fixed, in place of the
                  cross-entropy with the targets; the last exit, the deepest in `weights`, has its cross-entropy alone.
                  With 1 and a weight of 0 for the last: Balcony's
    The head reads one exit at a time, and of each a few hundred positions, only those whose target counts: so many
    logits are alive at once, however many exits there are. Their gradients are made here and wait in the scalar that
    is returned.
    Raises TinykronError for weights below 0, none above it, or a share outside [0, 1].
    """
    _check_weights(weights)
    if not 0.0 <= distillation <= 1.0:
        raise TinykronError(f"distillation: expected a share in [0, 1], found {distillation}")
    inputs, targets, *others = batch
    last = max(weights)
    wanted = [exit for exit in weights if weights[exit] or (exit == last and distillation)]
    states = model(inputs, *others, exits=wanted, read=False).states
    leaves = {exit: _leaf(state) for exit, state in states.items()}
    terms: dict[str, float] = {}
    parts = _parts(model, leaves, to_host(targets), weights, distillation, terms)
    parameters = model.parameters()
    loss = accumulated(parts, [*leaves.values(), *parameters], [*states.values(), *parameters])
    names = [name for exit in leaves for name in (f"exit {exit}", f"exit {exit} KL")]
    return loss, {name: terms[name] for name in names if name in terms}


def _leaf(state: Tensor) -> Tensor:
    """Return a tensor of the same values at which the head's gradients stop."""
    leaf = state.detach()
    leaf.requires_grad = state.requires_grad
    return leaf


def _parts(
    model: Any,
    states: Mapping[int, Tensor],
    targets: np.ndarray,
    weights: Mapping[int, float],
    distillation: float,
    terms: dict[str, float],
) -> Iterator[Tensor]:
    """Yield what each exit adds to the loss, block by block of positions; add to `terms` each exit's own values."""
    last = max(weights)
    for select, targets_N, share in _blocks(targets):
        teacher = None
        for exit in sorted(states, key=lambda exit: exit != last):  # the last one first: the others are told by it
            logits = model.read(select(states[exit]), exit)
            pull = distillation if exit != last else 0.0
            if distillation and exit == last:
                teacher = logits.data
            if not weights[exit]:
                continue
            loss: list[Tensor] = []
            if pull < 1.0:
                cross_entropy = fused.cross_entropy(logits, targets_N, IGNORED)
                _add(terms, f"exit {exit}", cross_entropy, share)
                loss.append(cross_entropy * (weights[exit] * (1.0 - pull) * share))
            if pull and teacher is not None:
                kl = logit_kl(logits, teacher)
                _add(terms, f"exit {exit} KL", kl, share)
                loss.append(kl * (weights[exit] * pull * share))
            yield total(loss)


def _add(terms: dict[str, float], name: str, value: Tensor, share: float) -> None:
    terms[name] = terms.get(name, 0.0) + value.item() * share


def _blocks(targets: np.ndarray) -> Iterator[tuple[Callable[[Tensor], Tensor], np.ndarray, float]]:
    """Yield a selection of states, their targets, and their share of all that count: positions, or whole texts."""
    if targets.ndim == 1:  # classes of a sequence head, whose logits are few
        yield lambda state: state, targets, 1.0
        return
    flat = targets.reshape(-1)
    places = np.flatnonzero(flat != IGNORED)
    if not len(places):
        places = np.zeros(1, np.int64)  # nothing counts: a loss of 0, with gradients of 0
    for start in range(0, len(places), POSITIONS_AT_ONCE):
        chosen = places[start : start + POSITIONS_AT_ONCE]

        def select(state_BTD: Tensor, chosen: np.ndarray = chosen) -> Tensor:
            rows = to_device(chosen, state_BTD.device)
            return shapes.take_rows(state_BTD.reshape(-1, state_BTD.shape[-1]), rows).reshape(1, len(chosen), -1)

        yield select, flat[chosen][None], len(chosen) / len(places)


def sampled_losses(
    model: Any, batch: Batch, weights: Mapping[int, float], draws: int, generator: np.random.Generator
) -> Iterator[Tensor]:
    """Yield the losses of exits drawn at random, each to be sent backward before the next is asked for.

    The gradients that add up are those of `exit_loss` in expectation, each exit drawn as often as its weight says; no
    pass is deeper than its exit. SortedNet, Valipour et al. 2023: sampled sub-models with gradient accumulation.
    """
    _check_weights(weights)
    exits, sum_of_weights = list(weights), sum(weights.values())
    shares = np.array([weights[exit] for exit in exits]) / sum_of_weights
    for exit in generator.choice(exits, size=draws, p=shares):
        loss, _ = exit_loss(model, batch, {int(exit): 1.0})
        yield loss * (sum_of_weights / draws)


class SortedLoss(Distillation):
    """The exits of one model as an objective of `train.fit`: no teacher but the model's own last exit.

    weights  {blocks: weight}, of `equal_weights` (SoFT), or `depth_weights` (LayerSkip)
    pull     share of an inner exit's loss that is the KL from the last one: see `exit_loss`
    draws    0: all exits in every step; else so many drawn at random, as `sampled_losses` has it (SortedNet)
    rotation of the weights, as `rotated` has it: every exit once in so many steps; 1: always all
    origin   what else two runs must have in common for one to go on where the other stopped: their start, say
    A student of which a part is frozen runs without dropout, so that what stands still says the same in every step.
    """

    def __init__(
        self,
        student: Any,
        weights: Mapping[int, float],
        pull: float = 0.0,
        draws: int = 0,
        rotation: int = 1,
        origin: str = "",
    ) -> None:
        super().__init__(student, losses=Losses(0.0, 0.0, 0.0, 1.0))
        _check_weights(weights)
        if not 0.0 <= pull <= 1.0 or draws < 0 or rotation < 1:
            expected = "a share in [0, 1], a number from 0 on, one from 1 on"
            raise TinykronError(f"exits: found pull {pull}, draws {draws}, rotation {rotation}, expected {expected}")
        self.weights, self.pull, self.draws, self.rotation = dict(weights), pull, draws, rotation
        self.origin = origin
        self.step, self.generator = 0, np.random.default_rng(0)

    @property
    def identity(self) -> str:
        return repr((super().identity, self.weights, self.pull, self.draws, self.rotation, self.origin))

    def start(self, *seed: int) -> None:
        super().start(*seed)
        self.step, self.generator = seed[-1], np.random.default_rng(seed)

    def __call__(
        self, batch: Any, progress: float = 0.0, known: Any = None, only: Collection[str] = ()
    ) -> tuple[Tensor, dict[str, float]]:
        """Return the loss of a `Batch`, and each exit's own value in nats; of drawn exits their mean."""
        frozen = not all(parameter.requires_grad for parameter in self.student.parameters())
        with evaluating(self.student) if frozen else nullcontext():
            return self._loss(batch)

    def _loss(self, batch: Any) -> tuple[Tensor, dict[str, float]]:
        given = [batch.ids_BT, batch.targets, *([] if batch.mask_BT is None else [batch.mask_BT])]
        if self.draws:
            drawn = sampled_losses(self.student, given, self.weights, self.draws, self.generator)
            loss = accumulated(drawn, self.student.parameters())
            return loss, {"drawn exits": loss.item() / sum(self.weights.values())}
        return exit_loss(self.student, given, rotated(self.weights, self.step, self.rotation), self.pull)


def equal_weights(exits: Sequence[int]) -> dict[int, float]:
    """Return the mean over exits: Sorted LLaMA, eq. 1."""
    return dict.fromkeys(exits, 1.0 / len(exits))


def depth_weights(exits: Sequence[int], blocks: int, scale: float) -> dict[int, float]:
    """Return weights that grow with depth, and sum to 1: LayerSkip's, section 4.1.2.

    An exit after l + 1 of L blocks has scale * (0 + 1 + ... + l), the last one L - 1 + scale * (0 + ... + L - 2).
    """
    raw = {exit: scale * (exit - 1) * exit / 2 for exit in exits}
    if blocks in raw:
        raw[blocks] = blocks - 1 + scale * (blocks - 2) * (blocks - 1) / 2
    return _normalised(raw)


def rotated(weights: Mapping[int, float], step: int, period: int) -> dict[int, float]:
    """Return the weights of one training step: every period-th exit, others from step to step, and always the last.

    They sum to 1. An inner exit comes once in `period` steps, so that a step reads few of them. LayerSkip's rotational
    curriculum, section 4.1.2.
    """
    exits = sorted(weights)
    turn = {exit for place, exit in enumerate(exits) if place % period == step % period}
    return _normalised({exit: weights[exit] for exit in exits if exit in turn or exit == exits[-1]})


def _normalised(weights: Mapping[int, float]) -> dict[int, float]:
    _check_weights(weights)
    whole = sum(weights.values())
    return {exit: weight / whole for exit, weight in weights.items()}


def _check_weights(weights: Mapping[int, float]) -> None:
    if not all(weight >= 0.0 for weight in weights.values()) or not any(weights.values()):
        raise TinykronError(f"exit weights: expected numbers of at least 0, not all 0, found {dict(weights)}")
