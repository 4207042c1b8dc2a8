"""The losses between teacher and student: values against loops, gradients, and that the teacher is left alone."""

from __future__ import annotations

from math import exp, log
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests.helpers import assert_close, host
from tests.strategies import arrays, shapes
from tests.tiny_training import CONTEXT, VOCABULARY, tiny_gpt2
from tinykron import data
from tinykron.backend import to_device
from tinykron.distill import Losses, attention_kl, compare, layer_map, mean_squared_error, side_by_side
from tinykron.errors import ShapeError, TinykronError
from tinykron.gradcheck import gradcheck
from tinykron.models.gpt2 import GPT2
from tinykron.models.transformer import Output
from tinykron.tensor import Tensor, no_grad

FEWER = settings(max_examples=settings().max_examples // 2)
TERMS = ("embedding", "attention", "hidden", "cross_entropy")
GENERATOR = np.random.default_rng(0)
INPUTS_BT, TARGETS_BT = GENERATOR.integers(0, VOCABULARY, (2, 3, CONTEXT))


def only(*names: str) -> Losses:
    return Losses(**{name: float(name in names) for name in TERMS})


# Attention KL ---------------------------------------------------------------------------------------------------------


@st.composite
def scores_and_masks(draw: Any, dtype: Any = np.float64) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, bool]:
    """(student (B, H, T, S), teacher, mask (B, S) or None, causal): S >= T, every query sees a key."""
    batch, heads, queries, past = (draw(st.integers(low, 3)) for low in (1, 1, 1, 0))
    shape = (batch, heads, queries, queries + past)
    student, teacher = draw(arrays(shape, dtype=dtype)), draw(arrays(shape, dtype=dtype))
    mask_BS = draw(st.none() | hnp.arrays(bool, (batch, queries + past)))
    if mask_BS is not None:
        mask_BS[:, 0] = True  # the first key, which the earliest query sees
    return student, teacher, mask_BS, draw(st.booleans())


def kl_of_rows(student: list[float], teacher: list[float]) -> float:
    """KL(softmax(teacher) || softmax(student)) in plain Python."""
    log_s, log_t = log(sum(map(exp, student))), log(sum(map(exp, teacher)))
    return sum(exp(t - log_t) * ((t - log_t) - (s - log_s)) for s, t in zip(student, teacher, strict=True))


def kl_by_loops(student_BHTS: np.ndarray, teacher_BHTS: np.ndarray, mask_BS: np.ndarray | None, causal: bool) -> float:
    batch, heads, queries, keys = student_BHTS.shape
    rows = []
    for b in range(batch):
        for h in range(heads):
            for t in range(queries):
                last = t + keys - queries if causal else keys - 1
                seen = [s for s in range(keys) if s <= last and (mask_BS is None or mask_BS[b, s])]
                rows.append(
                    kl_of_rows([student_BHTS[b, h, t, s] for s in seen], [teacher_BHTS[b, h, t, s] for s in seen])
                )
    return sum(rows) / len(rows)


def kl(student: Any, teacher: np.ndarray, mask_BS: np.ndarray | None, causal: bool) -> Tensor:
    student = student if isinstance(student, Tensor) else Tensor(student)
    mask_BS = None if mask_BS is None else to_device(mask_BS)
    return attention_kl(student, to_device(teacher), mask_BS, causal=causal)


@given(case=scores_and_masks())
def test_attention_kl_equals_loops(device, case):
    assert_close(kl(*case), np.array(kl_by_loops(*case)), atol=1e-11)


@FEWER
@given(case=scores_and_masks(np.float32))
def test_attention_kl_in_float32(device, case):
    student, teacher, mask_BS, causal = case
    expected = kl_by_loops(student.astype(np.float64), teacher.astype(np.float64), mask_BS, causal)
    assert_close(kl(*case), np.array(expected, np.float32), atol=1e-5)


@FEWER
@given(case=scores_and_masks())
def test_attention_kl_gradient(device, case):
    student, teacher, mask_BS, causal = case
    gradcheck(lambda scores: kl(scores, teacher, mask_BS, causal), to_device(student))


@FEWER
@given(case=scores_and_masks())
def test_attention_kl_takes_no_notice_of_what_is_masked(device, case):
    student, teacher, mask_BS, causal = case
    queries, keys = student.shape[2:]
    seen = np.ones(student.shape, bool) if mask_BS is None else np.broadcast_to(mask_BS[:, None, None], student.shape)
    if causal:
        seen = seen & (np.arange(keys) <= np.arange(queries)[:, None] + keys - queries)
    scores = Tensor(np.where(seen, student, 3.0), requires_grad=True)
    loss = kl(scores, np.where(seen, teacher, -2.0), mask_BS, causal)
    assert_close(loss, host(kl(*case)), atol=1e-11)
    loss.backward()
    assert (host(scores.grad)[~seen] == 0.0).all()


def test_attention_kl_of_a_query_that_sees_nothing_is_zero(device):
    student, teacher = np.random.default_rng(0).standard_normal((2, 1, 1, 3, 3)).astype(np.float32)
    mask_BS = np.array([[False, True, True]])  # left padding: under the causal mask, query 0 sees no key
    loss = kl(student, teacher, mask_BS, True)
    rows = [kl_of_rows(student[0, 0, t, 1 : t + 1].tolist(), teacher[0, 0, t, 1 : t + 1].tolist()) for t in (1, 2)]
    assert_close(loss, np.array(sum(rows) / 3, np.float32))


@FEWER
@given(case=scores_and_masks())
def test_attention_kl_is_a_mean_over_queries(device, case):
    student, teacher, mask_BS, causal = case
    twice = [None if x is None else np.concatenate([x, x]) for x in (student, teacher, mask_BS)]
    assert_close(kl(*twice, causal), host(kl(*case)), atol=1e-11)
    assert float(host(kl(*case))) >= -1e-12


@FEWER
@given(case=scores_and_masks())
def test_attention_kl_of_equal_scores_is_zero(device, case):
    student, _, mask_BS, causal = case
    scores = Tensor(student, requires_grad=True)
    loss = kl(scores, student, mask_BS, causal)
    loss.backward()
    assert loss.item() == 0.0
    assert (host(scores.grad) == 0.0).all()


def test_attention_kl_refuses_other_shapes():
    with pytest.raises(ShapeError, match=r"student \(1, 2, 3, 3\) and teacher \(1, 4, 3, 3\)"):
        attention_kl(Tensor(np.ones((1, 2, 3, 3))), np.ones((1, 4, 3, 3)), causal=True)


# Mean squared error ---------------------------------------------------------------------------------------------------


@FEWER
@given(student=arrays((2, 3)), teacher=arrays((2, 3)))
def test_mean_squared_error(device, student, teacher):
    target = to_device(teacher)
    assert_close(mean_squared_error(Tensor(student), target), np.array(((student - teacher) ** 2).mean()))
    gradcheck(lambda x: mean_squared_error(x, target), to_device(student))


@FEWER
@given(x=arrays(shapes(1, 3)))
def test_mean_squared_error_of_equals_is_zero(device, x):
    student = Tensor(x, requires_grad=True)
    loss = mean_squared_error(student, to_device(x))
    loss.backward()
    assert loss.item() == 0.0
    assert (host(student.grad) == 0.0).all()


def test_mean_squared_error_refuses_what_would_broadcast():
    with pytest.raises(ShapeError, match=r"student \(2, 3\) and teacher \(3,\)"):
        mean_squared_error(Tensor(np.ones((2, 3))), np.ones(3))


# Losses and the layer map ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "weights",
    [dict.fromkeys(TERMS, 0.0), {"hidden": -1.0}, {"attention": float("nan")}],
    ids=["all zero", "negative", "NaN"],
)
def test_losses_refuse_weights_that_mean_nothing(weights):
    with pytest.raises(TinykronError, match="at least 0, not all 0"):
        Losses(**weights)


def test_losses_know_whether_they_need_a_teacher():
    assert not only("cross_entropy").needs_teacher
    assert all(only(name).needs_teacher for name in TERMS if name != "cross_entropy")


@given(student=st.integers(1, 30), extra=st.integers(0, 30))
def test_layer_map_rises_evenly_to_the_last(student, extra):
    teacher = student + extra
    layers = layer_map(student, teacher)
    gaps = np.diff([-1, *layers])
    assert len(layers) == student
    assert layers[-1] == teacher - 1
    assert set(gaps.tolist()) <= {teacher // student, -(-teacher // student)}


def test_layer_map_of_a_multiple_takes_every_kth():
    assert layer_map(3, 12) == [3, 7, 11]
    assert layer_map(4, 4) == [0, 1, 2, 3]


@pytest.mark.parametrize(("student", "teacher"), [(3, 2), (0, 2)])
def test_layer_map_refuses(student, teacher):
    with pytest.raises(ShapeError, match=f"{student} student layers for {teacher} teacher layers"):
        layer_map(student, teacher)


# Side by side ---------------------------------------------------------------------------------------------------------


class Recording(GPT2):
    """A GPT-2 that keeps its last output."""

    last: Output

    def forward(self, *args: Any, **options: Any) -> Output:
        self.last = super().forward(*args, **options)
        return self.last


def gradients(model: GPT2) -> dict[str, np.ndarray | None]:
    return {name: None if p.grad is None else host(p.grad) for name, p in model.named_parameters()}


@pytest.mark.parametrize("term", ["embedding", "attention", "hidden"])
def test_a_student_equal_to_its_teacher_has_no_loss_and_no_gradient(device, term):
    student, teacher = tiny_gpt2(), tiny_gpt2()
    loss, terms = side_by_side(student, teacher, INPUTS_BT, TARGETS_BT, only(term), [0, 1])
    loss.backward()
    assert terms == {term: 0.0}
    reached = [gradient for gradient in gradients(student).values() if gradient is not None]
    assert reached
    assert not any(gradient.any() for gradient in reached)


@pytest.mark.parametrize("term", ["embedding", "attention", "hidden"])
def test_a_student_that_differs_has_a_loss_and_a_gradient(device, term):
    student, teacher = tiny_gpt2(0), tiny_gpt2(1)
    loss, terms = side_by_side(student, teacher, INPUTS_BT, TARGETS_BT, only(term), [0, 1])
    loss.backward()
    assert loss.item() == pytest.approx(terms[term])
    assert terms[term] > 0.0
    assert any(gradient.any() for gradient in gradients(student).values() if gradient is not None)


def test_the_teacher_leaves_no_tape(device):
    student, teacher = tiny_gpt2(0), tiny_gpt2(1, kind=Recording)
    loss, _ = side_by_side(student, teacher, INPUTS_BT, TARGETS_BT, Losses(), [0, 1])
    outputs = (teacher.last.logits, *teacher.last.hidden, *(teacher.last.attention_scores or ()))
    assert len(outputs) == 1 + 3 + 2
    assert not any(output.requires_grad or output.node for output in outputs)
    loss.backward()
    assert all(gradient is None for gradient in gradients(teacher).values())


def test_a_teacher_is_not_run_where_nothing_compares_with_it():
    student, teacher = tiny_gpt2(0), tiny_gpt2(1, kind=Recording)
    _, terms = side_by_side(student, teacher, INPUTS_BT, TARGETS_BT, only("cross_entropy"), [0, 1])
    assert list(terms) == ["cross_entropy"]
    assert not hasattr(teacher, "last")


def test_the_total_reaches_every_parameter_of_the_student(device):
    student, teacher = tiny_gpt2(0, layers=2), tiny_gpt2(1, layers=4)
    loss, _ = side_by_side(student, teacher, INPUTS_BT, TARGETS_BT, Losses(), layer_map(2, 4))
    loss.backward()
    found = gradients(student)
    assert all(gradient is not None for gradient in found.values())
    silent = [name for name, gradient in found.items() if not np.abs(gradient).max() > 1e-6]
    # A key's bias adds the same to all scores of a query, which the softmax takes out again.
    assert silent == ["blocks.0.attention.key.bias", "blocks.1.attention.key.bias"]


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0, 1.0), (0.5, 0.0, 2.0, 0.0), (0.0, 2.0, 0.0, 0.25)])
def test_compare_is_the_weighted_sum_of_its_terms(device, weights):
    losses, layers = Losses(*weights), [1, 3]
    with no_grad():
        student = tiny_gpt2(0, spread=10.0)(INPUTS_BT, attention_scores=True)
        teacher = tiny_gpt2(1, spread=10.0, layers=4)(INPUTS_BT, attention_scores=True)
    loss, terms = compare(student, teacher, TARGETS_BT, losses, layers)
    logits_NV = host(student.logits).astype(np.float64).reshape(-1, VOCABULARY)
    picked_N = logits_NV[np.arange(len(logits_NV)), TARGETS_BT.reshape(-1)]
    ours, theirs = ([host(x).astype(np.float64) for x in output.hidden] for output in (student, teacher))
    our_scores, their_scores = (
        [host(x).astype(np.float64) for x in output.attention_scores] for output in (student, teacher)
    )
    expected = {
        "cross_entropy": (np.log(np.exp(logits_NV).sum(axis=-1)) - picked_N).mean(),
        "embedding": ((ours[0] - theirs[0]) ** 2).mean(),
        "hidden": sum(((ours[i + 1] - theirs[layer + 1]) ** 2).mean() for i, layer in enumerate(layers)),
        "attention": sum(kl_by_loops(our_scores[i], their_scores[layer], None, True) for i, layer in enumerate(layers)),
    }
    expected = {name: value for name, value in expected.items() if getattr(losses, name)}
    assert terms == pytest.approx(expected, rel=1e-5)
    assert loss.item() == pytest.approx(
        sum(getattr(losses, name) * value for name, value in expected.items()), rel=1e-5
    )


# Errors ---------------------------------------------------------------------------------------------------------------


def outputs(layers: int = 2, scores: bool = True, **config: Any) -> Output:
    with no_grad():
        return tiny_gpt2(layers=layers, **config)(INPUTS_BT, attention_scores=scores)


@pytest.mark.parametrize(
    ("student", "teacher", "layers", "complaint"),
    [
        ({}, {"n_embd": 12}, [0, 1], r"student \(3, 8, 8\) and teacher \(3, 8, 12\)"),
        ({}, {"n_head": 4}, [0, 1], r"attention KL: student \(3, 2, 8, 8\) and teacher \(3, 4, 8, 8\)"),
        ({}, {"layers": 4}, [0, 1, 2], r"found \[0, 1, 2\], expected 2 teacher layers in 0..3"),
        ({}, {"layers": 4}, [0, 4], r"found \[0, 4\], expected 2 teacher layers in 0..3"),
        ({}, {"layers": 4}, [-1, 3], r"found \[-1, 3\]"),
        ({"scores": False}, {}, [0, 1], "attention_scores=True"),
        ({}, {"scores": False}, [0, 1], "attention_scores=True"),
    ],
    ids=[
        "width",
        "heads",
        "too many layers",
        "no such layer",
        "negative layer",
        "no student scores",
        "no teacher scores",
    ],
)
def test_outputs_that_cannot_be_compared_are_refused(student, teacher, layers, complaint):
    with pytest.raises(TinykronError, match=complaint):
        compare(outputs(**student), outputs(**teacher), TARGETS_BT, Losses(), layers)


def test_a_missing_teacher_is_named():
    with pytest.raises(TinykronError, match="compare with a teacher, and none is given"):
        compare(outputs(), None, TARGETS_BT, Losses(), [])


def test_targets_are_checked():
    with pytest.raises(TinykronError, match=f"target {VOCABULARY}"):
        side_by_side(tiny_gpt2(), None, INPUTS_BT, np.full_like(TARGETS_BT, VOCABULARY), only("cross_entropy"), [])
    ignored = np.full_like(TARGETS_BT, data.IGNORED)
    assert side_by_side(tiny_gpt2(), None, INPUTS_BT, ignored, only("cross_entropy"), [])[0].item() == 0.0
