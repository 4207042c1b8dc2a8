"""The rows of the fused ops, each with a reference in plain NumPy and a composition of primitive ops."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests import fused_references as ref
from tests.registry import ROWS as ROWS  # the whole table, once this module has added its rows
from tests.registry import Case, has_empty, one, row, several
from tests.strategies import arrays, shapes, zero_size_shapes
from tinykron import fused


@st.composite
def linears(draw: Any, bias: bool, transposed: bool, min_side: int = 1) -> tuple[np.ndarray, ...]:
    leading, (inputs, outputs) = draw(shapes(0, 2, min_side=min_side)), draw(shapes(2, 2))
    weight = (outputs, inputs) if transposed else (inputs, outputs)
    drawn = [draw(arrays((*leading, inputs))), draw(arrays(weight))]
    return (*drawn, draw(arrays((outputs,)))) if bias else tuple(drawn)


@st.composite
def classified(draw: Any, min_side: int = 1) -> Case:
    """Logits (..., V) and targets (...), some of them ignored, perhaps all."""
    leading, classes = draw(shapes(0, 2, min_side=min_side)), draw(st.integers(1, 5))
    ignore_index = draw(st.sampled_from([-100, 0, classes - 1]))
    targets = draw(hnp.arrays(np.int64, leading, elements=st.integers(0, classes - 1) | st.just(ignore_index)))
    options = {"ignore_index": ignore_index, "label_smoothing": draw(st.sampled_from([0.0, 0.1, 1.0]))}
    return Case((draw(arrays((*leading, classes))), targets), options)


@st.composite
def normalised(draw: Any, weights: int, min_side: int = 1) -> Case:
    leading, width = draw(shapes(0, 2, min_side=min_side)), draw(st.integers(1, 5))
    inputs = [draw(arrays((*leading, width)))] + [draw(arrays((width,))) for _ in range(weights)]
    return Case(tuple(inputs), {"eps": draw(st.sampled_from([1e-5, 0.1]))})


@st.composite
def attended(draw: Any, return_scores: bool = False, dropout: float = 0.0) -> Case:
    """Queries, keys, values and perhaps a padding mask that leaves key 0 to see; H / G query heads share a key head."""
    batch, groups, share, queries, width, width_v = draw(st.tuples(*[st.integers(1, 2)] * 4, *[st.integers(1, 3)] * 2))
    causal = draw(st.booleans())
    keys = draw(st.integers(queries if causal else 1, 4))
    drawn = [
        draw(arrays((batch, groups * share, queries, width))),
        draw(arrays((batch, groups, keys, width))),
        draw(arrays((batch, groups, keys, width_v))),
    ]
    if draw(st.booleans()):
        mask_BS = draw(hnp.arrays(np.bool_, (batch, keys)))
        mask_BS[:, 0] = True
        drawn.append(mask_BS)
    return Case(tuple(drawn), {"causal": causal, "return_scores": return_scores, "dropout": dropout})


@st.composite
def turned(draw: Any) -> tuple[np.ndarray, ...]:
    batch, heads, length, half = draw(shapes(4, 4, max_side=3))
    angles = draw(arrays(draw(st.sampled_from([(length, half), (batch, 1, length, half)]))))
    return draw(arrays((batch, heads, length, 2 * half))), np.cos(angles), np.sin(angles)


@st.composite
def twins(draw: Any, shape: Any) -> tuple[np.ndarray, ...]:
    shape = draw(shape)
    return draw(arrays(shape)), draw(arrays(shape))


rows_D, empty_rows_D = shapes(1, 3), shapes(2, 3, min_side=0).filter(lambda s: 0 in s and s[-1] > 0)
RATE = {"rate": st.sampled_from([0.1, 0.5])}

for use_bias in (False, True):
    for transposed in (False, True):
        row(
            "linear",
            ref.linear,
            several(linears(use_bias, transposed), transposed=st.just(transposed)),
            several(linears(use_bias, transposed, min_side=0), transposed=st.just(transposed)).filter(has_empty),
            case=f"{'with' if use_bias else 'without'}_bias{'_transposed' * transposed}",
            apply=lambda *inputs, transposed: fused.linear(*inputs, transposed=transposed),
            composed=ref.composed_linear,
        )
row("softmax", ref.softmax, one(arrays(rows_D)), one(arrays(empty_rows_D)), composed=ref.composed_softmax)
row("log_softmax", ref.log_softmax, one(arrays(rows_D)), one(arrays(empty_rows_D)), composed=ref.composed_log_softmax)
row(
    "cross_entropy",
    ref.cross_entropy,
    classified(),
    classified(min_side=0).filter(has_empty),
    composed=ref.composed_cross_entropy,
)
for op, weights in (("layer_norm", 2), ("rms_norm", 1)):
    row(
        op,
        getattr(ref, op),
        normalised(weights),
        normalised(weights, min_side=0).filter(has_empty),
        composed=getattr(ref, f"composed_{op}"),
        rtol32=1e-3,  # a row of nearly equal values loses its leading digits
    )
for op in ("gelu_erf", "gelu_tanh", "silu"):
    row(
        op,
        getattr(ref, op),
        one(arrays(shapes())),
        one(arrays(zero_size_shapes())),
        composed=getattr(ref, f"composed_{op}"),
        step="central" if op == "gelu_erf" else "complex",  # erf has no complex form on a GPU
    )
row("swiglu", ref.swiglu, several(twins(shapes())), several(twins(zero_size_shapes())), composed=ref.composed_swiglu)
row("attention", ref.attention, attended(), composed=ref.composed_attention)
row("attention", ref.attention, attended(return_scores=True), case="scores", composed=ref.composed_attention)
row(
    "attention",
    ref.attention,
    attended(dropout=0.5),
    case="dropout",
    composed=ref.composed_attention,
    apply=ref.seeded_attention,
)
row(
    "dropout",
    ref.dropout,
    one(arrays(shapes()), **RATE),
    one(arrays(zero_size_shapes()), **RATE),
    apply=ref.seeded_dropout,
    composed=ref.composed_dropout,
)
row("rotary", ref.rotary, several(turned()), composed=ref.composed_rotary, constants=(1, 2))
