"""Plans, and turning a whole model into Kronecker factors and back."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import tinykron as tk
from tests.helpers import assert_close, host
from tinykron import kron, nn
from tinykron.errors import CheckpointError, ShapeError, TinykronError
from tinykron.kron.restructure import dense_shapes

WIDTH, VOCABULARY = 8, 11
IDS = np.array([[1, 5, 5], [0, 10, 2]])


class Attention(nn.Module):
    """The four matrices of an attention, one after the other: enough for a plan."""

    def __init__(self, generator: np.random.Generator) -> None:
        self.query, self.key, self.value, self.output = (nn.Linear(WIDTH, WIDTH, True, generator) for _ in range(4))

    def forward(self, x: tk.Tensor) -> tk.Tensor:
        return self.output((self.query(x) * self.key(x)).tanh() + self.value(x))


class MLP(nn.Module):
    def __init__(self, generator: np.random.Generator) -> None:
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH, True, generator), nn.Linear(4 * WIDTH, WIDTH, True, generator)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: tk.Tensor) -> tk.Tensor:
        return self.down(self.dropout(self.up(x).tanh()))


class Block(nn.Module):
    def __init__(self, generator: np.random.Generator) -> None:
        self.attention, self.mlp, self.norm = Attention(generator), MLP(generator), nn.LayerNorm(WIDTH)

    def forward(self, x: tk.Tensor) -> tk.Tensor:
        x = x + self.attention(self.norm(x))
        return x + self.mlp(x)


class Model(nn.Module):
    """Shaped like GPT-2: a token embedding that is also the head, blocks, and a name or two beside them."""

    def __init__(self, blocks: int = 4, tied: bool = True) -> None:
        generator = np.random.default_rng(0)
        self.embedding = nn.Embedding(VOCABULARY, WIDTH, generator)
        self.positions = nn.Embedding(3, WIDTH, generator)
        self.blocks = [Block(generator) for _ in range(blocks)]
        self.head = None if tied else nn.Embedding(VOCABULARY, WIDTH, generator)
        for name, parameter in self.named_parameters():
            if "weight" in name and "norm" not in name:
                parameter.data *= 20.0  # as large as a trained model's: a wrong matrix must show
        self.eval()

    def forward(self, ids: np.ndarray) -> tk.Tensor:
        x = self.embedding(ids) + self.positions(np.arange(ids.shape[1]))
        for block in self.blocks:
            x = block(x)
        return (self.head or self.embedding).project(x)


def matrices(model: nn.Module) -> dict[str, Any]:
    return {name: host(array).copy() for name, array in model.state_dict().items()}


# Factorise and merge --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
def test_merging_gives_the_logits_of_the_factors(device: str, tied: bool) -> None:
    model = Model(tied=tied)
    small = kron.factorise(model, kron.kngpt2_plan(model))
    dense = kron.merge(small)
    logits = host(small(IDS).data)
    assert np.abs(logits - host(model(IDS).data)).max() > 0.01
    assert_close(dense(IDS), logits, rtol=1e-4, atol=1e-5)
    assert dense_shapes(dense) == dense_shapes(model) and kron.plan_of(dense) is None
    assert kron.plan_of(small) is not None  # merging left it alone
    assert dense.parameter_count() == model.parameter_count()


def test_enough_terms_give_the_teachers_logits(device: str) -> None:
    model = Model()
    plan = kron.kngpt2_plan(model)
    for name, choice in plan.items():
        plan[name] = replace(choice, terms=2)
    small = kron.factorise(model, plan)
    assert_close(small(IDS), host(model(IDS).data), rtol=1e-4, atol=1e-5)


def test_the_teacher_is_untouched_and_shares_nothing(device: str) -> None:
    model = Model()
    model(IDS).sum().backward()
    before, grads = matrices(model), [host(parameter.grad).copy() for parameter in model.parameters()]
    small = kron.factorise(model, kron.kngpt2_plan(model))
    assert all(parameter.grad is None for parameter in small.parameters())
    for parameter in small.parameters():
        parameter.data += 1.0
    for copied in (small, kron.merge(small)):
        copied(IDS).sum().backward()
        assert not {id(module) for _, module in model.modules()} & {id(module) for _, module in copied.modules()}
    for name, value in matrices(model).items():
        assert_close(value, before[name], rtol=0.0, atol=0.0)
    for parameter, grad in zip(model.parameters(), grads, strict=True):
        assert_close(parameter.grad, grad, rtol=0.0, atol=0.0)


def test_merging_leaves_the_factors_alone() -> None:
    small = kron.factorise(Model(), kron.kngpt2_plan(Model()))
    before = matrices(small)
    for parameter in kron.merge(small).parameters():
        parameter.data += 1.0
    for name, value in matrices(small).items():
        assert_close(value, before[name], rtol=0.0, atol=0.0)


def test_ties_are_kept() -> None:
    model = Model()
    model.blocks[3].mlp = model.blocks[1].mlp  # a module in two places
    model.blocks[2].norm.weight = model.blocks[0].norm.weight  # a parameter in two places
    plan = kron.kngpt2_plan(model)
    del plan["blocks.3.mlp.up"], plan["blocks.3.mlp.down"]  # the same modules as blocks.1's
    small = kron.factorise(model, plan)
    for copied in (small, kron.merge(small), kron.factorise(model, {})):
        assert copied.blocks[3].mlp is copied.blocks[1].mlp
        assert copied.blocks[2].norm.weight is copied.blocks[0].norm.weight
    assert isinstance(small.blocks[3].mlp.up, kron.KronLinear)
    found = kron.plan_of(small)
    assert found is not None and list(found) == list(plan)
    restructured = kron.restructure(model, plan)
    assert restructured.blocks[3].mlp.up is restructured.blocks[1].mlp.up
    assert isinstance(restructured.blocks[1].mlp.up, kron.KronLinear)


def test_a_parameter_tied_without_its_module_is_refused() -> None:
    model = Model(tied=False)
    model.head.weight = model.embedding.weight
    with pytest.raises(TinykronError, match="  head: shares its parameter with a matrix of the plan"):
        kron.factorise(model, kron.kngpt2_plan(model))


def test_a_plan_that_does_not_fit_lists_all_faults() -> None:
    plan = kron.KronPlan(
        {
            "blocks.7.mlp.up": kron.Choice((4, 4), (2, 4)),
            "blocks.0.norm": kron.Choice((8, 8), (4, 8)),
            "blocks.0.mlp.up": kron.Choice((8, 32), (4, 32)),
        }
    )
    message = (
        "the plan does not fit the Model\n"
        "  blocks.7.mlp.up: no such module\n"
        "  blocks.0.norm: a LayerNorm, neither Linear nor Embedding\n"
        r"  blocks.0.mlp.up: found \(32, 8\), the plan is for \(8, 32\)$"
    )
    for use in (kron.factorise, kron.restructure):
        with pytest.raises(TinykronError, match=message):
            use(Model(), plan)


@pytest.mark.parametrize("training", [True, False])
def test_training_or_not_stays_as_it_was(training: bool) -> None:
    model = Model().train(training)
    plan = kron.kngpt2_plan(model)
    small = kron.factorise(model, plan)
    for made in (small, kron.merge(small), kron.restructure(model, plan)):
        assert {module.training for _, module in made.modules()} == {training}


# Saving by name -------------------------------------------------------------------------------------------------------


def test_restructured_and_loaded_by_name_gives_the_same_logits(device: str) -> None:
    small = kron.factorise(Model(), kron.kngpt2_plan(Model()))
    plan = kron.plan_of(small)
    assert plan is not None
    state = small.state_dict()
    assert {"embedding.a_RMN", "embedding.b_RPQ", "blocks.1.mlp.up.a_RMN", "blocks.1.mlp.up.bias"} <= state.keys()
    fresh = kron.restructure(Model(), kron.KronPlan.from_json(plan.to_json()))
    fresh.load_state_dict(state)
    assert_close(fresh(IDS), host(small(IDS).data), rtol=0.0, atol=0.0)
    assert kron.plan_of(fresh) == plan


def test_plan_of_a_factorised_model_is_its_plan_with_the_energy_kept() -> None:
    model = Model()
    plan = kron.kngpt2_plan(model)
    found = kron.plan_of(kron.factorise(model, plan))
    assert found is not None
    assert {name: replace(choice, energy=None) for name, choice in found.items()} == plan
    for name, choice in found.items():
        weight = host(model.get(name).weight.data)
        w = weight if name == "embedding" else weight.T
        assert choice.energy == kron.nearest(w, choice.shape, choice.terms).energy
    assert kron.plan_of(model) is None


def test_a_plan_survives_json() -> None:
    plan = kron.kngpt2_plan(Model())
    plan["embedding"] = replace(plan["embedding"], terms=2, energy=0.75)
    again = kron.KronPlan.from_json(plan.to_json())
    assert again == plan and list(again) == list(plan) and isinstance(again, kron.KronPlan)
    assert again["embedding"] == kron.Choice((VOCABULARY, WIDTH), (VOCABULARY, WIDTH // 2), 2, 0.75)


GOOD = {"dense": [6, 4], "shape": [3, 4], "terms": 1, "energy": None}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "a Kronecker plan is JSON text"),
        ("[]", "maps names to choices, found a list"),
        ('{"up": 3}', "up: expected dense, shape, terms, and if known energy, .*; found 3"),
        (
            json.dumps({"up": {"dense": [6, 4]}}),
            "up: expected dense, shape, terms, and if known energy, .*; found dense",
        ),
        (json.dumps({"up": GOOD | {"shape": [3]}}), "dense and shape are pairs of whole numbers"),
        (json.dumps({"up": GOOD | {"shape": 3}}), "dense and shape are pairs of whole numbers"),
        (json.dumps({"up": GOOD | {"dense": [6], "shape": [4, 3, 4]}}), "dense and shape are pairs of whole numbers"),
        (json.dumps({"up": GOOD | {"terms": True}}), "dense and shape are pairs of whole numbers"),
        (json.dumps({"up": GOOD | {"energy": "much"}}), "energy is a number or null, found 'much'"),
        (json.dumps({"up": GOOD | {"shape": [4, 4]}}), r"up: A of shape \(4, 4\) does not divide"),
        (json.dumps({"up": GOOD | {"terms": 3}}), "up: A .* takes 1 to 2 terms"),
    ],
)
def test_a_malformed_plan_is_named(text: str, message: str) -> None:
    assert kron.KronPlan.from_json(json.dumps({"up": GOOD}))
    with pytest.raises(CheckpointError, match=message):
        kron.KronPlan.from_json(text)


def test_a_plan_is_a_table() -> None:
    model = Model()
    planned = str(kron.kngpt2_plan(model)).splitlines()
    heads = ["matrix", "dense", "A", "B", "terms", "parameters", "after", "bytes", "MFLOPs"]
    assert planned[0].split() == [*heads, "Gaussian"]
    assert planned[1].split()[:9] == ["embedding", "11x8", "11x4", "1x2", "1", "88", "46", "184", "0.000"]
    assert planned[-1].split() == ["together", "1,624", "838", "3,352", "0.00"]
    plan = kron.plan_of(kron.factorise(model, kron.kngpt2_plan(model)))
    assert plan is not None
    gaussian = kron.gaussian_energy((11, 8), (11, 4))
    energy = plan["embedding"].energy
    assert str(plan).splitlines()[1].split()[9:] == [f"{energy:.3f}", f"{gaussian:.3f}"]
    known = replace(plan["embedding"], loss=0.25, low_rank=0.5, microseconds={"1": [3, 9], "16": [4, 10]}, reason="so")
    told = str(kron.KronPlan(embedding=known, head=kron.Choice((11, 8), (11, 8), reason="leave dense"))).splitlines()
    heads = ["energy", "Gaussian", "loss", "low", "rank", "us", "at", "1/16/256", "(dense)", "why"]
    assert told[0].split()[-10:] == heads
    assert told[1].split()[11:] == ["0.250", "0.500", "3/4", "(9/10)", "so"]
    assert told[2].split() == ["head", "11x8", "88", "88", "352", "0.000", "leave", "dense"]


def test_a_choice_checks_itself() -> None:
    assert kron.Choice((6, 4), (3, 2), 2).parameters == 2 * (3 * 2 + 2 * 2)
    with pytest.raises(ShapeError, match="does not divide"):
        kron.Choice((6, 4), (4, 2))
    with pytest.raises(ShapeError, match="takes 1 to 4 terms"):
        kron.Choice((6, 4), (3, 2), 5)
