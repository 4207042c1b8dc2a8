"""What the points of an elastic model cost, which of them are worth having, and the best within a budget."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tinykron as tk
from tests.data.test_masking import PROSE
from tests.helpers import host
from tests.nested_models import nested
from tests.tiny_tasks import TOKENIZER
from tinykron import data, kron
from tinykron.data.masking import Masking
from tinykron.errors import CheckpointError, TinykronError
from tinykron.exits import pareto
from tinykron.exits.grid import Point, points
from tinykron.exits.pareto import Front, Measured, elastic_front
from tinykron.fused import cross_entropy
from tinykron.measure.costs import flops_per_token

SOME = Front(
    tuple(
        Measured(exit, terms, 1.0, loss, cost // 4, cost, flops)
        for exit, terms, loss, cost, flops in (
            (1, 1, 5.0, 40, 30),
            (1, 2, 4.0, 60, 50),
            (2, 1, 4.5, 70, 40),
            (2, 2, 4.2, 100, 100),
        )
    ),
    10,
    4,
)


@st.composite
def fronts(draw: st.DrawFn) -> Front:
    size = st.integers(1, 6)
    rows = draw(st.lists(st.tuples(size, size, size), min_size=1, max_size=9))
    measured = [
        Measured(1, place + 1, 1.0, float(loss), 1, cost, flops) for place, (loss, cost, flops) in enumerate(rows)
    ]
    return Front(tuple(measured), 1, 1)


@given(found=fronts(), cost=st.sampled_from(sorted(pareto.COSTS)))
def test_the_front_holds_what_no_point_beats(found, cost):
    kept = found.pareto(cost)
    for one in kept:
        beaten = [
            other
            for other in found.points
            if getattr(other, cost) <= getattr(one, cost)
            and other.loss <= one.loss
            and (getattr(other, cost), other.loss) != (getattr(one, cost), one.loss)
        ]
        assert not beaten
    for one in found.points:  # and nothing is missing
        assert any(getattr(other, cost) <= getattr(one, cost) and other.loss <= one.loss for other in kept)


@given(found=fronts(), cost=st.sampled_from(sorted(pareto.COSTS)), percent=st.integers(1, 100))
def test_the_best_point_is_the_best_that_fits(found, cost, percent):
    budget = percent / 100
    fits = [one for one in found.points if getattr(one, cost) <= budget * getattr(found.full, cost)]
    if fits:
        best = found.best(budget, cost)
        assert best in fits and best.loss == min(one.loss for one in fits)
    else:
        with pytest.raises(TinykronError, match="the smallest point"):
            found.best(budget, cost)


def test_budgets():
    assert SOME.full.point == Point(2, 2)
    assert SOME.best(1.0).point == Point(1, 2)  # better than the full model
    assert SOME.best(0.4).point == Point(2, 1)
    assert SOME.best(0.4, "bytes").point == Point(1, 1)
    with pytest.raises(
        TinykronError, match=r"found 0.2 of the full model's flops; .* exit 1, terms 1, takes 30 of 100"
    ):
        SOME.best(0.2)
    for wrong in (0.0, -1, 1.5, True, float("nan")):
        with pytest.raises(TinykronError, match="budget: expected a share"):
            SOME.best(wrong)
    with pytest.raises(TinykronError, match="expected one of bytes, flops"):
        SOME.best(0.5, "seconds")


def test_a_file_keeps_all(tmp_path: Path):
    pareto.write(SOME, tmp_path)
    assert pareto.read(tmp_path) == SOME
    assert [path.name for path in tmp_path.iterdir()] == [pareto.FILE]
    rows = json.loads((tmp_path / pareto.FILE).read_text())["points"]
    assert [row["pareto"] for row in rows] == [["bytes", "flops"], ["bytes", "flops"], ["flops"], []]


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"points": [], "tokens": 1, "context": 1}', '{"points": [{"exit": 1}], "tokens": 1}', "\xff"],
)
def test_a_damaged_file_is_named(tmp_path: Path, text: str):
    (tmp_path / pareto.FILE).write_text(text, encoding="latin-1")
    with pytest.raises(CheckpointError, match=f"{pareto.FILE}: expected the measured grid"):
        pareto.read(tmp_path)
    with pytest.raises(CheckpointError, match="found nothing; `tinykron grid"):
        pareto.read(tmp_path / "none")


# Measuring ------------------------------------------------------------------------------------------------------------

DOCUMENTS = [replace(document, text=document.text[:400]) for document in PROSE[:3]]


@pytest.mark.parametrize("family", ["gpt2", "llama", "bert"])
def test_points_cost_what_they_cost_cut_out(tmp_path: Path, family: str):
    model = nested(family, layers=2) if family == "bert" else nested(family, layers=2, vocabulary=160)
    model.tokenizer = TOKENIZER
    grid = points(model, [1], [1, 3], [0.5])
    found = elastic_front(model, DOCUMENTS, grid, value_bytes=2, limit=60)
    assert len(found.points) == 12
    tokens = data.encode(TOKENIZER, DOCUMENTS)[:60]
    for one in found.points:
        own = kron.cut(model, *one.point)
        tk.save(own, tmp_path / f"{one.point}", dtype="bfloat16")
        size = (tmp_path / f"{one.point}" / "model.safetensors").stat().st_size
        assert 0 < size - one.bytes < 12_000 and one.parameters == own.parameter_count()  # the header
        assert one.flops == flops_per_token(own, own.context // 2)
        if family == "bert":
            inputs, targets = Masking.of(TOKENIZER).windows(tokens, own.context)
            with tk.no_grad():
                assert one.loss == pytest.approx(cross_entropy(own(inputs).logits, targets, -100).item(), rel=1e-5)
        else:
            assert one.loss == pytest.approx(_loss(own, tokens, found.context), rel=1e-5)
    assert (found.tokens, found.context) == (60, model.context)
    dense = pareto.alone(kron.merge(model), DOCUMENTS, 2, limit=60)
    assert dense.point == Point(2, 0) and dense.loss == pytest.approx(found.full.loss, rel=1e-4)


def _loss(model, tokens: np.ndarray, context: int) -> float:
    losses = []
    for start in range(0, len(tokens) - 1, context):
        ids, targets = tokens[start : start + context], tokens[start + 1 : start + 1 + context]
        logits = host(model(ids[None, : len(targets)]).logits)[0].astype(np.float64)
        logits -= logits.max(axis=-1, keepdims=True)
        losses += (np.log(np.exp(logits).sum(axis=-1)) - logits[np.arange(len(targets)), targets]).tolist()
    return float(np.mean(losses))


def test_a_model_that_predicts_nothing_is_refused():
    model = nested("gpt2")
    with pytest.raises(TinykronError, match="found a GPT2, expected a tokenizer and a head"):
        elastic_front(model, DOCUMENTS, points(model, [1], [1]))


def test_tables_and_plot(tmp_path: Path):
    table = pareto.markdown(SOME).splitlines()
    assert len(table) == 6 and all(line.count("|") == len(pareto.HEADINGS) + 1 for line in table)
    assert "0.40" in table[2] and table[5].endswith("|  |")
    assert "grid" in pareto.render(SOME, "the grid")
    pareto.plot(SOME, tmp_path / "plot.png", Measured(2, 0, 1.0, 3.9, 50, 200, 200))
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
