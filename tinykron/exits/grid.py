"""The grid of one elastic model: after how many blocks it is left, how many terms and MLP units of it count.

Every point (exit, terms, width) is a model, and all of them share their parameters. Drawn points are trained, as
SortedNet does (Valipour et al. 2023, arXiv 2309.00255), and learn from the full model or from a teacher.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from tinykron import fused
from tinykron.backend import Array, to_device, to_host
from tinykron.data.tokens import IGNORED
from tinykron.distill.distances import logit_kl
from tinykron.distill.losses import Losses
from tinykron.distill.objective import Distillation, total
from tinykron.errors import TinykronError
from tinykron.kron.nested import kron_layers, part
from tinykron.models.checks import check_exits
from tinykron.nn import evaluating
from tinykron.tensor import Tensor, no_grad
from tinykron.train.accumulate import accumulated


class Point(NamedTuple):
    """A model within a model: `model(ids, exit=exit, terms=terms, width=width)`."""

    exit: int  # blocks
    terms: int  # of each Kronecker sum, all of a shorter one
    width: float = 1.0  # share of the MLPs' units

    def __str__(self) -> str:
        return f"exit {self.exit}, terms {self.terms}" + (f", width {self.width:g}" if self.width != 1.0 else "")


def points(
    model: Any, exits: Sequence[int], terms: Sequence[int], widths: Sequence[float] = (1.0,)
) -> tuple[Point, ...]:
    """Return every triple of an exit, a number of terms and a width, shallow to deep, the full model among them.

    Raises TinykronError for a model without Kronecker sums, numbers out of range, and numbers that do not rise.
    """
    layers = kron_layers(model)
    if not layers:
        raise TinykronError(f"the {type(model).__name__} has no Kronecker sums; `tinykron compress` makes them")
    most = max(layer.terms for layer in layers)
    rising("exits", exits)
    rising("ranks", terms)
    rising("widths", widths)
    check_exits(None, exits, len(model.blocks))
    if not 1 <= terms[0] <= terms[-1] <= most:
        raise TinykronError(f"ranks: expected numbers in 1..{most}, the terms of the longest sum, found {[*terms]}")
    for width in widths:
        part(model, width=width)  # refuses one that is none
    axes = (exits, len(model.blocks)), (terms, most), (widths, 1.0)
    return tuple(Point(*point) for point in product(*(sorted({*values, whole}) for values, whole in axes)))


def by_pass(grid: Iterable[Point]) -> dict[tuple[int, float], list[int]]:
    """Return the exits of a grid by the terms and the width that they have in common: one pass serves them."""
    found: dict[tuple[int, float], list[int]] = {}
    for point in sorted(grid):
        found.setdefault((point.terms, point.width), []).append(point.exit)
    return found


def rising(name: str, values: Sequence[float]) -> None:
    """Raise TinykronError unless there is a number, and each is above the one before."""
    if not values or any(one >= later for one, later in zip(values, values[1:], strict=False)):
        raise TinykronError(f"{name}: expected one or more numbers, each above the one before, found {[*values]}")


def grid_weights(grid: Sequence[Point], full: float | None = None) -> dict[Point, float]:
    """Return how much each point counts: all alike, or the largest so much, and the others alike. They sum to 1.

    Raises TinykronError unless `full` is in [0, 1].
    """
    if full is None or len(grid) == 1:
        return dict.fromkeys(grid, 1.0 / len(grid))
    if not 0.0 <= full <= 1.0:
        raise TinykronError(f"full: expected a share in [0, 1], found {full}")
    return dict.fromkeys(grid, (1.0 - full) / (len(grid) - 1)) | {max(grid): full}


class GridLoss(Distillation):
    """Points of one model as an objective of `train.fit`: drawn ones, or all of them in every step.

    weights  {point: weight}, of `grid_weights`
    pull     share of a point's loss that is KL(reference || point), in place of the cross-entropy with the targets. The
             reference is the teacher or, without one, the largest point, which then has its cross-entropy alone
    draws    so many points for each batch, each drawn as often as its weight says: the gradient is that of all points
             in expectation, and `Settings.accumulate` batches make a step. 0: all points. There is one pass for
             each number of terms and width, and the graphs of two passes are never alive together
    teacher  a model of the same vocabulary, such as the dense one
    Raises TinykronError for weights below 0, none above it, or a share outside [0, 1].
    """

    def __init__(
        self, student: Any, weights: Mapping[Point, float], pull: float = 0.5, draws: int = 1, teacher: Any = None
    ) -> None:
        if not all(weight >= 0.0 for weight in weights.values()) or not any(weights.values()):
            raise TinykronError(f"grid weights: expected numbers of at least 0, not all 0, found {dict(weights)}")
        if not 0.0 <= pull <= 1.0:
            raise TinykronError(f"pull: expected a share in [0, 1], found {pull}")
        follows = teacher is not None and pull > 0.0
        super().__init__(student, teacher, losses=Losses(0.0, 0.0, 0.0, 1.0 - follows, logits=float(follows)))
        self.weights, self.pull, self.draws = dict(weights), pull, draws
        self.largest = Point(*map(max, zip(*weights, strict=True)))
        self.generator = np.random.default_rng(0)

    @property
    def identity(self) -> str:
        return repr((super().identity, self.weights, self.pull, self.draws))

    def start(self, *seed: int) -> None:
        super().start(*seed)
        self.generator = np.random.default_rng(seed)

    def __call__(
        self, batch: Any, progress: float = 0.0, known: Any = None, only: Collection[str] = ()
    ) -> tuple[Tensor, dict[str, float]]:
        """Return the loss of a `Batch`, and each point's own value before weighting; of drawn ones their mean.

        known  what the teacher says of this batch, from `ask`; by default it is asked
        """
        if not self.draws:
            return self.of(batch, self.weights, known)
        loss, _ = self.of(batch, self.draw(), known)
        return loss, {"drawn points": loss.item() / sum(self.weights.values())}

    def draw(self) -> dict[Point, float]:
        """Return drawn points, and how much each counts: in expectation, as much as `weights` says."""
        whole = sum(self.weights.values())
        shares = [weight / whole for weight in self.weights.values()]
        places = self.generator.choice(len(shares), size=self.draws, p=shares)
        found: dict[Point, float] = {}
        for place in places:
            point = list(self.weights)[place]
            found[point] = found.get(point, 0.0) + whole / self.draws
        return found

    def of(self, batch: Any, weights: Mapping[Point, float], known: Any = None) -> tuple[Tensor, dict[str, float]]:
        """Return the weighted sum of the losses of points, and each one's own value."""
        wanted = {point: weight for point, weight in weights.items() if weight}
        inputs = [batch.ids_BT, *([] if batch.mask_BT is None else [batch.mask_BT])]
        values: dict[str, float] = {}
        losses = self._losses(batch, inputs, wanted, self._reference(batch, inputs, wanted, known), values)
        return accumulated(losses, self.student.parameters()), values

    def _losses(
        self,
        batch: Any,
        inputs: Sequence[Any],
        wanted: Mapping[Point, float],
        reference: Array | None,
        values: dict[str, float],
    ) -> Iterator[Tensor]:
        """Yield what the points of each pass add to the loss; put each one's own value into `values`."""
        counts_BT = to_device(to_host(batch.targets) != IGNORED, self.device)
        for (terms, width), exits in by_pass(wanted).items():
            served = self.student(*inputs, exits=exits, terms=terms, width=width).exits
            parts = []
            for exit, logits in served.items():
                point = Point(exit, terms, width)
                pull = self.pull if reference is not None and self._follows(point) else 0.0
                losses = []
                if pull < 1.0:
                    losses.append(fused.cross_entropy(logits, batch.targets, IGNORED) * (1.0 - pull))
                if pull:
                    losses.append(logit_kl(logits, reference, counts_BT) * pull)
                loss = total(losses)
                values[str(point)] = loss.item()
                parts.append(loss * wanted[point])
            yield total(parts)

    def _follows(self, point: Point) -> bool:
        return self.losses.needs_teacher or point != self.largest

    def _reference(self, batch: Any, inputs: Sequence[Any], wanted: Iterable[Point], known: Any) -> Array | None:
        """Return the logits that points learn from, without dropout and without a tape; None where none does."""
        if not self.pull or not any(map(self._follows, wanted)):
            return None
        if self.losses.needs_teacher:
            return (known or self.ask(batch, self.losses.terms))["logits"]
        with no_grad(), evaluating(self.student):
            return self.student(*inputs, **self.largest._asdict()).logits.data
