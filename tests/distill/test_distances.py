"""The distances: values against loops, gradients, nothing where the two agree, and no notice of what does not count."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests import distance_references as ref
from tests.distance_references import Mask, heads_and_masks, masks, scores_and_masks, states_and_masks
from tests.helpers import assert_close, host
from tests.strategies import arrays
from tinykron import fused
from tinykron.backend import to_device
from tinykron.distill import distances
from tinykron.errors import ShapeError, TinykronError
from tinykron.gradcheck import gradcheck
from tinykron.tensor import Tensor

FEWER = settings(max_examples=settings().max_examples // 3)
SCORES = [distances.attention_kl, distances.attention_mse]
STATES = [distances.mean_squared_error, distances.cosine_distance]
LENGTHS = {"away_from_zero": 0.5}  # a vector of some length: the angle of a short one is lost in rounding


def on_device(*given: Any) -> list[Any]:
    return [None if one is None else to_device(one) for one in given]


def of_scores(distance: Any, student: Any, teacher: np.ndarray, mask: Mask, causal: bool) -> Tensor:
    student = student if isinstance(student, Tensor) else Tensor(student)
    return distance(student, *on_device(teacher, mask), causal=causal)


def of_states(distance: Any, student: Any, teacher: np.ndarray, mask: Mask, **options: Any) -> Tensor:
    student = student if isinstance(student, Tensor) else Tensor(student)
    return distance(student, *on_device(teacher, mask), **options)


def relation(student: list[Any], teacher: list[np.ndarray], mask: Mask, causal: bool, heads: int) -> Tensor:
    ours = [one if isinstance(one, Tensor) else Tensor(one) for one in student]
    return distances.relation_kl(ours, on_device(*teacher), *on_device(mask), causal=causal, heads=heads)


# Attention ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("distance", SCORES)
@FEWER
@given(case=scores_and_masks())
def test_distances_of_scores_equal_loops(device, distance, case):
    assert_close(of_scores(distance, *case), np.array(getattr(ref, distance.__name__)(*case)), atol=1e-11)


@pytest.mark.parametrize("distance", SCORES)
@FEWER
@given(case=scores_and_masks(np.float32))
def test_distances_of_scores_in_float32(device, distance, case):
    student, teacher, mask, causal = case
    expected = getattr(ref, distance.__name__)(student.astype(np.float64), teacher.astype(np.float64), mask, causal)
    assert_close(of_scores(distance, *case), np.array(expected, np.float32), atol=1e-5)


@pytest.mark.parametrize("distance", SCORES)
@FEWER
@given(case=scores_and_masks())
def test_gradients_of_distances_of_scores(device, distance, case):
    student, *rest = case
    gradcheck(lambda scores: of_scores(distance, scores, *rest), to_device(student))


@pytest.mark.parametrize("distance", SCORES)
@FEWER
@given(case=scores_and_masks())
def test_what_is_masked_takes_no_part(device, distance, case):
    student, teacher, mask, causal = case
    queries, keys = student.shape[2:]
    counts = np.ones(student.shape, bool)
    if causal:
        counts &= np.arange(keys) <= np.arange(queries)[:, None] + keys - queries
    if mask is not None:
        counts &= mask[:, None, None] & mask[:, None, keys - queries :, None]
    scores = Tensor(np.where(counts, student, 3.0), requires_grad=True)
    loss = of_scores(distance, scores, np.where(counts, teacher, -2.0), mask, causal)
    assert_close(loss, host(of_scores(distance, *case)), atol=1e-11)
    loss.backward()
    assert (host(scores.grad)[~counts] == 0.0).all()


@pytest.mark.parametrize("distance", SCORES)
@FEWER
@given(case=scores_and_masks())
def test_distances_of_scores_are_means(device, distance, case):
    student, teacher, mask, causal = case
    twice = [None if x is None else np.concatenate([x, x]) for x in (student, teacher, mask)]
    assert_close(of_scores(distance, *twice, causal), host(of_scores(distance, *case)), atol=1e-11)
    assert float(host(of_scores(distance, *case))) >= -1e-12


@pytest.mark.parametrize("distance", SCORES)
@FEWER
@given(case=scores_and_masks())
def test_equal_scores_have_no_distance_and_no_gradient(device, distance, case):
    student, _, *rest = case
    scores = Tensor(student, requires_grad=True)
    loss = of_scores(distance, scores, student, *rest)
    loss.backward()
    assert loss.item() == 0.0
    assert (host(scores.grad) == 0.0).all()


@pytest.mark.parametrize("distance", SCORES)
def test_scores_of_padding_alone_have_no_distance(device, distance):
    student, teacher = np.random.default_rng(0).standard_normal((2, 1, 1, 3, 3)).astype(np.float32)
    assert of_scores(distance, student, teacher, np.zeros((1, 3), bool), True).item() == 0.0
    left = np.array([[False, True, True]])  # under the causal mask, query 0 would see no key
    expected = getattr(ref, distance.__name__)(student, teacher, left, True)
    assert_close(of_scores(distance, student, teacher, left, True), np.array(expected, np.float32))


@pytest.mark.parametrize(("distance", "name"), [*zip(SCORES, ("attention KL", "attention scores"), strict=True)])
def test_scores_of_other_shapes_are_refused(distance, name):
    with pytest.raises(ShapeError, match=rf"{name}: student \(1, 2, 3, 3\) and teacher \(1, 4, 3, 3\)"):
        of_scores(distance, np.ones((1, 2, 3, 3)), np.ones((1, 4, 3, 3)), None, True)


# States ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("distance", STATES)
@FEWER
@given(case=states_and_masks(**LENGTHS))
def test_distances_of_states_equal_loops(device, distance, case):
    assert_close(of_states(distance, *case), np.array(getattr(ref, distance.__name__)(*case)), atol=1e-10)


@pytest.mark.parametrize("distance", STATES)
@FEWER
@given(case=states_and_masks(**LENGTHS))
def test_gradients_of_distances_of_states(device, distance, case):
    student, *rest = case
    gradcheck(lambda x: of_states(distance, x, *rest), to_device(student))


@pytest.mark.parametrize("distance", STATES)
@FEWER
@given(case=states_and_masks(np.float32))
def test_equal_states_have_no_distance_and_no_gradient(device, distance, case):
    state, _, mask = case
    student = Tensor(state, requires_grad=True)
    loss = of_states(distance, student, state, mask)
    loss.backward()
    assert loss.item() == 0.0
    assert (host(student.grad) == 0.0).all()


@pytest.mark.parametrize("distance", STATES)
@FEWER
@given(case=states_and_masks(np.float32, **LENGTHS))
def test_states_of_padding_take_no_part(device, distance, case):
    student, teacher, mask = case
    if mask is None:
        mask = np.ones(student.shape[:2], bool)
    changed = Tensor(np.where(mask[..., None], student, 3.0).astype(np.float32), requires_grad=True)
    loss = of_states(distance, changed, np.where(mask[..., None], teacher, -2.0).astype(np.float32), mask)
    assert_close(loss, host(of_states(distance, *case[:2], mask)))
    loss.backward()
    assert (host(changed.grad)[~mask] == 0.0).all()


@FEWER
@given(case=states_and_masks(**LENGTHS), factor=st.sampled_from([0.25, 3.0]))
def test_cosine_knows_directions_alone(device, case, factor):
    student, teacher, mask = case
    expected = host(of_states(distances.cosine_distance, student, teacher, mask))
    assert_close(of_states(distances.cosine_distance, student * factor, teacher, mask), expected, atol=1e-10)
    opposite = of_states(distances.cosine_distance, -student, student, None)
    assert_close(opposite, np.array(2.0), rtol=1e-9)


@pytest.mark.parametrize(("distance", "name"), [*zip(STATES, ("mean squared error", "cosine distance"), strict=True)])
def test_states_that_would_broadcast_are_refused(distance, name):
    with pytest.raises(ShapeError, match=rf"{name}: student \(2, 3\) and teacher \(3,\)"):
        of_states(distance, np.ones((2, 3)), np.ones(3), None)


# Relations ------------------------------------------------------------------------------------------------------------


@FEWER
@given(case=heads_and_masks())
def test_relations_equal_loops(device, case):
    assert_close(relation(*case), np.array(ref.relation_kl(*case)), atol=1e-10)


@FEWER
@given(case=heads_and_masks())
def test_gradients_of_relations(device, case):
    student, *rest = case
    gradcheck(lambda *pair: relation(list(pair), *rest), *on_device(*student))


@FEWER
@given(case=heads_and_masks())
def test_equal_heads_have_no_distance_and_no_gradient(device, case):
    pair, _, *rest = case
    student = [Tensor(one, requires_grad=True) for one in pair]
    loss = relation(student, pair, *rest)
    loss.backward()
    assert loss.item() == 0.0
    assert all((host(one.grad) == 0.0).all() for one in student)


def test_own_heads_are_kept_and_have_to_be_as_many():
    generator = np.random.default_rng(0)
    two, other = generator.standard_normal((2, 1, 2, 3, 4))
    assert_close(
        relation([two, two], [other, other], None, True, 0), relation([two, two], [other, other], None, True, 2)
    )
    with pytest.raises(ShapeError, match=r"relation: student \(1, 2, 3, 3\) and teacher \(1, 1, 3, 3\)"):
        relation([two, two], [other[:, :1], other[:, :1]], None, True, 0)
    with pytest.raises(ShapeError, match="relation heads: 3 do not divide the width of 2 heads of 4"):
        relation([two, two], [other, other], None, True, 3)
    with pytest.raises(ShapeError, match="share no heads"):
        relation([two, two[:, :1]], [other, other], None, True, 0)


# Logits ---------------------------------------------------------------------------------------------------------------


@FEWER
@given(case=states_and_masks(), temperature=st.sampled_from([0.5, 1.0, 4.0]))
def test_logit_kl_equals_loops(device, case, temperature):
    assume(case[0].shape[-1] > 1)
    found = of_states(distances.logit_kl, *case, temperature=temperature)
    assert_close(found, np.array(ref.logit_kl(*case, temperature)), atol=1e-10)


@FEWER
@given(case=states_and_masks(), temperature=st.sampled_from([0.5, 1.0, 4.0]))
def test_gradient_of_logit_kl_is_a_difference_of_probabilities(device, case, temperature):
    student, teacher, mask = case
    assume(student.shape[-1] > 1)
    logits = Tensor(student, requires_grad=True)
    of_states(distances.logit_kl, logits, teacher, mask, temperature=temperature).backward()
    q, p = (host(fused.softmax(Tensor(x * (1.0 / temperature)))) for x in (student, teacher))
    counts = np.ones(student.shape[:2]) if mask is None else mask.astype(float)
    expected = temperature * (q - p) * counts[..., None] / max(1.0, counts.sum())
    assert_close(logits.grad, expected, atol=1e-11)
    gradcheck(lambda x: of_states(distances.logit_kl, x, teacher, mask, temperature=temperature), to_device(student))


@FEWER
@given(student=arrays((2, 3, 5)), teacher=arrays((2, 3, 5)))
def test_at_a_high_temperature_logit_kl_compares_centred_logits(student, teacher):
    """T^2 is there for this: without it, the loss would vanish as 1 / T^2. Hinton et al. 2015, eq. 4."""
    centred = (student - student.mean(-1, keepdims=True)) - (teacher - teacher.mean(-1, keepdims=True))
    expected = (centred**2).mean() / 2.0
    found = of_states(distances.logit_kl, student, teacher, None, temperature=1e4)
    assert_close(found, np.array(expected), rtol=1e-2, atol=1e-3)


@FEWER
@given(case=states_and_masks(np.float32), spans=st.booleans())
def test_equal_logits_have_no_distance_and_no_gradient(device, case, spans):
    logits, _, mask = case
    assume(spans or logits.shape[-1] > 1)
    if spans:
        logits = np.repeat(logits[..., :1], 2, axis=-1)
    student = Tensor(logits, requires_grad=True)
    loss = of_states(distances.logit_kl, student, logits, mask, temperature=2.0, spans=spans)
    loss.backward()
    assert loss.item() == 0.0
    assert (host(student.grad) == 0.0).all()


@st.composite
def spans_and_masks(draw: Any) -> tuple[np.ndarray, np.ndarray, Mask]:
    batch, time = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    student, teacher = (draw(arrays((batch, time, 2))) for _ in range(2))
    return student, teacher, draw(masks(batch, time))


@FEWER
@given(case=spans_and_masks())
def test_logits_of_spans_are_distributions_over_positions(device, case):
    student, teacher, mask = case
    rows = []
    for b, side in np.ndindex(len(student), 2):
        keys = slice(None) if mask is None else mask[b]
        rows.append(ref.kl_of_rows(student[b, keys, side] / 2.0, teacher[b, keys, side] / 2.0))
    found = of_states(distances.logit_kl, *case, temperature=2.0, spans=True)
    assert_close(found, np.array(4.0 * ref.mean(rows)), atol=1e-10)


def test_logits_of_texts_have_no_positions_to_mask(device):
    student, teacher = np.random.default_rng(0).standard_normal((2, 3, 4))
    mask = np.array([[True, False]] * 3)
    expected = ref.mean([ref.kl_of_rows(s, t) for s, t in zip(student, teacher, strict=True)])
    assert_close(of_states(distances.logit_kl, student, teacher, mask), np.array(expected))


def test_logits_that_cannot_be_compared_are_refused():
    with pytest.raises(ShapeError, match=r"logits: student \(2, 3\) and teacher \(2, 4\)"):
        of_states(distances.logit_kl, np.ones((2, 3)), np.ones((2, 4)), None)
    with pytest.raises(TinykronError, match='a single number is no distribution; logits_form="mse"'):
        of_states(distances.logit_kl, np.ones((2, 1)), np.ones((2, 1)), None)
