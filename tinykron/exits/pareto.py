"""What each point of an elastic model costs and what it loses, which points are worth having, the best for a budget."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from tinykron import data
from tinykron.data.masking import Masking
from tinykron.errors import CheckpointError, TinykronError
from tinykron.exits import analysis
from tinykron.exits.grid import Point, by_pass
from tinykron.kron.nested import part, size
from tinykron.measure.costs import flops_per_token
from tinykron.support import files
from tinykron.support.progress import Progress
from tinykron.support.tables import Table

FILE = "elastic.json"  # beside config.json
CONTEXT = 256  # tokens of a window, at most
COSTS = {"bytes": "bytes of the tensors", "flops": "multiplications and additions a token"}


@dataclass(frozen=True)
class Measured:
    """One point of the grid."""

    exit: int
    terms: int
    width: float
    loss: float  # held-out, nats a token; of hidden tokens for a masked model
    parameters: int  # of the point cut out: `kron.cut`
    bytes: int  # of these in the dtype of the file
    flops: int  # of one token's matrix products, at half the context; of factors in the cheaper order

    @property
    def point(self) -> Point:
        return Point(self.exit, self.terms, self.width)


@dataclass(frozen=True)
class Front:
    """All points of a grid, measured on the same text."""

    points: tuple[Measured, ...]
    tokens: int  # of the text
    context: int  # of a window

    @property
    def full(self) -> Measured:
        """The whole model: the deepest point with the most terms."""
        return max(self.points, key=lambda one: one.point)

    def pareto(self, cost: str = "flops") -> list[Measured]:
        """Return the points that no other beats at as little cost, cheap to dear: each loses less than all before it.

        cost  "flops" or "bytes"
        """
        kept: list[Measured] = []
        for one in sorted(self.points, key=lambda one: (_cost(one, cost), one.loss)):
            if not kept or one.loss < kept[-1].loss:
                kept.append(one)
        return kept

    def best(self, budget: float, cost: str = "flops") -> Measured:
        """Return the point that loses least among those that take at most a share `budget` of the full model's cost.

        Raises TinykronError for a share outside (0, 1], and for one below the smallest point, which it names.
        """
        if isinstance(budget, bool) or not isinstance(budget, int | float) or not 0.0 < budget <= 1.0:
            raise TinykronError(f"budget: expected a share above 0 and at most 1, found {budget!r}")
        whole, front = _cost(self.full, cost), self.pareto(cost)
        fits = [one for one in front if _cost(one, cost) <= budget * whole]
        if not fits:
            least = front[0]
            share = _cost(least, cost) / whole
            raise TinykronError(
                f"budget: found {budget:g} of the full model's {cost}; the smallest point, {least.point}, takes "
                f"{_cost(least, cost):,} of {whole:,}: {share:.3f}"
            )
        return fits[-1]

    def to_json(self) -> str:
        """Return the front as JSON text; a point says under "pareto" for which costs it is worth having."""
        kept = {cost: {one.point for one in self.pareto(cost)} for cost in COSTS}
        rows = [asdict(one) | {"pareto": [cost for cost in COSTS if one.point in kept[cost]]} for one in self.points]
        return json.dumps({"tokens": self.tokens, "context": self.context, "points": rows}, indent=2) + "\n"


def _cost(one: Measured, cost: str) -> int:
    if cost not in list(COSTS):
        raise TinykronError(f"cost: found {cost!r}, expected one of {', '.join(COSTS)}")
    return getattr(one, cost)


def elastic_front(
    model: Any,
    documents: Sequence[data.Document],
    grid: Sequence[Point],
    value_bytes: int = 4,
    limit: int = 8192,
    title: str = "measuring the grid",
) -> Front:
    """Measure every point of a grid: held-out loss, parameters, bytes, FLOPs a token.

    documents    text that the model was not trained on, of which at most `limit` tokens are read
    value_bytes  of a number in the model's file
    Raises TinykronError for a model that predicts no tokens or has no tokenizer, DataError for a text too short.
    """
    tokens, context, masking = _text(model, documents, limit)
    found: dict[Point, float] = {}
    with Progress(title, len(grid), "points") as progress:
        for (terms, width), exits in by_pass(grid).items():
            losses = analysis.losses(part(model, None, terms, width), tokens, context, exits, masking)
            found |= {Point(exit, terms, width): loss for exit, loss in losses.items()}
            progress.advance(len(exits), f"terms {terms}: " + ", ".join(f"{loss:.3f}" for loss in losses.values()))
    rows = [_measured(part(model, *point), point, found[point], value_bytes) for point in grid]
    return Front(tuple(rows), len(tokens), context)


def alone(model: Any, documents: Sequence[data.Document], value_bytes: int = 4, limit: int = 8192) -> Measured:
    """Measure a model without Kronecker sums on the same text; it has 0 terms. Raises what `elastic_front` does."""
    tokens, context, masking = _text(model, documents, limit)
    blocks = len(model.blocks)
    loss = analysis.losses(model, tokens, context, [blocks], masking)[blocks]
    return _measured(model, Point(blocks, 0), loss, value_bytes)


def _text(model: Any, documents: Sequence[data.Document], limit: int) -> tuple[np.ndarray, int, Masking | None]:
    causal = model.causal
    if model.tokenizer is None or not (model.writes or model.fills):
        found = f"found a {type(model).__name__}"
        raise TinykronError(f"elastic: {found}, expected a tokenizer and a head that predicts tokens")
    tokens = data.encode(model.tokenizer, documents)[:limit]
    return tokens, min(model.context, CONTEXT), None if causal else Masking.of(model.tokenizer)


def _measured(view: Any, point: Point, loss: float, value_bytes: int) -> Measured:
    parameters, flops = size(view), flops_per_token(view, view.context // 2)
    return Measured(*point, loss, parameters, parameters * value_bytes, flops)


# The file -------------------------------------------------------------------------------------------------------------


def write(front: Front, folder: str | Path) -> None:
    """Save the front into a model's folder, in place of one that is there."""
    files.write(Path(folder) / FILE, front.to_json())


def read(folder: str | Path) -> Front:
    """Return the front that was measured of the model in a folder.

    Raises CheckpointError where there is none, or the file is damaged.
    """
    path = Path(folder) / FILE
    if not path.exists():
        raise CheckpointError(f"{path}: found nothing; `tinykron grid MODEL --ranks ... --exits ...` measures one")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        names = [field.name for field in fields(Measured)]
        rows = tuple(Measured(**{name: row[name] for name in names}) for row in found["points"])
        front = Front(rows, found["tokens"], found["context"])
        front.best(1.0)  # compares numbers, and there is at least one
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: expected the measured grid of a model: {error}") from None
    return front


# Showing --------------------------------------------------------------------------------------------------------------

HEADINGS = (
    "exit",
    "terms",
    "width",
    "loss",
    "parameters",
    "bytes",
    "of full",
    "MFLOPs/token",
    "of full",
    "worth having for",
)


MARKERS = ("o-", "s:", "^:", "v:")  # of the full width, and of narrower ones


def cells(front: Front) -> list[list[str]]:
    """Return a row of text for each point, under HEADINGS."""
    full, kept = front.full, {cost: {one.point for one in front.pareto(cost)} for cost in COSTS}
    return [
        [
            str(one.exit),
            str(one.terms),
            f"{one.width:g}",
            f"{one.loss:.3f}",
            f"{one.parameters:,}",
            f"{one.bytes:,}",
            f"{one.bytes / full.bytes:.2f}",
            f"{one.flops / 1e6:.2f}",
            f"{one.flops / full.flops:.2f}",
            ", ".join(cost for cost in COSTS if one.point in kept[cost]),
        ]
        for one in front.points
    ]


def render(front: Front, title: str) -> str:
    """Return the grid as a table for a terminal."""
    return Table(HEADINGS, cells(front), title, left=HEADINGS[-1:]).boxed(120)


def markdown(front: Front) -> str:
    """Return the grid as a Markdown table."""
    return "\n".join(Table(HEADINGS, cells(front)).markdown("---:")) + "\n"


def plot(front: Front, path: str | Path, dense: Measured | None = None) -> None:
    """Draw loss against bytes and against FLOPs, a line for each exit and width, as PNG; `dense`: a model beside."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    for axis, cost in zip(figure.subplots(1, 2, sharey=True), COSTS, strict=True):
        widths = sorted({one.width for one in front.points}, reverse=True)
        for number, exit in enumerate(sorted({one.exit for one in front.points})):
            for width in widths:
                line = [one for one in front.points if (one.exit, one.width) == (exit, width)]
                places = [_cost(one, cost) for one in line], [one.loss for one in line]
                name = f"{exit} blocks" + (f", width {width:g}" if width != 1.0 else "")
                axis.plot(*places, MARKERS[widths.index(width) % len(MARKERS)], color=f"C{number}", label=name)
                for one, *place in zip(line, *places, strict=True):
                    axis.annotate(str(one.terms), place, xytext=(4, 4), textcoords="offset points", fontsize=8)
        kept = front.pareto(cost)
        places = [_cost(one, cost) for one in kept], [one.loss for one in kept]
        axis.plot(*places, "--", color="grey", label="beaten by none")
        if dense is not None:
            axis.scatter(_cost(dense, cost), dense.loss, marker="*", s=90, color="black", zorder=3, label="dense")
        axis.set(xlabel=COSTS[cost], ylabel="held-out loss, nats a token", title="each point with its terms")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.savefig(path, format="png", dpi=110)
