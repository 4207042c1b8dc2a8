"""Training beside a teacher: schedules, adapters, next sentences, each term's gradient, batches that come again."""

from __future__ import annotations

from dataclasses import replace
from math import sqrt
from typing import Any

import numpy as np
import pytest

from tests.helpers import host
from tests.tiny_tasks import TOKENIZER, tiny_bert
from tests.tiny_training import SHORT, TOKENS, Scripted, at, gradients, interrupt, tiny_gpt2
from tests.train.test_resume import assert_same_bits
from tinykron.data.masking import Masking
from tinykron.distill.losses import Losses, Schedule
from tinykron.distill.objective import Distillation
from tinykron.errors import CheckpointError, Interrupted, TinykronError
from tinykron.models.bert import Bert
from tinykron.nn import seed_dropout
from tinykron.train import loop
from tinykron.train import settings as train_settings
from tinykron.train.batches import Feed
from tinykron.train.loop import fit
from tinykron.train.settings import Settings

MASKING = Masking.of(TOKENIZER)
PIECES = np.random.default_rng(5).integers(5, TOKENIZER.get_vocab_size(), 200)


def fit_beside(
    student: Any, settings: Settings = SHORT, losses: Losses | None = None, **options: Any
) -> train_settings.History:
    return fit(student, TOKENS, settings, teacher=tiny_gpt2(1, spread=10.0), losses=losses, **options)


# Schedules ------------------------------------------------------------------------------------------------------------


def test_a_schedule_runs_from_the_first_step_to_the_last():
    losses = Losses(hidden=Schedule(0.0, 1.0), attention=Schedule(1.0, 0.0))
    history = fit_beside(tiny_gpt2(0), losses=losses)
    present = [(("hidden" in terms), ("attention" in terms)) for terms in history.terms]
    assert present == [(False, True), *[(True, True)] * (SHORT.steps - 2), (True, False)]


def test_the_weight_of_a_step_is_in_its_gradient():
    losses = Losses(0.0, 0.0, Schedule(4.0, 1.0), 0.0)
    student, teacher = tiny_gpt2(0), tiny_gpt2(1, spread=10.0)
    distillation = Distillation(student, teacher, losses)
    feed = Feed(distillation, TOKENS, replace(SHORT, steps=4))
    for step, weight in enumerate((4.0, 3.0, 2.0, 1.0)):
        gradients(feed, step)
        found = host(student.norm.weight.grad).copy()
        student.zero_grad()
        batch, _ = next(feed(step))
        distillation(batch, 1.0)[0].backward()
        np.testing.assert_allclose(found, weight * host(student.norm.weight.grad), rtol=1e-5)


# Each term's gradient -------------------------------------------------------------------------------------------------


def test_measuring_leaves_the_training_as_it_is():
    runs = {}
    for every in (0, 1, 4):
        model = tiny_gpt2(0, dropout=0.2)
        runs[every] = model, fit_beside(model, replace(SHORT, measure_every=every, accumulate=2))
    assert [[step for step, _ in history.term_norms] for _, history in runs.values()] == [
        [],
        [0, 1, 2, 3, 4, 5],
        [0, 4, 5],
    ]
    assert runs[1][1].term_norms[::4] == runs[4][1].term_norms[:2]
    for model, history in runs.values():
        assert_same_bits(model, runs[0][0])
        assert (history.terms, history.gradient_norms) == (runs[0][1].terms, runs[0][1].gradient_norms)


def test_a_terms_norm_is_that_of_its_weighted_gradient_alone(device):
    student, teacher = tiny_gpt2(0, dropout=0.2), tiny_gpt2(1, spread=10.0)
    losses = Losses(embedding=0.0, hidden=2.0, attention=0.5)
    distillation = Distillation(student, teacher, losses)
    batch, _ = next(Feed(distillation, TOKENS, SHORT)(2))
    norms = loop.term_norms(distillation, batch, (SHORT.seed, 2), 0.4)
    assert list(norms) == ["attention", "hidden", "cross_entropy"]
    for name, norm in norms.items():
        student.zero_grad()
        seed_dropout(student, SHORT.seed, 2)
        weight = getattr(losses, name)
        alone = Losses(**(dict.fromkeys(("embedding", "attention", "hidden", "cross_entropy"), 0.0) | {name: weight}))
        Distillation(student, teacher, alone)(batch)[0].backward()
        gradients = [host(p.grad).astype(np.float64) for p in student.parameters() if p.grad is not None]
        assert norm == pytest.approx(sqrt(sum((gradient**2).sum() for gradient in gradients)), rel=1e-5)


def test_one_term_alone_is_not_measured():
    student = tiny_gpt2(0, kind=Scripted)
    history = fit(student, TOKENS, replace(SHORT, measure_every=1))
    assert history.term_norms == []
    assert student.passes == SHORT.steps


# Adapters -------------------------------------------------------------------------------------------------------------


def wide_teacher() -> Any:
    return tiny_gpt2(1, n_embd=12, spread=10.0)


def test_adapters_learn_beside_the_student_and_a_run_continues_with_them(tmp_path):
    losses = Losses(attention=0.0)

    def run(student: Any, **options: Any) -> train_settings.History:
        return fit(student, TOKENS, SHORT, teacher=wide_teacher(), losses=losses, **options)

    straight = tiny_gpt2(0)
    history = run(straight)
    assert history.terms[-1]["hidden"] < history.terms[0]["hidden"]
    broken = tiny_gpt2(0, kind=Scripted)
    broken.script = at(6, interrupt)  # in the third step: the first is measured, with a pass for each of the terms
    with pytest.raises(Interrupted):
        run(broken, folder=tmp_path)
    model = tiny_gpt2(0)
    assert run(model, folder=tmp_path) == history
    assert_same_bits(model, straight)


def test_a_gradient_is_clipped_with_that_of_the_adapters():
    student, teacher = tiny_gpt2(0), wide_teacher()
    history = fit(student, TOKENS, SHORT, teacher=teacher, losses=Losses(attention=0.0))
    feed = Feed(Distillation(tiny_gpt2(0), teacher, Losses(attention=0.0), seed=SHORT.seed), TOKENS, SHORT)
    gradients(feed, 0)
    trained = [*feed.distillation.student.parameters(), *feed.distillation.adapters.parameters()]
    expected = sqrt(sum(float((host(p.grad).astype(np.float64) ** 2).sum()) for p in trained))
    assert history.gradient_norms[0] == pytest.approx(expected, rel=1e-5)


# Masked language models -----------------------------------------------------------------------------------------------


def test_a_masked_model_learns_hidden_tokens_and_next_sentences():
    config, teacher = replace(tiny_bert(0).config, has_pooler=True), tiny_bert(1)
    student = Bert(config, np.random.default_rng(3))
    settings = replace(SHORT, context=12, measure_every=3)
    losses = Losses(attention_form="scores", logits=1.0, next_sentence=1.0)  # KroneckerBERT's, in pre-training
    before = host(student.pooler.weight).copy()
    history = fit(student, PIECES, settings, teacher=teacher, losses=losses, masking=MASKING)
    assert set(history.terms[0]) == losses.terms == set(history.term_norms[0][1])
    assert (host(student.pooler.weight) != before).any()
    with pytest.raises(TinykronError, match="next_sentence: expected a masked language model, found no masking"):
        fit(student, PIECES, settings, teacher=teacher, losses=losses)


def test_settings_of_losses_are_checked():
    with pytest.raises(TinykronError, match="measure_every: found -1, expected a whole number from 0 on"):
        replace(SHORT, measure_every=-1)


def test_other_layers_or_forms_are_another_run(tmp_path):
    fit_beside(tiny_gpt2(0), folder=tmp_path)
    for options in ({"layers": [1, 0]}, {"losses": Losses(attention_form="scores")}):
        with pytest.raises(CheckpointError, match="another text, teacher or losses"):
            fit_beside(tiny_gpt2(0), folder=tmp_path, **options)
