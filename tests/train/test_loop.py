"""The training loop learns, accumulates and evaluates as it says; and refuses what it cannot use."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from math import log

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers import assert_close, host
from tests.tiny_training import (
    CONTEXT,
    SETTINGS,
    SHORT,
    TOKENS,
    VOCABULARY,
    at,
    gradients,
    interrupt,
    scripted,
    tiny_gpt2,
    unstable_gpt2,
    values,
)
from tinykron import backend, data, fused
from tinykron.data.batch import Batch
from tinykron.distill.losses import Losses
from tinykron.distill.objective import Distillation
from tinykron.errors import DataError, Interrupted, ShapeError, TinykronError
from tinykron.measure.perplexity import perplexity
from tinykron.models.gpt2 import GPT2
from tinykron.train import batches
from tinykron.train import settings as train_settings
from tinykron.train.loop import fit
from tinykron.train.settings import Settings

CROSS_ENTROPY = Losses(0.0, 0.0, 0.0, 1.0)
FEWER = settings(max_examples=settings().max_examples // 3)


# Learning -------------------------------------------------------------------------------------------------------------


def test_a_text_that_can_be_memorised_is():
    model = tiny_gpt2(layers=1)
    before = perplexity(model, TOKENS, CONTEXT)
    history = fit(model, TOKENS, replace(SETTINGS, steps=80, batch=4, lr=3e-2), held_out=TOKENS)
    losses = [terms["cross_entropy"] for terms in history.terms]
    assert before == pytest.approx(VOCABULARY, rel=0.05)  # it knows nothing yet
    assert losses[0] == pytest.approx(log(VOCABULARY), rel=0.05)
    assert np.mean(losses[-5:]) < 0.3
    assert history.perplexities == [(80, perplexity(model, TOKENS, CONTEXT))]
    assert history.perplexities[0][1] < 1.4


def test_a_student_comes_closer_to_its_teacher():
    student, teacher = tiny_gpt2(0, layers=1), tiny_gpt2(1, layers=2, spread=10.0)
    kept = values(teacher)
    history = fit(student, TOKENS, replace(SHORT, steps=40), teacher=teacher)
    first, last = history.terms[0], history.terms[-1]
    assert set(first) == {"cross_entropy", "embedding", "hidden", "attention"}
    assert sum(last.values()) < 0.7 * sum(first.values())
    for name, array in values(teacher).items():
        np.testing.assert_array_equal(array, kept[name])
    assert not any(parameter.grad is not None for parameter in teacher.parameters())


def test_layers_say_whom_to_follow():
    teacher = tiny_gpt2(1, layers=2, spread=10.0)
    runs = [
        fit(tiny_gpt2(0, layers=1), TOKENS, SHORT, teacher=teacher, losses=Losses(hidden=1.0), layers=layers)
        for layers in (None, [1], [0])
    ]
    assert runs[0].terms == runs[1].terms
    assert runs[0].terms[0]["hidden"] != runs[2].terms[0]["hidden"]


def test_every_device_trains_alike(device):
    def run() -> tuple[GPT2, train_settings.History]:
        model, teacher = unstable_gpt2(), tiny_gpt2(1, layers=1, spread=10.0)
        short = replace(SHORT, steps=3, lr=1e-3, accumulate=2)
        return model, fit(model, TOKENS, short, teacher=teacher, held_out=TOKENS[:20])

    model, history = run()
    assert {parameter.device for parameter in model.parameters()} == {device}
    with backend.device("cpu"):
        on_cpu, expected = run()
    assert history.gradient_norms == pytest.approx(expected.gradient_norms, rel=1e-4)
    assert history.perplexities[-1][1] == pytest.approx(expected.perplexities[-1][1], rel=1e-5)
    for name, array in values(on_cpu).items():
        if not name.endswith("key.bias"):  # its gradient is rounding alone, which AdamW makes as large as any other
            assert_close(values(model)[name], array, rtol=1e-3, atol=1e-5)


def test_the_history_of_a_run():
    model = tiny_gpt2(layers=1)
    history = fit(model, TOKENS, replace(SHORT, evaluate_every=4), held_out=TOKENS[:30])
    assert (history.steps, len(history.terms), len(history.gradient_norms)) == (6, 6, 6)
    assert [steps for steps, _ in history.perplexities] == [4, 6]
    assert all(norm > 0 for norm in history.gradient_norms)
    assert not model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_step_is_as_long_as_the_schedule_says():
    moves = {}
    for warmup in (0, 2, 5):
        model = scripted(at(1, interrupt))  # AdamW's first step moves each value by the learning rate
        before = values(model)
        with pytest.raises(Interrupted):
            fit(model, TOKENS, replace(SHORT, lr=1e-2, warmup=warmup, weight_decay=0.0))
        moves[warmup] = max(np.abs(array - before[name]).max() for name, array in values(model).items())
    assert moves == pytest.approx({0: 1e-2, 2: 1e-2 / 2, 5: 1e-2 / 5}, rel=1e-2)


@pytest.mark.parametrize(("dropout", "differs"), [(0.0, False), (0.5, True)])
def test_each_step_drops_other_values(dropout, differs):
    one_token = np.zeros(30, np.int64)  # so that all batches are alike
    model = tiny_gpt2(dropout=dropout)
    losses = {
        gradients(batches.Feed(Distillation(model, losses=CROSS_ENTROPY), one_token, SHORT), step)["cross_entropy"]
        for step in (0, 1)
    }
    assert len(losses) == (2 if differs else 1)


def test_clipping_is_in_force():
    tight, loose = tiny_gpt2(layers=1), tiny_gpt2(layers=1)
    norms = [
        fit(model, TOKENS, replace(SHORT, clip=clip)).gradient_norms for model, clip in ((tight, 1e-6), (loose, 1e6))
    ]
    assert norms[0][0] == norms[1][0]  # as they were before clipping
    assert np.abs(values(tight)["norm.weight"] - values(loose)["norm.weight"]).max() > 1e-3


@FEWER
@given(
    accumulate=st.integers(1, 4), split=st.integers(1, 3), batch=st.integers(1, 3), step=st.integers(0, SHORT.steps - 1)
)
def test_accumulated_gradients_are_those_of_one_larger_batch(device, accumulate, split, batch, step):
    plan = replace(SHORT, accumulate=accumulate, batch=batch, split_batch=split)
    parts, whole = tiny_gpt2(layers=1), tiny_gpt2(layers=1)
    terms = gradients(batches.Feed(Distillation(parts, losses=CROSS_ENTROPY), TOKENS, plan), step)
    generator = np.random.default_rng((plan.seed, step))
    drawn = [data.sample_batch(TOKENS, batch, CONTEXT, generator) for _ in range(accumulate)]
    inputs_BT, targets_BT = (np.concatenate(arrays) for arrays in zip(*drawn, strict=True))
    loss = fused.cross_entropy(whole(inputs_BT).logits, targets_BT)
    loss.backward()
    assert terms["cross_entropy"] == pytest.approx(loss.item(), rel=1e-5)
    for ours, theirs in zip(parts.parameters(), whole.parameters(), strict=True):
        assert_close(ours.grad, host(theirs.grad), rtol=1e-4)


def test_a_part_of_a_batch_has_the_share_of_its_targets_that_count():
    ids_BT = np.arange(12).reshape(4, 3)
    targets_BT = np.array([[1, 2, 3], [-100, -100, 4], [-100] * 3, [5, 6, -100]])
    found = list(batches.parts(Batch(ids_BT, targets_BT, ids_BT + 1), 3))
    assert [share for _, share in found] == [4 / 6, 2 / 6]  # the part without a target that counts is left out
    assert [part.ids_BT.tolist() for part, _ in found] == [ids_BT[:2].tolist(), [[9, 10, 11]]]
    assert all(np.array_equal(part.mask_BT, part.ids_BT + 1) and part.types_BT is None for part, _ in found)
    alike = batches.parts(Batch(ids_BT, np.full_like(targets_BT, -100)), 3)  # beside a teacher alone
    assert [share for _, share in alike] == [2 / 4, 1 / 4, 1 / 4]
    [(whole, share)] = batches.parts(Batch(ids_BT, targets_BT), 1)
    assert share == 1.0 and whole.ids_BT is ids_BT


# Perplexity -----------------------------------------------------------------------------------------------------------


# Arguments ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ({"steps": 0}, "steps: found 0, expected a whole number from 1 on"),
        ({"batch": 2.5}, "batch: found 2.5, expected a whole number from 1 on"),
        ({"context": "8"}, "context: found '8', expected a whole number"),
        ({"accumulate": True}, "accumulate: found True"),
        ({"checkpoint_every": 0}, "checkpoint_every: found 0"),
        ({"warmup": -1}, "warmup: found -1, expected a whole number from 0 on"),
        ({"warmup": 11}, "a warm-up of 11 steps does not fit into 10"),
        ({"seed": -1}, "seed: found -1"),
        ({"evaluate_every": None}, "evaluate_every: found None"),
        ({"lr": -1e-3}, "lr: found -0.001, expected a number from 0 on"),
        ({"lr": float("nan")}, "lr: found nan"),
        ({"weight_decay": "much"}, "weight_decay: found 'much'"),
        ({"floor": -0.1}, "floor: found -0.1"),
        ({"clip": 0.0}, "clip: found 0.0, expected a number above 0"),
        ({"betas": (0.9,)}, "betas: found .0.9,., expected two numbers"),
        ({"betas": (0.9, 1.0)}, "betas: found"),
        ({"betas": 0.9}, "betas: found 0.9"),
        ({"schedule": "step"}, 'schedule: found "step"'),
    ],
    ids=str,
)
def test_settings_refuse(setting, expected):
    with pytest.raises(TinykronError, match=expected):
        Settings(**{"steps": 10, **setting})


def test_settings_survive_json_and_count_tokens():
    plan = Settings(steps=10, batch=2, context=3, accumulate=4, lr=0, betas=(0, 0.5))
    assert plan.tokens_per_step == 24
    assert json.loads(json.dumps(asdict(plan)))["betas"] == [0, 0.5]


def test_losses_that_compare_need_a_teacher():
    with pytest.raises(TinykronError, match="compare with a teacher, and none is given"):
        fit(unstable_gpt2(), TOKENS, SHORT, losses=Losses())


def test_a_student_deeper_than_its_teacher_is_refused():
    with pytest.raises(ShapeError, match="3 student layers for 2 teacher layers"):
        fit(tiny_gpt2(layers=3), TOKENS, SHORT, teacher=tiny_gpt2(layers=2))


def test_a_text_too_short_for_the_context_is_refused():
    with pytest.raises(DataError, match=f"found {CONTEXT} tokens, need {CONTEXT + 1}"):
        fit(unstable_gpt2(), TOKENS[:CONTEXT], SHORT)


def test_a_context_beyond_the_models_is_refused():
    with pytest.raises(TinykronError, match=f"{CONTEXT + 1} tokens are more than the model's context of {CONTEXT}"):
        fit(unstable_gpt2(), TOKENS, replace(SHORT, context=CONTEXT + 1))
