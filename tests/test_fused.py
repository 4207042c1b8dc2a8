"""Fused ops equal their compositions, values and gradients; and hold at the sizes where they work in blocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import fused_references as ref
from tests.calling import arguments, gradients, ops_of, outputs_of
from tests.helpers import assert_close, host
from tests.registry import Row
from tests.registry_fused import ROWS
from tinykron import attention as attention_module
from tinykron import fused
from tinykron.backend import to_device
from tinykron.errors import DataError, ShapeError, TinykronError
from tinykron.gradcheck import gradcheck
from tinykron.tensor import Tensor
from tinykron.threads import BLOCK_ELEMENTS

FUSED = [row for row in ROWS if row.composed]


def normal(*shape: int, seed: int = 0, dtype: Any = np.float64) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def test_every_fused_op_has_a_composition() -> None:
    names = {name for module in (fused, attention_module) for name in ops_of(module)}
    assert {row.op for row in FUSED} == names


@pytest.mark.parametrize("row", FUSED, ids=str)
@settings(max_examples=settings().max_examples // 2)
@given(data=st.data())
def test_fused_equals_composed(row: Row, device: str, data: st.DataObject) -> None:
    case = data.draw(row.cases)
    one, other = arguments(row, case, np.float64), arguments(row, case, np.float64)
    found = outputs_of(row.apply(*one, **case.options))
    wanted = outputs_of(row.composed(*other, **case.options))
    for output, expected in zip(found, wanted, strict=True):
        assert_close(output, expected, rtol=1e-9, atol=1e-10)
    for grad, expected in zip(gradients(row, case, one), gradients(row, case, other, row.composed), strict=True):
        assert_close(grad, expected, rtol=1e-8, atol=1e-8)


# Sizes at which the work is cut into blocks of rows, or of queries --------------------------------------------------

LONG = BLOCK_ELEMENTS // 32  # rows of 100: several blocks


@pytest.mark.parametrize(
    "op, shapes",
    [
        ("softmax", [(LONG, 100)]),
        ("layer_norm", [(LONG, 100), (100,), (100,)]),
        ("rms_norm", [(LONG, 100), (100,)]),
        ("gelu_erf", [(LONG, 100)]),
        ("gelu_tanh", [(LONG, 100)]),
        ("silu", [(LONG, 100)]),
        ("swiglu", [(LONG, 100), (LONG, 100)]),
        ("linear", [(LONG, 100), (100, 5), (5,)]),
    ],
)
def test_many_rows_equal_composed(op: str, shapes: list[tuple[int, ...]], device: str) -> None:
    row = next(row for row in FUSED if row.op == op)
    options = {"eps": 1e-5} if "norm" in op else {}
    leaves = [[Tensor(normal(*shape, seed=i), requires_grad=True) for i, shape in enumerate(shapes)] for _ in "ab"]
    seed = to_device(normal(*getattr(fused, op)(*leaves[0], **options).shape, seed=9))
    for function, tensors in zip((getattr(fused, op), row.composed), leaves, strict=True):
        function(*tensors, **options).backward(seed)
    for one, other in zip(*leaves, strict=True):
        assert_close(one.grad, other.grad, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("queries, keys", [(130, 130), (64, 64), (65, 200), (1, 70), (128, 129)])
@pytest.mark.parametrize("return_scores", [False, True])
def test_causal_attention_over_several_query_blocks(device: str, queries: int, keys: int, return_scores: bool) -> None:
    arrays = normal(2, 4, queries, 3, seed=1), normal(2, 2, keys, 3, seed=2), normal(2, 2, keys, 3, seed=3)
    mask_BS = np.random.default_rng(4).random((2, keys)) < 0.7
    mask_BS[:, 0] = True
    options = {"causal": True, "return_scores": return_scores, "dropout": 0.3}
    found, wanted = ([Tensor(x, requires_grad=True) for x in arrays] for _ in "ab")
    for function, tensors in ((ref.seeded_attention, found), (ref.composed_attention, wanted)):
        outputs = outputs_of(function(*tensors, to_device(mask_BS), **options))
        sum((out * out).sum() for out in outputs).backward()
    for one, other in zip(found, wanted, strict=True):
        assert_close(one.grad, other.grad, rtol=1e-8, atol=1e-9)
    expected = outputs_of(ref.attention(*arrays, mask_BS, **options))
    for output, value in zip(
        outputs_of(ref.seeded_attention(*map(to_device, arrays), to_device(mask_BS), **options)), expected, strict=True
    ):
        assert_close(output, value, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("causal", [False, True])
def test_attention_over_many_heads(device: str, causal: bool) -> None:
    """Enough items that they are shared out among threads."""
    arrays = normal(6, 4, 70, 2, seed=1), normal(6, 2, 70, 2, seed=2), normal(6, 2, 70, 2, seed=3)
    options = {"causal": causal, "return_scores": False, "dropout": 0.0}
    found, wanted = ([Tensor(x, requires_grad=True) for x in arrays] for _ in "ab")
    outputs = [
        function(*tensors, **options)
        for function, tensors in ((attention_module.attention, found), (ref.composed_attention, wanted))
    ]
    assert_close(outputs[0], outputs[1], rtol=1e-9, atol=1e-10)
    for output in outputs:
        (output * output).sum().backward()
    for one, other in zip(found, wanted, strict=True):
        assert_close(one.grad, other.grad, rtol=1e-8, atol=1e-9)


def test_attention_where_only_the_scores_want_a_gradient(device: str) -> None:
    q, k, v = (Tensor(normal(1, 2, 3, 4, seed=s), requires_grad=True) for s in range(3))
    _, scores = attention_module.attention(q, k, v, causal=True, return_scores=True)
    scores.sum().backward()
    assert_close(q.grad, np.broadcast_to(host(k).sum(axis=2, keepdims=True) / 2.0, (1, 2, 3, 4)))
    assert v.grad is None or not host(v.grad).any()


def test_attention_gives_no_nan_where_no_key_may_be_seen(device: str) -> None:
    q, k, v = (Tensor(normal(1, 1, 2, 4, seed=s, dtype=np.float32), requires_grad=True) for s in range(3))
    out = attention_module.attention(q, k, v, to_device(np.zeros((1, 2), bool)), causal=False)
    out.sum().backward()
    assert all(np.isfinite(host(x)).all() for x in (out, q.grad, k.grad, v.grad))


# Numbers that overflow where the formula is written plainly ---------------------------------------------------------


@pytest.mark.parametrize("op", ["softmax", "log_softmax"])
def test_softmax_does_not_overflow(op: str, device: str) -> None:
    x = np.array([[1000.0, 0.0, -1000.0], [-1000.0, -1000.0, -1000.0]], np.float32)
    expected = getattr(ref, op)(x.astype(np.float64)).astype(np.float32)
    assert_close(getattr(fused, op)(Tensor(x)), expected)


@pytest.mark.parametrize("op", ["gelu_erf", "gelu_tanh", "silu"])
def test_activations_are_flat_far_out(op: str, device: str) -> None:
    x = Tensor(np.array([-1e4, -100.0, 100.0, 1e4], np.float32), requires_grad=True)
    out = getattr(fused, op)(x)
    out.backward(to_device(np.ones(4, np.float32)))
    assert_close(out, np.array([0.0, 0.0, 100.0, 1e4], np.float32))
    assert_close(x.grad, np.array([0.0, 0.0, 1.0, 1.0], np.float32))


def test_cross_entropy_of_confident_logits_stays_finite(device: str) -> None:
    logits = Tensor(np.array([[500.0, -500.0]], np.float32), requires_grad=True)
    loss = fused.cross_entropy(logits, np.array([1]))
    loss.backward()
    assert_close(loss, 1000.0)
    assert_close(logits.grad, np.array([[1.0, -1.0]], np.float32))


def test_cross_entropy_over_a_large_vocabulary_and_random_directions(device: str) -> None:
    targets = np.array([3, 999, -100, 0])
    gradcheck(lambda x: fused.cross_entropy(x, targets, label_smoothing=0.1), to_device(normal(4, 1000)), directions=5)


# What bad input gets ------------------------------------------------------------------------------------------------

X = np.zeros((2, 3), np.float32)
Q = np.zeros((1, 3, 4, 2), np.float32)


@pytest.mark.parametrize(
    "call, kind, message",
    [
        (lambda: fused.cross_entropy(Tensor(X), np.array([0, 3])), DataError, r"target 3 at \(1,\) is outside 0..2"),
        (lambda: fused.cross_entropy(Tensor(X), np.array([-1, 0])), DataError, r"target -1 at \(0,\)"),
        (lambda: fused.cross_entropy(Tensor(X), np.array([0.0, 1.0])), DataError, "whole numbers, found float64"),
        (lambda: fused.cross_entropy(Tensor(X), np.array([0, 1, 2])), ShapeError, r"\(2, 3\) need targets \(2,\)"),
        (
            lambda: fused.linear(Tensor(X), Tensor(np.zeros((2, 3), np.float32))),
            ShapeError,
            r"x is \(2, 3\).* 2 inputs",
        ),
        (
            lambda: attention_module.attention(*map(Tensor, (Q, Q[:, :2], Q[:, :2])), causal=False),
            ShapeError,
            "3 query",
        ),
        (
            lambda: attention_module.attention(*map(Tensor, (Q, Q[:, :, :1], Q[:, :, :1])), causal=True),
            ShapeError,
            "4 causal",
        ),
        (lambda: attention_module.rotary(Tensor(Q[..., :1]), X, X), ShapeError, "even, found 1"),
        (lambda: attention_module.dropout(Tensor(X), 0.5, None), TinykronError, "random generator"),
    ],
)
def test_bad_input_is_named(device: str, call: Callable[[], object], kind: type[TinykronError], message: str) -> None:
    with pytest.raises(kind, match=message):
        call()


def test_dropout_keeps_the_expected_share_and_scale(device: str) -> None:
    out = host(attention_module.dropout(Tensor(np.ones((100, 100), np.float32)), 0.25, np.random.default_rng(0)))
    assert set(np.unique(out)) == {np.float32(0.0), np.float32(1.0 / 0.75)}
    assert abs((out == 0.0).mean() - 0.25) < 0.02
