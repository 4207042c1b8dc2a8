"""Teacher and student side by side: each term against plain NumPy, in each family; the teacher is left alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import distance_references as ref
from tests.helpers import assert_close, host
from tests.tiny_tasks import SST2, sst2_features, tiny_bert
from tests.tiny_training import CONTEXT, VOCABULARY, tiny_gpt2
from tinykron import data
from tinykron.data.batch import Batch
from tinykron.distill.losses import Losses, Schedule
from tinykron.distill.objective import Distillation, layer_map
from tinykron.errors import ShapeError, TinykronError
from tinykron.models.gpt2 import GPT2
from tinykron.models.llama import Llama, LlamaConfig
from tinykron.models.transformer import Output
from tinykron.tasks.features import collate
from tinykron.tensor import no_grad

TERMS = {  # by the distance: the losses that have this term alone
    "embedding": {"embedding": 1.0},
    "attention_kl": {"attention": 1.0},
    "attention_mse": {"attention": 1.0, "attention_form": "scores"},
    "hidden_mse": {"hidden": 1.0},
    "hidden_cosine": {"hidden": 1.0, "hidden_form": "cosine"},
    "logit_kl": {"logits": 1.0, "temperature": 2.0},
    "logit_mse": {"logits": 1.0, "logits_form": "mse"},
    "queries": {"query_relation": 1.0},
    "keys": {"key_relation": 1.0},
    "values": {"value_relation": 1.0},
    "queries and keys": {"query_key_relation": 1.0},
}
GENERATOR = np.random.default_rng(0)
IDS_BT, TARGETS_BT = GENERATOR.integers(0, VOCABULARY, (2, 3, CONTEXT))
BATCH = Batch(IDS_BT, TARGETS_BT)
MASK_BT = np.array([[1, 1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1, 0, 0]])
PADDED = replace(BATCH, mask_BT=MASK_BT, targets=np.where(MASK_BT, TARGETS_BT, data.IGNORED))


def only(*names: str, **options: Any) -> Losses:
    """Losses of some terms alone."""
    of_kngpt2 = dict.fromkeys(("embedding", "attention", "hidden", "cross_entropy"), 0.0)
    return Losses(**(of_kngpt2 | dict.fromkeys(names, 1.0) | options))


def tiny_llama(seed: int = 0, layers: int = 2, groups: int = 1) -> Llama:
    config = LlamaConfig(VOCABULARY, 8, 12, layers, 2, groups, max_position_embeddings=CONTEXT)
    model = Llama(config, np.random.default_rng(seed))
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.data *= 10.0
    return model


FAMILIES = {
    "gpt2": lambda seed: tiny_gpt2(seed, spread=10.0),
    "llama": tiny_llama,
    "bert": lambda seed: tiny_bert(seed, "masked_lm").train(),
}
TYPED = replace(PADDED, types_BT=(np.arange(CONTEXT) > 3).astype(np.int64) * np.ones((3, 1), np.int64))


def gradients(model: Any) -> dict[str, np.ndarray | None]:
    return {name: None if p.grad is None else host(p.grad) for name, p in model.named_parameters()}


# Each term ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("distance", TERMS)
def test_a_student_equal_to_its_teacher_has_no_loss_and_no_gradient(device, distance, family):
    groups = {"groups": 2} if (distance, family) == ("queries and keys", "llama") else {}
    student, teacher = FAMILIES[family](1, **groups), FAMILIES[family](1, **groups)
    batch = TYPED if family == "bert" else PADDED
    loss, terms = Distillation(student, teacher, only(**TERMS[distance]))(batch)
    loss.backward()
    assert list(terms.values()) == [0.0]
    reached = [gradient for gradient in gradients(student).values() if gradient is not None]
    assert reached
    assert not any(gradient.any() for gradient in reached)


def expected_terms(student: Output, teacher: Output, batch: Batch, losses: Losses, causal: bool) -> dict[str, float]:
    """All terms, whatever their weights, by the references: two layers, of which each follows every second of four."""

    def wide(one: Any) -> np.ndarray:
        return host(one).astype(np.float64)

    mask = None if batch.mask_BT is None else batch.mask_BT.astype(bool)
    logits, of_teacher = wide(student.logits), wide(teacher.logits)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    places = np.argwhere(batch.targets != data.IGNORED)
    hidden = ref.cosine_distance if losses.hidden_form == "cosine" else ref.mean_squared_error
    scores = ref.attention_mse if losses.attention_form == "scores" else ref.attention_kl
    of_logits = {
        "kl": ref.logit_kl(logits, of_teacher, mask, losses.temperature),
        "mse": ref.mean_squared_error(logits, of_teacher, mask),
    }
    ours, theirs = (dict(zip("qkv", map(wide, out.attention_heads[-1][:3]), strict=True)) for out in (student, teacher))
    expected = {
        "cross_entropy": ref.mean([-log_p[b, t, batch.targets[b, t]] for b, t in places]),
        "embedding": ref.mean_squared_error(wide(student.hidden[0]), wide(teacher.hidden[0]), mask),
        "hidden": sum(hidden(wide(student.hidden[n + 1]), wide(teacher.hidden[2 * n + 2]), mask) for n in (0, 1)),
        "attention": sum(
            scores(wide(student.attention_scores[n]), wide(teacher.attention_scores[2 * n + 1]), mask, causal)
            for n in (0, 1)
        ),
        "logits": of_logits[losses.logits_form],
    }
    for name, (x, y) in {"query": "qq", "key": "kk", "value": "vv", "query_key": "qk"}.items():
        pairs = [ours[x], ours[y]], [theirs[x], theirs[y]]
        expected[f"{name}_relation"] = ref.relation_kl(*pairs, mask, causal, losses.relation_heads or 2)
    return expected


WEIGHTED = {
    "one form": Losses(0.5, 1.0, 2.0, 0.25, 3.0, 1.0, 0.5, 2.0, 4.0, temperature=2.0),
    "the other": Losses(
        1.0, 2.0, 0.5, 0.0, 2.0, 1.0, 1.0, 1.0, 1.0,
        attention_form="scores", hidden_form="cosine", logits_form="mse", relation_heads=4,
    ),
    "KnGPT2": Losses(),
    "some": Losses(0.0, 2.0, 0.0, 0.25, value_relation=1.0),
}  # fmt: skip


@pytest.mark.parametrize("batch", [BATCH, PADDED, TYPED], ids=["whole", "padded", "typed"])
@pytest.mark.parametrize("losses", WEIGHTED.values(), ids=WEIGHTED)
@pytest.mark.parametrize("causal", [True, False])
def test_the_loss_is_the_weighted_sum_of_its_terms(device, losses, batch, causal):
    if causal:
        student, teacher = tiny_gpt2(0, spread=10.0, layers=2), tiny_gpt2(1, spread=10.0, layers=4)
        batch = replace(batch, types_BT=None)
    else:
        student, teacher = tiny_bert(0, layers=2), tiny_bert(1, layers=4)
    loss, terms = Distillation(student, teacher, losses)(batch)
    inputs = [batch.ids_BT, batch.mask_BT, *([] if causal else [batch.types_BT])]
    with no_grad():
        ours, theirs = (model(*inputs, attention_scores=True, attention_heads=True) for model in (student, teacher))
    expected = expected_terms(ours, theirs, batch, losses, causal)
    weights = losses.at(0.0)
    assert terms == pytest.approx({name: expected[name] for name in weights}, rel=1e-4)
    assert loss.item() == pytest.approx(sum(weight * expected[name] for name, weight in weights.items()), rel=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_total_reaches_every_parameter_of_the_student(family):
    student, teacher = FAMILIES[family](0), FAMILIES[family](1)
    losses = Losses(logits=1.0, value_relation=1.0, attention_form="scores")
    Distillation(student, teacher, losses)(TYPED if family == "bert" else BATCH)[0].backward()
    found = gradients(student)
    assert all(gradient is not None for gradient in found.values())
    assert [name for name, gradient in found.items() if not np.abs(gradient).max() > 1e-6] == []


# What is run ----------------------------------------------------------------------------------------------------------


class Recording(GPT2):
    """A GPT-2 that keeps its last output, and what it was asked for."""

    last: Output
    asked: Any = None

    def forward(self, *args: Any, **options: Any) -> Output:
        self.asked = options
        self.last = super().forward(*args, **options)
        return self.last


def test_the_teacher_leaves_no_tape_and_its_mode_is_left_alone(device):
    student, teacher = tiny_gpt2(0), tiny_gpt2(1, kind=Recording, dropout=0.5)
    first, second = (Distillation(student, teacher)(BATCH)[0] for _ in range(2))
    assert first.item() == second.item()  # it runs without dropout
    assert teacher.training
    outputs = (teacher.last.logits, *teacher.last.hidden, *(teacher.last.attention_scores or ()))
    assert len(outputs) == 1 + 3 + 2
    assert not any(output.requires_grad or output.node for output in outputs)
    first.backward()
    assert all(gradient is None for gradient in gradients(teacher).values())


def test_a_student_without_dropout_follows_its_teacher_exactly(device):
    student, teacher = (tiny_gpt2(0, dropout=0.5).to(device) for _ in range(2))
    still = Distillation(student, teacher, only("hidden"), dropout=False)
    noisy = Distillation(student, teacher, only("hidden"))
    still.start(0, 0)
    assert still(BATCH)[0].item() == 0.0 < noisy(BATCH)[0].item()
    assert student.training and still.identity != noisy.identity


@pytest.mark.parametrize(
    ("losses", "asked"),
    [
        (only("cross_entropy"), None),
        (only("logits"), (False, False)),
        (only("hidden"), (False, False)),
        (only("attention"), (True, False)),
        (only("key_relation"), (False, True)),
        (only("logits", attention=Schedule(0.0, 1.0)), (False, False)),  # at the first step
    ],
    ids=["text", "logits", "hidden", "attention", "relation", "scheduled"],
)
def test_a_term_without_weight_costs_nothing(losses, asked):
    student, teacher = tiny_gpt2(0, kind=Recording), tiny_gpt2(1, kind=Recording)
    _, terms = Distillation(student, teacher, losses)(BATCH)
    assert set(terms) == set(losses.at(0.0))
    kinds = ("attention_scores", "attention_heads")
    assert teacher.asked == (None if asked is None else dict(zip(kinds, asked, strict=True)))
    assert student.asked == dict(zip(kinds, asked or (False, False), strict=True))


def test_scores_are_given_up_when_they_have_been_compared():
    student, teacher = tiny_gpt2(0, kind=Recording), tiny_gpt2(1, layers=4)
    distillation = Distillation(student, teacher, only("attention"))
    known = distillation.ask(BATCH, ["attention"])
    assert list(known) == ["scores 0", "scores 1"]  # of the four
    distillation(BATCH, known=known)
    assert student.last.attention_scores is None


def test_schedules_move_the_weights_and_one_term_can_be_taken_alone():
    student, teacher = tiny_gpt2(0), tiny_gpt2(1)
    losses = Losses(hidden=Schedule(0.0, 2.0), attention=Schedule(1.0, 0.0, until=0.5))
    distillation = Distillation(student, teacher, losses)
    for progress, weights in ((0.0, (None, 1.0)), (0.25, (0.5, 0.5)), (1.0, (2.0, None))):
        loss, terms = distillation(BATCH, progress)
        moving = {"hidden": weights[0], "attention": weights[1]}
        own = {"embedding": 1.0, "cross_entropy": 1.0} | {name: weight for name, weight in moving.items() if weight}
        assert set(terms) == set(own)
        assert loss.item() == pytest.approx(sum(weight * terms[name] for name, weight in own.items()))
        part, one = distillation(BATCH, progress, only=("embedding",))
        assert one == {"embedding": terms["embedding"]}
        assert part.item() == terms["embedding"]


# The layer map --------------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("term", ["attention", "hidden", "value_relation"])
def test_a_given_layer_map_says_whom_to_follow(term):
    student, teacher = tiny_gpt2(0, layers=2), tiny_gpt2(1, layers=3, spread=10.0)
    values = {
        layers: Distillation(student, teacher, only(term), layers)(BATCH)[1][term]
        for layers in ((0, 1), (0, 2), (1, 2), (1, 1))
    }
    if term == "value_relation":  # of the last layer alone
        assert values[0, 2] == values[1, 2] != values[0, 1] == values[1, 1]
    else:
        assert len(set(values.values())) == 4
        assert values[0, 1] + values[1, 2] == pytest.approx(values[0, 2] + values[1, 1], rel=1e-5)


# Adapters and tasks ---------------------------------------------------------------------------------------------------


def test_a_learned_matrix_stands_between_states_of_different_width(device):
    student, teacher = tiny_gpt2(0), tiny_gpt2(1, n_embd=12, spread=10.0)
    distillation = Distillation(student, teacher, only("embedding", "hidden"), seed=3)
    adapters = distillation.adapters
    assert {name: p.shape for name, p in adapters.named_parameters()} == {
        "embedding.weight": (8, 12),
        "hidden.weight": (8, 12),
    }
    loss, terms = distillation(BATCH)
    loss.backward()
    with no_grad():
        ours, theirs = ([host(x).astype(np.float64) for x in model(IDS_BT).hidden] for model in (student, teacher))
    gradient = 0.0
    for name, layers in (("embedding", [0]), ("hidden", [1, 2])):
        weight, gradient, value = host(adapters.get(name).weight).astype(np.float64), 0.0, 0.0
        for layer in layers:
            difference = ours[layer] @ weight - theirs[layer]
            value += (difference**2).mean()
            gradient += 2.0 / difference.size * ours[layer].reshape(-1, 8).T @ difference.reshape(-1, 12)
        assert terms[name] == pytest.approx(value, rel=1e-5)
        assert_close(adapters.get(name).weight.grad, gradient.astype(np.float32), rtol=1e-4)


def test_adapters_are_made_only_where_they_are_needed():
    def names(student: Any, teacher: Any, losses: Losses) -> list[str]:
        return [name for name, _ in Distillation(student, teacher, losses).adapters.named_parameters()]

    wide = tiny_gpt2(1, n_embd=12)
    assert names(tiny_gpt2(0), tiny_gpt2(1), Losses()) == []
    assert names(tiny_gpt2(0), wide, only("attention", "logits", "value_relation")) == []
    assert names(tiny_gpt2(0), wide, only("hidden", "attention")) == ["hidden.weight"]
    relation = only("value_relation")
    assert Distillation(tiny_gpt2(0), wide, relation)(BATCH)[1]["value_relation"] > 0.0  # relations need none


def test_next_sentence_is_read_from_the_pooler(device):
    student = tiny_bert(0, None)  # an encoder has a pooler
    other_B = np.array([1, 0, 1])
    batch = replace(TYPED, other_B=other_B)
    distillation = Distillation(student, None, only("next_sentence"))
    loss, _ = distillation(batch)
    with no_grad():
        pooled_BD = host(student(batch.ids_BT, batch.mask_BT, batch.types_BT).pooled)
    head = distillation.adapters.next_sentence
    logits_BC = pooled_BD @ host(head.weight) + host(head.bias)
    log_p = logits_BC - np.log(np.exp(logits_BC).sum(-1, keepdims=True))
    assert_close(loss, -log_p[np.arange(3), other_B].mean(dtype=np.float32))
    loss.backward()
    assert head.weight.grad is not None
    with pytest.raises(TinykronError, match="the batch does not say which texts follow"):
        distillation(TYPED)
    with pytest.raises(TinykronError, match="the student has no pooler"):
        Distillation(tiny_bert(0, "masked_lm"), None, only("next_sentence"))


def test_a_task_brings_its_own_loss_and_its_batches():
    student, teacher = (tiny_bert(seed, "sequence") for seed in (0, 1))
    batch = collate(sst2_features()[:6])
    losses = Losses(logits=1.0, attention_form="scores")  # KroneckerBERT's
    distillation = Distillation(student, teacher, losses, label_loss=SST2.loss)
    loss, terms = distillation(batch)
    inputs = batch.ids_BT, batch.mask_BT, batch.types_BT
    assert terms["cross_entropy"] == SST2.loss(student(*inputs).logits, batch).item()
    assert loss.item() == pytest.approx(sum(terms.values()))
    spans = [tiny_bert(seed, "span") for seed in (0, 1)]
    _, found = Distillation(*spans, only("logits"))(batch)
    ours, theirs = (host(model(*inputs).logits) for model in spans)
    rows = [
        ref.kl_of_rows(ours[b, batch.mask_BT[b] > 0, side], theirs[b, batch.mask_BT[b] > 0, side])
        for b, side in np.ndindex(6, 2)
    ]
    assert found["logits"] == pytest.approx(ref.mean(rows), rel=1e-4)


# Errors ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("student", "teacher", "losses", "layers", "complaint"),
    [
        ({}, {"n_head": 4}, Losses(), (), r"attention KL: student \(3, 2, 8, 8\) and teacher \(3, 4, 8, 8\)"),
        ({}, {"n_head": 4}, only("value_relation"), (), r"relation: student \(3, 2, 8, 8\) and teacher \(3, 4, 8, 8\)"),
        (
            {},
            {"vocab_size": 17},
            only("logits"),
            (),
            r"the student has 13 tokens and its teacher 17; they read the same ids",
        ),
        ({}, {"layers": 4}, Losses(), [0, 1, 2], r"found \[0, 1, 2\], expected 2 teacher layers in 0..3"),
        ({}, {"layers": 4}, Losses(), [0, 4], r"found \[0, 4\], expected 2 teacher layers in 0..3"),
        ({}, {"layers": 4}, Losses(), [-1, 3], r"found \[-1, 3\]"),
        ({"layers": 3}, {}, Losses(), (), "3 student layers for 2 teacher layers"),
        ({}, None, Losses(), (), "compare with a teacher, and none is given"),
    ],
    ids=str,
)
def test_what_cannot_be_compared_is_refused(student, teacher, losses, layers, complaint):
    with pytest.raises(TinykronError, match=complaint):
        known = None if teacher is None else tiny_gpt2(1, **teacher)
        Distillation(tiny_gpt2(**student), known, losses, layers)(BATCH)


def test_an_encoder_without_a_head_has_no_logits():
    with pytest.raises(TinykronError, match="a model without a head has none"):
        Distillation(tiny_bert(0, None), tiny_bert(1, "masked_lm"), only("logits"))(TYPED)


def test_targets_are_checked():
    with pytest.raises(TinykronError, match=f"target {VOCABULARY}"):
        Distillation(tiny_gpt2(), losses=only("cross_entropy"))(Batch(IDS_BT, np.full_like(IDS_BT, VOCABULARY)))
    ignored = Batch(IDS_BT, np.full_like(IDS_BT, data.IGNORED))
    assert Distillation(tiny_gpt2(), losses=only("cross_entropy"))(ignored)[0].item() == 0.0
