"""Fine-tuning learns, keeps its best epoch, stops early, and continues to the same bits; and refuses what is no run."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import assert_close, host
from tests.tiny_tasks import QUICK, SST2, sst2_features, tiny_bert
from tests.tiny_training import interrupt, values
from tinykron import backend
from tinykron.data.batch import Batch
from tinykron.distill.losses import Losses
from tinykron.distill.objective import Distillation
from tinykron.errors import CheckpointError, Interrupted, TinykronError
from tinykron.optim import clip_gradients
from tinykron.tasks.features import collate, logits_of, predict
from tinykron.tasks.tuning import Epochs, FineTuning, fit
from tinykron.train.loop import _gradients
from tinykron.train.resume import BEST, CHECKPOINT
from tinykron.train.settings import Settings

FEATURES = sst2_features()
NAN = {"dev": {"accuracy": float("nan")}}


def loss(model, batch: Batch):
    value = SST2.loss(logits_of(model, batch), batch)
    return value, {"loss": value.item()}


def accuracy(model) -> dict[str, dict[str, float]]:
    features = sst2_features(15, seed=2)
    right = [
        logits.argmax() == example.target for logits, example in zip(predict(model, features), features, strict=True)
    ]
    return {"dev": {"accuracy": float(np.mean(right))}}


def scripted(*scores: float):
    """A score that says what it was told to, one after the other."""
    left = list(scores)
    return lambda model: {"dev": {"accuracy": left.pop(0)}}


def classifier(seed: int = 0, dropout: float = 0.0):
    return tiny_bert(seed, head="sequence", dropout=dropout)


# Learning -------------------------------------------------------------------------------------------------------------


def test_what_can_be_learnt_is(device):
    model = classifier()
    history = fit(model, FEATURES, replace(QUICK, epochs=8), loss, accuracy)
    assert history.terms[0]["loss"] > 0.5 > 0.2 > history.terms[-1]["loss"]
    assert history.scores[-1][1]["dev"]["accuracy"] > 0.9
    assert [steps for steps, _ in history.scores] == [5, 10, 15, 20, 25, 30, 35, 40]
    assert not model.training and all(parameter.grad is None for parameter in model.parameters())


def test_every_device_learns_alike(device):
    model = classifier(dropout=0.1)
    short = replace(QUICK, epochs=1, split_batch=2)
    history = fit(model, FEATURES[:16], short, loss, accuracy)
    with backend.device("cpu"):
        expected = fit(classifier(dropout=0.1), FEATURES[:16], short, loss, accuracy)
    assert history.gradient_norms == pytest.approx(expected.gradient_norms, rel=1e-3)
    assert history.terms[-1]["loss"] == pytest.approx(expected.terms[-1]["loss"], rel=1e-3)


def test_the_terms_of_a_distillation_are_measured_and_the_training_stays_the_same():
    short = replace(QUICK, epochs=1, measure_every=2)
    runs = []
    for measured in (True, False):
        model = classifier(dropout=0.2)
        losses = Losses(embedding=0.0, attention=0.0, logits=0.5)
        distillation = Distillation(model, classifier(1), losses, label_loss=SST2.loss)
        given = distillation if measured else lambda model, batch, of=distillation: of(batch)
        runs.append((model, fit(model, FEATURES[:24], short, given, accuracy)))
    (model, history), (other, unmeasured) = runs
    assert all((values(model)[name] == array).all() for name, array in values(other).items())
    assert history.terms == unmeasured.terms and unmeasured.term_norms == []
    assert [step for step, _ in history.term_norms] == [0, 2]
    fresh = classifier(dropout=0.2).train()
    distillation = Distillation(fresh, classifier(1), losses, label_loss=SST2.loss)
    batch = collate([FEATURES[:24][row] for row in Epochs(FEATURES[:24], short).rows(0)])
    for term, norm in history.term_norms[0][1].items():
        distillation.start(QUICK.seed, 0)
        distillation(batch, only=(term,))[0].backward()
        assert norm == pytest.approx(clip_gradients(fresh.parameters(), float("inf")))


@given(examples=st.integers(1, 50), batch=st.integers(1, 20), seed=st.integers(0, 9))
def test_each_epoch_sees_every_example_once_in_an_order_of_its_own(examples, batch, seed):
    plan = replace(QUICK, batch=batch, seed=seed)
    steps = plan.steps_per_epoch(examples)
    rows = Epochs(range(examples), plan).rows
    epochs = [np.concatenate([rows(e * steps + i) for i in range(steps)]) for e in range(2)]
    for order in epochs:
        assert sorted(order) == list(range(examples))
    assert examples < 9 or not np.array_equal(*epochs)
    assert max(len(rows(i)) for i in range(steps)) == min(batch, examples)


@given(split=st.integers(1, 5), accumulate=st.integers(1, 3), batch=st.integers(1, 9), step=st.integers(0, 20))
def test_parts_of_a_batch_make_the_gradient_of_the_whole(split, accumulate, batch, step):
    batches = Epochs(FEATURES, replace(QUICK, batch=batch, split_batch=split, accumulate=accumulate))
    parts, whole = classifier(), classifier()
    sizes = [len(part.ids_BT) for part, _ in batches(step)]
    assert sum(sizes) == len(batches.rows(step)) <= batch * accumulate and max(sizes) <= -(-batch // split)
    terms = _gradients(parts, batches, lambda batch, progress: loss(parts, batch), Settings(100), step)
    value, _ = loss(whole, collate([FEATURES[row] for row in batches.rows(step)]))
    value.backward()
    assert terms["loss"] == pytest.approx(value.item(), rel=1e-5)
    for ours, theirs in zip(parts.parameters(), whole.parameters(), strict=True):
        assert_close(ours.grad, host(theirs.grad), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("warmup", "first"), [(0.0, 1.0), (0.5, 0.5), (1.0, 0.25)])
def test_the_first_of_four_steps_is_as_long_as_the_warm_up_says(warmup, first):
    model = classifier()  # AdamW's first step moves each value by the learning rate
    before = values(model)

    def stopped(model, batch):
        interrupt()
        return loss(model, batch)

    with pytest.raises(Interrupted):
        fit(model, FEATURES[:32], replace(QUICK, epochs=1, warmup=warmup, weight_decay=0.0), stopped, accuracy)
    move = max(np.abs(array - before[name]).max() for name, array in values(model).items())
    assert move == pytest.approx(first * QUICK.lr, rel=1e-2)


# The best epoch -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scores", "best"),
    [((0.1, 0.9, 0.5), 1), ((0.9, 0.9, 0.5), 0), ((0.1, 0.2, 0.3), 2), ((float("nan"), 0.1, float("nan")), 1)],
)
def test_the_weights_of_the_best_epoch_are_kept(scores, best):
    model, kept = classifier(), []
    tell = scripted(*scores)

    def score(model):
        kept.append(values(model))
        return tell(model)

    history = fit(model, FEATURES, QUICK, loss, score)
    assert history.best() == best and history.steps == 15
    for name, array in values(model).items():
        assert np.array_equal(array, kept[best][name]), name
    assert not all(np.array_equal(kept[0][name], kept[2][name]) for name in kept[0])


@pytest.mark.parametrize(
    ("patience", "scores", "epochs"),
    [
        (0, (0.5, 0.1, 0.1, 0.1, 0.1), 5),
        (1, (0.5, 0.6, 0.6), 3),
        (2, (0.5, 0.4, 0.6, 0.5, 0.4), 5),
        (2, (0.5, 0.4, 0.3), 3),
    ],
)
def test_patience_ends_when_nothing_gets_better(patience, scores, epochs):
    history = fit(classifier(), FEATURES, replace(QUICK, epochs=5, patience=patience), loss, scripted(*scores))
    assert len(history.scores) == epochs


# Continuing -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop_at", [1, 4, 5, 7, 14])
def test_ctrl_c_finishes_the_step_and_it_continues_to_the_same_bits(tmp_path, stop_at):
    straight = classifier(dropout=0.1)
    expected = fit(straight, FEATURES, QUICK, loss, accuracy)
    done = 0

    def stopped(model, batch):
        nonlocal done
        done += 1
        if done == stop_at:
            interrupt()
        return loss(model, batch)

    plan = replace(QUICK, checkpoint_every=1000)
    expected = fit(straight := classifier(dropout=0.1), FEATURES, plan, loss, accuracy)
    with pytest.raises(Interrupted, match=f"after {stop_at} of 15 steps"):
        fit(classifier(dropout=0.1), FEATURES, plan, stopped, accuracy, folder=tmp_path)
    model = classifier(dropout=0.1)
    second = fit(model, FEATURES, plan, loss, accuracy, folder=tmp_path)
    assert second == expected
    for name, array in values(straight).items():
        assert array.tobytes() == values(model)[name].tobytes(), name
    done_again = fit(classifier(), FEATURES, plan, lambda *_: pytest.fail("trained on"), accuracy, folder=tmp_path)
    assert done_again.steps == expected.steps


def test_a_run_that_patience_ended_is_not_continued(tmp_path):
    plan = replace(QUICK, patience=1)
    history = fit(classifier(), FEATURES, plan, loss, scripted(0.5, 0.4), folder=tmp_path)
    again = fit(classifier(), FEATURES, plan, lambda *_: pytest.fail("trained on"), accuracy, folder=tmp_path)
    assert again.scores == history.scores and again.steps == 10


@pytest.mark.parametrize("change", ["features", "labels", "settings", "inputs"])
def test_another_run_is_not_continued(tmp_path, change):
    run = {"features": FEATURES, "settings": replace(QUICK, epochs=1), "inputs": b"a"}
    flipped = [replace(example, target=1 - example.target) for example in FEATURES]
    other = {
        "features": sst2_features(seed=5),
        "labels": flipped,
        "settings": replace(QUICK, epochs=1, lr=0.5),
        "inputs": b"b",
    }

    def train(features, settings, inputs):
        return fit(classifier(), features, settings, loss, accuracy, inputs=inputs, folder=tmp_path)

    train(**run)
    with pytest.raises(CheckpointError, match=f"{CHECKPOINT}: belongs to another run"):
        train(**(run | {"features" if change == "labels" else change: other[change]}))


def test_best_weights_that_are_gone_are_named(tmp_path):
    plan = replace(QUICK, epochs=1)
    fit(classifier(), FEATURES, plan, loss, accuracy, folder=tmp_path)
    (tmp_path / BEST).unlink()
    with pytest.raises(CheckpointError, match="best.safetensors: expected the best epoch's weights"):
        fit(classifier(), FEATURES, plan, loss, accuracy, folder=tmp_path)


# What is no run -------------------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_a_number_stops(tmp_path):
    with pytest.raises(
        TinykronError, match=r"fine-tuning: the loss became \{'loss': nan\} at step 0; try a lower learning rate"
    ):
        fit(classifier(), FEATURES, QUICK, lambda m, b: (loss(m, b)[0], {"loss": float("nan")}), accuracy)
    with pytest.raises(TinykronError, match="fine-tuning: expected examples, found none"):
        fit(classifier(), [], QUICK, loss, accuracy)


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ({"epochs": 0}, "epochs: found 0, expected a whole number from 1 on"),
        ({"batch": 1.5}, "batch: found 1.5"),
        ({"context": 7}, "context: found 7, expected a whole number from 8 on"),
        ({"accumulate": True}, "accumulate: found True"),
        ({"patience": -1}, "patience: found -1, expected a whole number from 0 on"),
        ({"lr": float("nan")}, "lr: found nan, expected a number from 0 on"),
        ({"lr": "high"}, "lr: found 'high'"),
        ({"weight_decay": -0.1}, "weight_decay: found -0.1"),
        ({"warmup": 1.1}, "warmup: found 1.1, expected a number from 0 and up to 1"),
        ({"split_batch": 0}, "split_batch: found 0, expected a whole number from 1 on"),
    ],
    ids=str,
)
def test_settings_refuse(setting, says):
    with pytest.raises(TinykronError, match=says):
        FineTuning(**setting)
