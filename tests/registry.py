"""Every op in one table: one row gives its value, gradient, dtype, shape, layout, zero-size and device tests.

A row draws cases. A case is the inputs (arrays) and the options (axis, eps, ...) of one call, so that options may
depend on shapes. Float inputs are differentiated, but for the row's `constants`; others go in as arrays.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from hypothesis.strategies import SearchStrategy
from scipy import special

from tests.strategies import (
    AWAY_FROM_ZERO,
    POSITIVE,
    Shape,
    arrays,
    broadcastable_pairs,
    matmul_pairs,
    shapes,
    zero_size_shapes,
)
from tinykron import attention, fused, ops
from tinykron import shapes as shapes_module

MODULES = (ops, fused, attention)


@dataclass(frozen=True)
class Case:
    inputs: tuple[np.ndarray, ...]
    options: dict[str, Any]


@dataclass(frozen=True, repr=False)
class Row:
    op: str  # the public function's name
    case: str  # what this row adds, if an op has several
    apply: Callable[..., Any]
    reference: Callable[..., Any]  # the same in plain NumPy
    cases: SearchStrategy[Case]
    zero_size: SearchStrategy[Case] | None  # None: not defined there
    composed: Callable[..., Any] | None  # the same as primitive ops, for a fused op
    step: str | None  # how gradcheck steps: "complex", "central"; None for an op without gradient
    constants: tuple[int, ...]  # float inputs that are not differentiated
    rtol32: float  # relative tolerance of float32 results; more than rounding only where the op is ill-conditioned

    def __repr__(self) -> str:
        return f"{self.op}-{self.case}" if self.case else self.op

    def differentiable(self, case: Case) -> list[int]:
        return [i for i, x in enumerate(case.inputs) if x.dtype.kind == "f" and i not in self.constants]


ROWS: list[Row] = []


def row(
    op: str,
    reference: Callable[..., Any],
    cases: SearchStrategy[Case],
    zero_size: SearchStrategy[Case] | None = None,
    *,
    case: str = "",
    apply: Callable[..., Any] | None = None,
    composed: Callable[..., Any] | None = None,
    step: str | None = "complex",
    constants: tuple[int, ...] = (),
    rtol32: float = 1e-5,
) -> None:
    """Add a row; `apply` is the op itself unless its call differs from that of the reference."""
    function = next(getattr(module, op) for module in MODULES if hasattr(module, op))
    ROWS.append(Row(op, case, apply or function, reference, cases, zero_size, composed, step, constants, rtol32))


# How cases are drawn ------------------------------------------------------------------------------------------------


def one(array: SearchStrategy[np.ndarray], **options: SearchStrategy[Any]) -> SearchStrategy[Case]:
    return st.builds(lambda x, o: Case((x,), o), array, st.fixed_dictionaries(options))


def several(inputs: SearchStrategy[Any], **options: SearchStrategy[Any]) -> SearchStrategy[Case]:
    return st.builds(lambda xs, o: Case(tuple(xs), o), inputs, st.fixed_dictionaries(options))


def has_empty(case: Case) -> bool:
    return any(x.size == 0 for x in case.inputs)


def from_shape(
    shape: SearchStrategy[Shape], options: Callable[[Shape], dict[str, SearchStrategy[Any]]], **domain: Any
) -> SearchStrategy[Case]:
    """One array, and options drawn knowing its shape."""
    return shape.flatmap(lambda s: one(arrays(s, **domain), **options(s)))


def elementwise(op: str, reference: Callable[..., Any], domain: dict[str, Any] | None = None, **more: Any) -> None:
    domain = domain or {}
    row(op, reference, one(arrays(shapes(), **domain)), one(arrays(zero_size_shapes(), **domain)), **more)


def binary(op: str, reference: Callable[..., Any], first: Any = None, second: Any = None, **more: Any) -> None:
    pairs = broadcastable_pairs(first=first, second=second)
    empty = broadcastable_pairs(min_side=0, first=first, second=second)
    row(op, reference, several(pairs), several(empty).filter(has_empty), **more)


def axes(shape: Shape) -> SearchStrategy[Any]:
    """None, one axis counted from either end, or several."""
    if not shape:
        return st.none()
    several_axes = st.lists(st.integers(0, len(shape) - 1), unique=True, min_size=1).map(tuple)
    return st.none() | st.integers(-len(shape), len(shape) - 1) | several_axes


def reduction(op: str, reference: Callable[..., Any], empty: bool, **domain: Any) -> None:
    def options(shape: Shape) -> dict[str, SearchStrategy[Any]]:
        return {"axis": axes(shape), "keepdims": st.booleans()}

    row(
        op,
        reference,
        from_shape(shapes(), options, **domain),
        from_shape(zero_size_shapes(), options) if empty else None,
    )


# Arithmetic ---------------------------------------------------------------------------------------------------------

EXPONENTS = st.sampled_from([-2.0, -1, -0.5, 0.5, 1, 2, 3, 4, 2.5])
WHOLE = st.sampled_from([1, 2, 3, 4, 5, 2.0, 3.0])

binary("add", np.add)
binary("subtract", np.subtract)
binary("multiply", np.multiply)
binary("divide", np.divide, second=AWAY_FROM_ZERO)
binary("power", np.power, first=POSITIVE, second={"low": -2.0, "high": 2.0})
row("power", lambda x, y: x**y, one(arrays(shapes(), **POSITIVE), y=EXPONENTS), case="number", apply=lambda x, y: x**y)
row("power", lambda x, y: x**y, one(arrays(shapes()), y=WHOLE), case="whole_number", apply=lambda x, y: x**y)
row("power", lambda y: 2.0**y, one(arrays(shapes())), case="of_number", apply=lambda y: ops.power(2.0, y))
row("subtract", lambda y: 1.0 - y, one(arrays(shapes())), case="from_number", apply=lambda y: ops.subtract(1.0, y))
row(
    "divide",
    lambda y: 3.0 / y,
    one(arrays(shapes(), **AWAY_FROM_ZERO)),
    case="number_by",
    apply=lambda y: ops.divide(3, y),
)
elementwise("negative", np.negative)
elementwise("exp", np.exp)
elementwise("log", np.log, POSITIVE)
elementwise("sqrt", np.sqrt, POSITIVE)
elementwise("tanh", np.tanh)
elementwise("erf", special.erf, step="central")  # no complex form on a GPU

# Comparison and choice ----------------------------------------------------------------------------------------------

FEW = {"low": -0.03, "high": 0.03}  # three values, so that equal ones meet

for comparison in ("equal", "not_equal", "less", "less_equal", "greater", "greater_equal"):
    binary(comparison, getattr(np, comparison), FEW, FEW, step=None)


@st.composite
def choices(draw: Any, min_side: int = 1) -> tuple[np.ndarray, ...]:
    drawn = draw(hnp.mutually_broadcastable_shapes(num_shapes=3, min_side=min_side, max_side=3, max_dims=3))
    condition, x, y = drawn.input_shapes
    return draw(hnp.arrays(np.bool_, condition)), draw(arrays(x)), draw(arrays(y))


row("where", np.where, several(choices()), several(choices(min_side=0)).filter(has_empty))
row(
    "where",
    lambda condition, x: np.where(condition, x, -1.0),
    several(choices().map(lambda c: c[:2])),
    case="number",
    apply=lambda condition, x: ops.where(condition, x, -1.0),
)

# Reductions ---------------------------------------------------------------------------------------------------------

reduction("sum", np.sum, empty=True)
reduction("mean", np.mean, empty=False)
reduction("max", np.max, empty=False, unique=True)  # ties have tests of their own
reduction("logsumexp", lambda x, axis, keepdims: np.log(np.exp(x).sum(axis, keepdims=keepdims)), empty=False)

# Shapes -------------------------------------------------------------------------------------------------------------


def new_shapes(shape: Shape) -> dict[str, SearchStrategy[Any]]:
    size = int(np.prod(shape))
    return {"shape": st.sampled_from([(size,), shape[::-1], (1, *shape), (*shape, 1)] + [(-1,)] * (size > 0))}


def permutations(shape: Shape) -> dict[str, SearchStrategy[Any]]:
    orders = st.permutations(range(len(shape))).flatmap(
        lambda order: st.tuples(*[st.sampled_from([a, a - len(shape)]) for a in order])
    )
    return {"axes": st.just(()) | orders}


def two_axes(shape: Shape) -> dict[str, SearchStrategy[Any]]:
    axis = st.integers(-len(shape), len(shape) - 1)
    return {"first": axis, "second": axis}


def wider_shapes(shape: Shape) -> dict[str, SearchStrategy[Any]]:
    wider = st.tuples(*[st.integers(1, 3) if side == 1 else st.just(side) for side in shape])
    return {"shape": st.builds(lambda front, rest: (*front, *rest), st.sampled_from([(), (1,), (2,), (2, 3)]), wider)}


@st.composite
def joinable(draw: Any, same: bool, min_side: int = 1) -> Case:
    """One to three arrays that differ along one axis at most, and that axis."""
    shape = list(draw(shapes(1, 3, min_side=min_side)))
    axis = draw(st.integers(-len(shape), len(shape) - 1))
    inputs = []
    for _ in range(draw(st.integers(1, 3))):
        shape[axis] = shape[axis] if same else draw(st.integers(min_side, 3))
        inputs.append(draw(arrays(tuple(shape))))
    return Case(tuple(inputs), {"axis": axis})


@st.composite
def splittable(draw: Any, min_side: int = 1) -> Case:
    shape = draw(shapes(1, 3, min_side=min_side))
    axis = draw(st.integers(-len(shape), len(shape) - 1))
    size = shape[axis]
    cuts = sorted(draw(st.lists(st.integers(0, size), max_size=2)))
    pieces = [stop - start for start, stop in zip([0, *cuts], [*cuts, size], strict=True)]
    equal = [n for n in (1, 2, 3) if size and size % n == 0]
    lengths = draw(st.sampled_from([pieces, *equal]))
    return Case((draw(arrays(shape)),), {"lengths": lengths, "axis": axis})


def cut(x: np.ndarray, lengths: Any, axis: int) -> tuple[np.ndarray, ...]:
    return tuple(np.split(x, lengths if isinstance(lengths, int) else np.cumsum(lengths)[:-1], axis))


def paddings(shape: Shape) -> dict[str, SearchStrategy[Any]]:
    width = st.tuples(st.integers(0, 2), st.integers(0, 2))
    return {"widths": st.tuples(*[width] * len(shape)), "value": st.sampled_from([0.0, 1.5])}


def indices(shape: Shape) -> dict[str, SearchStrategy[Any]]:
    basic = hnp.basic_indices(shape, allow_newaxis=True, allow_ellipsis=True)
    whole = hnp.integer_array_indices(shape, result_shape=hnp.array_shapes(max_dims=2, max_side=3, min_side=0))
    boolean = hnp.arrays(np.bool_, shape)
    mixed = st.builds(
        lambda rows: (slice(None), rows), hnp.arrays(np.int64, 3, elements=st.integers(-shape[-1], shape[-1] - 1))
    )
    return {"index": basic | whole | boolean | mixed if len(shape) == 2 else basic | whole | boolean}


def slices(shape: Shape) -> dict[str, SearchStrategy[Any]]:
    return {"index": st.sampled_from([(slice(None),) * len(shape), (Ellipsis, None), (slice(None, None, -1),)])}


@st.composite
def lookups(draw: Any, min_side: int = 1) -> tuple[np.ndarray, np.ndarray]:
    table_VD = draw(arrays(shapes(2, 2)))
    ids = hnp.arrays(np.int64, shapes(1, 2, min_side=min_side), elements=st.integers(0, len(table_VD) - 1))
    return table_VD, draw(ids)


empty = zero_size_shapes()
row(
    "reshape",
    lambda x, shape: x.reshape(shape),
    from_shape(shapes(), new_shapes),
    from_shape(empty, new_shapes),
    apply=lambda x, shape: shapes_module.reshape(x, shape),
)
row(
    "transpose",
    lambda x, axes: x.transpose(axes or None),
    from_shape(shapes(), permutations),
    from_shape(empty, permutations),
    apply=lambda x, axes: shapes_module.transpose(x, *axes),
)
row(
    "swapaxes",
    lambda x, first, second: x.swapaxes(first, second),
    from_shape(shapes(1), two_axes),
    from_shape(empty, two_axes),
)
row("broadcast_to", np.broadcast_to, from_shape(shapes(0, 3), wider_shapes), from_shape(empty, wider_shapes))
row(
    "concatenate",
    lambda *xs, axis: np.concatenate(xs, axis),
    joinable(same=False),
    joinable(same=False, min_side=0).filter(has_empty),
    apply=lambda *xs, axis: shapes_module.concatenate(xs, axis),
)
row(
    "stack",
    lambda *xs, axis: np.stack(xs, axis),
    joinable(same=True),
    joinable(same=True, min_side=0).filter(has_empty),
    apply=lambda *xs, axis: shapes_module.stack(xs, axis),
)
row("split", cut, splittable(), splittable(min_side=0).filter(has_empty))
row(
    "pad",
    lambda x, widths, value: np.pad(x, widths, constant_values=value),
    from_shape(shapes(1, 3), paddings),
    from_shape(empty, paddings),
)
row("getitem", lambda x, index: x[index], from_shape(shapes(1, 3), indices), from_shape(empty, slices))
row("take_rows", lambda x, ids: x[ids], several(lookups()), several(lookups(min_side=0)).filter(has_empty))
row("matmul", np.matmul, several(matmul_pairs()), several(matmul_pairs(min_side=0)).filter(has_empty))
