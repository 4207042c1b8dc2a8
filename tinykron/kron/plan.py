"""A plan: what each matrix of a model becomes, why, and what is known of it. Readable as a table, editable as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from math import sqrt
from typing import Any

import numpy as np

from tinykron.errors import CheckpointError, ShapeError
from tinykron.kron.algebra import KronSum, Shape, check_terms, factor_shapes
from tinykron.kron.product import multiplications_of
from tinykron.support.tables import Table


@dataclass(frozen=True)
class Choice:
    """How one matrix is factorised. Raises ShapeError if the shape does not divide it, or has fewer terms.

    The first three say what is done; A of the shape of the matrix itself leaves it dense. The rest is what is known of
    it: None, or empty, where nobody looked.
    """

    dense: Shape  # (M*P, N*Q): out x in of a Linear, rows x width of an Embedding
    shape: Shape  # (M, N) of A
    terms: int = 1
    energy: float | None = None  # share of the matrix's norm that the fit kept, in the metric of the fit
    loss: float | None = None  # |E X|^2 / |W X|^2 on the calibration text; without one, |E|^2 / |W|^2
    low_rank: float | None = None  # the same for the best low rank of as many parameters
    bounds: list[float] | None = None  # between which the least loss lies that as many terms can have: a certificate
    sensitivity: float | None = None  # by which the planner weighed the loss
    microseconds: dict[str, list[float]] = field(default_factory=dict)  # measured, by tokens: [factors, dense]
    lookup: bool = False  # whether this is a table of which rows are looked up, and nothing is multiplied with
    reason: str = ""

    def __post_init__(self) -> None:
        check_terms(self.terms, *factor_shapes(self.dense, self.shape))

    @property
    def other(self) -> Shape:
        """(P, Q), the shape of B."""
        return factor_shapes(self.dense, self.shape)[1]

    @property
    def is_dense(self) -> bool:
        """Whether the matrix is left as it is."""
        return self.shape == self.dense

    @property
    def kind(self) -> str:
        """In words: dense, low rank (a column and a row), or Kronecker."""
        if self.is_dense:
            return "dense"
        return "low rank" if is_low_rank(self.shape, self.other) else "Kronecker"

    @property
    def parameters(self) -> int:
        """Of the factors, or of the matrix left dense."""
        if self.is_dense:
            return self.parameters_before
        (m, n), (p, q) = self.shape, self.other
        return self.terms * (m * n + p * q)

    @property
    def parameters_before(self) -> int:
        """Of the dense matrix."""
        return self.dense[0] * self.dense[1]

    @property
    def flops(self) -> int:
        """Multiplications and additions for one vector, in the cheaper order; 0 of a lookup. KroneckerBERT eq. 7."""
        if self.lookup:
            return 0
        if self.is_dense:
            return 2 * self.parameters_before
        return 2 * self.terms * multiplications_of(self.shape, self.other)


def is_low_rank(a_shape: Shape, b_shape: Shape) -> bool:
    """Whether one factor is a column and the other a row, so that R terms are a matrix of rank R."""
    return a_shape[1] == b_shape[0] == 1 or a_shape[0] == b_shape[1] == 1


class KronPlan(dict[str, Choice]):
    """What each matrix of a model becomes, by module name, in the model's order. A dict: edit it as one.

    `str(plan)` is a table; `to_json` and `from_json` save it and read it back.
    """

    value_bytes = 4  # of the file's dtype, by which bytes are counted
    notes: Sequence[str] = ()  # of the planner: budgets met, duality gap
    fits: dict[str, KronSum]  # that the planner made; not saved, and used only where the choice is still the same

    def __init__(self, *entries: Any, **named: Choice) -> None:
        super().__init__(*entries, **named)
        self.fits = {}

    @property
    def parameters(self) -> int:
        """Of all matrices of the plan, as it says."""
        return sum(choice.parameters for choice in self.values())

    @property
    def flops(self) -> int:
        """Of one token's products with all matrices of the plan, as it says."""
        return sum(choice.flops for choice in self.values())

    @property
    def flops_before(self) -> int:
        """Of the same with the dense matrices."""
        return sum(2 * choice.parameters_before for choice in self.values() if not choice.lookup)

    def total(self, dense: int) -> int:
        """Return the number of parameters of a whole model that has `dense` of them before the plan is carried out."""
        return dense - sum(choice.parameters_before for choice in self.values()) + self.parameters

    def to_json(self) -> str:
        """Return the plan as JSON text: {name: {"dense": [..], "shape": [..], "terms": .., "energy": .., ...}}.

        Edit "shape" and "terms"; parameters, bytes and FLOPs are there to be read, and follow from these.
        """
        entries = {
            name: {
                key: value for key, value in vars(choice).items() if value not in (None, {}, "") and value is not False
            }
            | {"parameters": choice.parameters, "bytes": choice.parameters * self.value_bytes, "flops": choice.flops}
            for name, choice in self.items()
        }
        return json.dumps(entries, indent=2)

    @classmethod
    def from_json(cls, text: str) -> KronPlan:
        """Return the plan that `to_json` wrote. Raises CheckpointError naming the entry that is none."""
        try:
            entries = json.loads(text)
        except json.JSONDecodeError as error:
            raise CheckpointError(f"a Kronecker plan is JSON text: {error}") from None
        if not isinstance(entries, dict):
            raise CheckpointError(f"a Kronecker plan maps names to choices, found a {type(entries).__name__}")
        return cls((name, _choice(name, entry)) for name, entry in entries.items())

    def __str__(self) -> str:
        columns = [_columns(name, choice, self.value_bytes) for name, choice in self.items()]
        shown = [head for head in HEADS if any(cells.get(head) for cells in columns)]
        before = sum(choice.parameters_before for choice in self.values())
        total = {"matrix": "together", "parameters": f"{before:,}", "after": f"{self.parameters:,}"}
        total["bytes"] = f"{self.parameters * self.value_bytes:,}"
        if "MFLOPs" in shown:
            total["MFLOPs"] = f"{self.flops / 1e6:.2f}"
        rows = [[cells.get(head, "") for head in shown] for cells in [*columns, total]]
        return "\n".join([*Table(shown, rows, left=("matrix", "why")).plain(), *self.notes])


HEADS = (
    "matrix",
    "dense",
    "A",
    "B",
    "terms",
    "parameters",
    "after",
    "bytes",
    "MFLOPs",
    "energy",
    "Gaussian",
    "loss",
    "at best",
    "low rank",
    "us at 1/16/256 (dense)",
    "why",
)


def _columns(name: str, choice: Choice, value_bytes: int) -> dict[str, str]:
    a_shape, b_shape = (f"{rows}x{columns}" for rows, columns in (choice.shape, choice.other))
    cells = {
        "matrix": name,
        "dense": f"{choice.dense[0]}x{choice.dense[1]}",
        "parameters": f"{choice.parameters_before:,}",
    }
    cells |= {"after": f"{choice.parameters:,}", "MFLOPs": f"{choice.flops / 1e6:.3f}", "why": choice.reason}
    cells["bytes"] = f"{choice.parameters * value_bytes:,}"
    if not choice.is_dense:
        cells |= {"A": a_shape, "B": b_shape, "terms": str(choice.terms)}
        cells["Gaussian"] = f"{gaussian_energy(choice.dense, choice.shape, choice.terms):.3f}"
    for head, value in (("energy", choice.energy), ("loss", choice.loss), ("low rank", choice.low_rank)):
        cells[head] = "" if value is None else f"{value:.3f}"
    if choice.bounds is not None:
        cells["at best"] = f"{choice.bounds[0]:.3f}"
    if choice.microseconds:
        ours, dense = ["/".join(f"{times[side]:.0f}" for times in choice.microseconds.values()) for side in (0, 1)]
        cells["us at 1/16/256 (dense)"] = f"{ours} ({dense})"
    return cells


REQUIRED = ("dense", "shape", "terms")
DERIVED = ("parameters", "bytes", "flops")


def _choice(name: str, entry: object) -> Choice:
    known = [part.name for part in fields(Choice)]
    if not isinstance(entry, dict) or not {*REQUIRED} <= entry.keys() <= {*known, *DERIVED}:
        found = ", ".join(entry) if isinstance(entry, dict) else repr(entry)
        known_too = ", ".join(known[len(REQUIRED) :])
        raise CheckpointError(
            f"Kronecker plan, {name}: expected {', '.join(REQUIRED)}, and if known {known_too}; found {found}"
        )
    dense, shape, terms = (entry[key] for key in ("dense", "shape", "terms"))
    if not _is_pair(dense) or not _is_pair(shape) or type(terms) is not int:
        raise CheckpointError(
            f"Kronecker plan, {name}: dense and shape are pairs of whole numbers, terms is one: {entry}"
        )
    for key in ("energy", "loss", "low_rank", "sensitivity"):
        if entry.get(key) is not None and type(entry[key]) not in (int, float):
            raise CheckpointError(f"Kronecker plan, {name}: {key} is a number or null, found {entry[key]!r}")
    bounds = {"bounds": entry["bounds"]} if entry.get("bounds") is not None else {}
    if not _are_pairs(entry.get("microseconds", {})) or not _are_pairs(bounds):
        raise CheckpointError(f"Kronecker plan, {name}: bounds and microseconds are pairs of numbers: {entry}")
    if not isinstance(entry.get("reason", ""), str) or not isinstance(entry.get("lookup", False), bool):
        raise CheckpointError(f"Kronecker plan, {name}: reason is a text, lookup true or false: {entry}")
    entry = {key: value for key, value in entry.items() if key not in DERIVED}
    try:
        return Choice(**entry | {"dense": (dense[0], dense[1]), "shape": (shape[0], shape[1])})
    except ShapeError as error:
        raise CheckpointError(f"Kronecker plan, {name}: {error}") from None


def _is_pair(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(type(number) is int for number in value)


def _are_pairs(value: object) -> bool:
    return isinstance(value, dict) and all(
        isinstance(pair, list) and len(pair) == 2 and all(type(number) in (int, float) for number in pair)
        for pair in value.values()
    )


GAUSSIAN_VALUES = 1024  # singular values to draw before an average counts as the expectation


def gaussian_energy(dense: Shape, shape: Shape, terms: int = 1) -> float:
    """Return the energy that `nearest` would keep, on average, of a matrix of independent Gaussian numbers.

    The yardstick for a fit: a matrix that keeps no more than this has no Kronecker structure of this shape.
    dense, shape  of the matrix (M*P, N*Q) and of A (M, N)
    The mean over seeded draws of the singular values of a Gaussian (M*N, P*Q) matrix; they are those of a bidiagonal
    matrix of chi variables, so that no large matrix is drawn. Dumitriu & Edelman 2002. Raises ShapeError.
    """
    a_shape, b_shape = factor_shapes(dense, shape)
    check_terms(terms, a_shape, b_shape)
    short, long = sorted((a_shape[0] * a_shape[1], b_shape[0] * b_shape[1]))
    return _gaussian_energy(short, long, terms)


@cache
def _gaussian_energy(short: int, long: int, terms: int) -> float:
    from scipy.linalg import eigvalsh_tridiagonal

    if terms == short:
        return 1.0
    generator = np.random.default_rng(0)
    draws = max(4, GAUSSIAN_VALUES // short)
    energy = 0.0
    for _ in range(draws):
        diagonal = generator.chisquare(np.arange(long, long - short, -1))
        below = generator.chisquare(np.arange(short - 1, 0, -1))
        square = diagonal.copy()  # the bidiagonal matrix times its transpose: tridiagonal
        square[1:] += below
        top = eigvalsh_tridiagonal(
            square, np.sqrt(diagonal[:-1] * below), select="i", select_range=(short - terms, short - 1)
        )
        energy += sqrt(float(top.sum() / square.sum())) / draws
    return energy
