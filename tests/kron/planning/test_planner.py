"""Plans that meet budgets: what they promise, what they say, and what they refuse."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.helpers import assert_close, host
from tests.tiny_training import BATCHES, tiny_gpt2, wide_gpt2
from tinykron import checkpoint, kron, nn
from tinykron.errors import DataError, TinykronError
from tinykron.kron.planning import planner
from tinykron.kron.planning.budget import Allocation, Options
from tinykron.kron.planning.candidates import Candidates
from tinykron.kron.planning.sensitivity import LEAST
from tinykron.models.bert import Bert, BertConfig
from tinykron.models.llama import Llama, LlamaConfig


@pytest.fixture(scope="module")
def planned() -> tuple[Any, kron.KronPlan]:
    model = wide_gpt2()
    return model, kron.plan(model, params=0.6, calibration=BATCHES)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_share_of_the_parameters_is_met_and_used(device: str, share: float) -> None:
    model = wide_gpt2().to(device)
    plan = kron.plan(model, params=share, calibration=BATCHES)
    small = kron.factorise(model, plan)
    limit = share * model.parameter_count()
    assert small.parameter_count() == plan.total(model.parameter_count()) <= limit
    assert small.parameter_count() > 0.95 * limit
    assert {parameter.device for parameter in small.parameters()} == {device}


@pytest.mark.parametrize("share", [0.3, 0.6])
def test_bounds_save_decompositions_and_change_no_plan(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """A matrix that is a sum of three terms is found to be one, though sums so small had only bounds at first."""
    model, generator = tiny_gpt2(n_embd=64, n_inner=256).eval(), np.random.default_rng(3)
    terms = [np.kron(*(generator.standard_normal((8, size)) for size in (8, 32))) for _ in range(3)]
    model.blocks[0].mlp.up.weight.data = (0.02 * sum(terms)).astype(np.float32)
    monkeypatch.setattr("tinykron.kron.planning.candidates.PROBED", 32)
    plans, said = [], []
    for reach in (0.0, 1.0):
        monkeypatch.setattr(planner, "REACH", reach)
        plans.append(kron.plan(model, params=share, say=said.append))
    exact, bounded = [{name: (c.shape, c.terms, c.loss) for name, c in plan.items()} for plan in plans]
    assert bounded == exact and exact["blocks.0.mlp.up"][:2] == ((8, 8), 3)
    assert said and all(line.startswith("looking closer at ") for line in said)


@pytest.mark.parametrize("budget", [{"params": 1900}, {"params": 1900, "flops": 0.09}])
def test_what_only_the_smallest_sums_meet_is_met(budget: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    """Low rank takes a row and a column at least; other sums, which had only bounds at first, take less."""
    model = tiny_gpt2(n_embd=16, n_inner=256).eval()
    monkeypatch.setattr("tinykron.kron.planning.candidates.PROBED", 8)
    monkeypatch.setattr("tinykron.kron.planning.candidates.LEADING", 4)
    monkeypatch.setattr("tinykron.kron.planning.candidates.SLACK", 3.0)
    plans = []
    for reach in (0.0, 100.0):
        monkeypatch.setattr(planner, "REACH", reach)
        plans.append(kron.plan(model, **budget))
        assert plans[-1].total(model.parameter_count()) <= 1900
        with pytest.raises(TinykronError, match="cannot be met"):
            kron.plan(model, **(budget | {"params": 1700}))
    assert plans[0] == {
        name: replace(choice, microseconds=plans[0][name].microseconds) for name, choice in plans[1].items()
    }
    low_rank = sum(min(sum(choice.dense), choice.parameters_before) for choice in plans[0].values())
    assert plans[0].parameters < low_rank


def test_a_bound_that_ends_at_1_is_followed_by_the_loss() -> None:
    """A closer bound would end there, too, and be looked at for ever."""
    found = Candidates(
        dense=(16, 16),
        shapes=np.array([[4, 4], [2, 8], [16, 16]]),
        terms=np.array([1, 2, 1]),
        parameters=np.array([32, 64, 256]),
        flops=np.array([256.0, 512.0, 512.0]),
        loss=np.array([1.0, 0.5, 0.0]),
        estimated=np.array([True, True, False]),
        optimistic=np.array([True, True, False]),
        low_rank=np.ones(1),
        reach=1.0,
        ratio=4.0,
    )
    options = Options(found.loss, found.parameters[None].astype(float))
    outcome = Allocation([2], 0.0, 0.0, exact=True, prices=np.array([0.01]))
    needed = planner._hopeful({"w": found}, {"w": 1.0}, [options], outcome)["w"]
    assert needed[4, 4][1] == np.inf  # 2.56 - 0.32 would matter, and no loss is above 1
    assert needed[2, 8][2] == pytest.approx((2.56 - 0.64) / 4.0)  # before the estimate is corrected


def test_a_model_in_training_stays_in_training() -> None:
    model = tiny_gpt2(resid_pdrop=0.5, embd_pdrop=0.5).train()
    kron.plan(model, params=0.6, calibration=BATCHES)
    assert all(module.training for _, module in model.modules())


def test_a_bad_budget_is_refused_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planner, "candidates", None)
    monkeypatch.setattr(planner, "calibrate", None)
    with pytest.raises(TinykronError, match="plan: params: found -1"):
        kron.plan(wide_gpt2(), params=-1, calibration=BATCHES)


def test_a_number_of_parameters(planned: tuple[Any, kron.KronPlan]) -> None:
    model, plan = planned
    same = kron.plan(model, params=0.6 * model.parameter_count(), calibration=BATCHES)
    assert {name: choice.shape for name, choice in same.items()} == {
        name: choice.shape for name, choice in plan.items()
    }


@pytest.mark.parametrize("value_bytes", [2, 4])
def test_bytes_of_the_file(value_bytes: int, tmp_path: Any) -> None:
    model = wide_gpt2()
    limit = 0.7 * model.parameter_count() * value_bytes + 6000
    small = kron.factorise(model, kron.plan(model, bytes=limit, calibration=BATCHES, value_bytes=value_bytes))
    checkpoint.save(small, tmp_path / "small", dtype="bfloat16" if value_bytes == 2 else "float32")
    assert 0.6 * limit < (tmp_path / "small" / "model.safetensors").stat().st_size <= limit


def test_flops_and_parameters_together() -> None:
    model = wide_gpt2()
    plan = kron.plan(model, params=0.7, flops=0.4, calibration=BATCHES)
    dense = sum(2 * choice.parameters_before for choice in plan.values())
    assert plan.total(model.parameter_count()) <= 0.7 * model.parameter_count()
    assert sum(choice.flops for choice in plan.values()) <= 0.4 * dense
    loose = kron.plan(model, params=0.7, calibration=BATCHES)
    assert sum(choice.flops for choice in loose.values()) > 0.4 * dense


def test_a_looser_budget_loses_less() -> None:
    model = wide_gpt2()

    def loss(share: float) -> float:
        plan = kron.plan(model, params=share)
        return sum((choice.loss or 0.0) for choice in plan.values())

    losses = [loss(share) for share in (0.3, 0.5, 0.8, 1.0)]
    assert losses == sorted(losses, reverse=True) and losses[-1] == 0.0


def test_the_whole_model_stays_dense_where_it_may(planned: tuple[Any, kron.KronPlan]) -> None:
    plan = kron.plan(planned[0], params=1.0, calibration=BATCHES)
    assert all(choice.is_dense for choice in plan.values()) and "leave dense" in plan["embedding"].reason
    assert kron.factorise(planned[0], plan).parameter_count() == planned[0].parameter_count()


def test_what_a_plan_says_is_so(planned: tuple[Any, kron.KronPlan]) -> None:
    model, plan = planned
    seen = kron.calibrate(model, BATCHES)
    kinds = set()
    for name, choice in plan.items():
        module = model.get(name)
        w = host(module.weight.data).astype(np.float64)
        w = w.T if isinstance(module, nn.Linear) else w
        c = host(seen.covariance(name))
        g = host(seen.frequencies(name)) if isinstance(module, nn.Embedding) else np.ones(len(w))
        kinds.add(choice.kind)
        if choice.is_dense:
            assert choice.loss == 0.0 and choice.low_rank is None and "leave dense" in choice.reason
            continue
        error = w - host(plan.fits[name].dense())
        whole = np.einsum("i,ij,jk,ik", g, w, c, w)
        assert choice.loss == pytest.approx(np.einsum("i,ij,jk,ik", g, error, c, error) / whole, rel=1e-2, abs=1e-5)
        assert choice.low_rank is not None and choice.loss <= choice.low_rank + 1e-5  # by construction
        rank = kron.low_rank(w, max(1, choice.parameters // sum(choice.dense)), c)
        error = w - rank.dense()
        if isinstance(module, nn.Linear) and choice.parameters >= sum(choice.dense):
            assert choice.low_rank == pytest.approx(np.trace(error @ c @ error.T) / whole, rel=1e-2, abs=1e-5)
        assert ("low rank is better" in choice.reason) == (choice.kind == "low rank")
        assert choice.bounds is not None and choice.bounds[0] <= choice.loss * (1 + 1e-6) + 1e-9
        assert choice.sensitivity is not None and choice.sensitivity > 0.0
        assert choice.microseconds.keys() == {"1", "16", "256"}
        assert all(time > 0.0 for pair in choice.microseconds.values() for time in pair)
    assert len(kinds) > 1
    assert "become" in plan.notes[0] and "duality gap" in plan.notes[1]
    assert all(line in str(plan) for line in plan.notes)


def test_a_plan_can_be_saved_edited_and_carried_out(planned: tuple[Any, kron.KronPlan]) -> None:
    model, plan = planned
    again = kron.KronPlan.from_json(plan.to_json())
    assert again == plan and not again.fits
    seen = kron.calibrate(model, BATCHES)
    small, same = kron.factorise(model, plan), kron.factorise(model, again, seen)
    assert_close(same(BATCHES[0]).logits, host(small(BATCHES[0]).logits), rtol=1e-2, atol=1e-2)
    entries = json.loads(plan.to_json())
    name = next(name for name, choice in plan.items() if not choice.is_dense)
    entries[name] |= {"shape": entries[name]["dense"], "terms": 1}
    edited = kron.KronPlan.from_json(json.dumps(entries))
    assert isinstance(kron.factorise(model, edited).get(name), nn.Linear | nn.Embedding)
    plan_with_fits = kron.KronPlan(edited)
    plan_with_fits.fits = plan.fits  # a fit of another shape is not used
    assert isinstance(kron.factorise(model, plan_with_fits).get(name), nn.Linear | nn.Embedding)


def test_a_plan_can_be_carried_out_twice(planned: tuple[Any, kron.KronPlan]) -> None:
    """What is done to the first model does not reach the second: the fits of a plan are its own."""
    model, plan = planned
    first = kron.factorise(model, plan)
    before = host(first(BATCHES[0]).logits)
    for parameter in first.parameters():
        parameter.data[...] = 0.0
    assert_close(kron.factorise(model, plan)(BATCHES[0]).logits, before)


def test_sensitivity_counts_what_reaches_the_predictions() -> None:
    """A matrix whose outputs are multiplied by nothing is the first to be given up."""
    model = wide_gpt2()
    model.blocks[1].attention.output.weight.data[:] = 0.0  # so that query, key and value of that block do nothing
    plan = kron.plan(model, params=0.8, calibration=BATCHES)
    idle = [plan[f"blocks.1.attention.{part}"] for part in ("query", "key", "value")]
    others = [plan[f"blocks.0.attention.{part}"] for part in ("query", "key", "value")]
    assert all(choice.sensitivity == LEAST for choice in idle)
    assert all((choice.sensitivity or 0.0) > 100 * LEAST for choice in others)
    assert sum(choice.parameters for choice in idle) < 0.5 * sum(choice.parameters for choice in others)


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_the_other_families(family: str) -> None:
    generator = np.random.default_rng(0)
    if family == "llama":
        model: Any = Llama(LlamaConfig(13, 16, 24, 2, 4, 2, tie_word_embeddings=False), generator).eval()
    else:
        model = Bert(BertConfig(13, 16, 2, 2, 24, 10, head=None), generator).eval()
    plan = kron.plan(model, params=0.6, calibration=BATCHES)
    assert kron.factorise(model, plan).parameter_count() <= 0.6 * model.parameter_count()
    assert ("head" in plan) == (family == "llama") and "positions" not in plan


def test_a_table_that_is_only_looked_up_costs_no_flops() -> None:
    model = Llama(LlamaConfig(13, 16, 24, 2, 4, 2, tie_word_embeddings=False), np.random.default_rng(0)).eval()
    plan = kron.plan(model, flops=0.5)
    assert plan["embedding"].is_dense and plan["embedding"].lookup and not plan["embedding"].microseconds
    assert plan.flops == sum(choice.flops for name, choice in plan.items() if name != "embedding")
    assert plan.flops_before == sum(2 * c.parameters_before for name, c in plan.items() if name != "embedding")
    assert 0.4 * plan.flops_before < plan.flops <= 0.5 * plan.flops_before
    again = kron.KronPlan.from_json(plan.to_json())
    assert (again.flops, again.flops_before) == (plan.flops, plan.flops_before)


def test_budgets_that_cannot_be_met_say_what_can() -> None:
    model = wide_gpt2()
    with pytest.raises(
        TinykronError, match=r"plan: params: .* cannot be met; .* are in no matrix .* of the model"
    ) as error:
        kron.plan(model, params=0.01)
    least = float(str(error.value).rsplit("which is ", 1)[1].split()[0])
    assert kron.plan(model, params=least + 0.001)
    with pytest.raises(TinykronError, match="plan: params"):
        kron.plan(model, params=least - 0.002)
    with pytest.raises(TinykronError, match=r"plan: flops: .* cannot be met; the matrices need at least"):
        kron.plan(model, flops=0.001)
    with pytest.raises(TinykronError, match="plan: bytes: .* cannot be met"):
        kron.plan(model, bytes=100)


def test_bad_input_is_named() -> None:
    model = wide_gpt2()
    with pytest.raises(TinykronError, match="expected a budget: params, bytes or flops"):
        kron.plan(model)
    with pytest.raises(TinykronError, match="plan: params: found -0.5, expected a share up to 1"):
        kron.plan(model, params=-0.5)
    with pytest.raises(TinykronError, match=r"no dense matrix blocks\.9\.mlp\.up"):
        kron.plan(model, params=0.5, names=["blocks.9.mlp.up", "embedding"])
    with pytest.raises(DataError, match="calibration: found no tokens"):
        kron.plan(model, params=0.5, calibration=[])
    model.blocks[1].mlp.up.weight.data[0, 0] = np.nan
    with pytest.raises(TinykronError, match=r"blocks\.1\.mlp\.up: nearest: 1 of the 768 values of w are NaN"):
        kron.plan(model, params=0.5)
