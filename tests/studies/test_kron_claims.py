"""The relations of KnGPT2 and KroneckerBERT at the smallest scale: each gives the values that its rule asks for."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.studies.test_kron_students import MICRO, small_study
from tinykron import data, kron
from tinykron.commands import cli
from tinykron.data import corpus
from tinykron.studies import identities
from tinykron.studies import kngpt2 as kn
from tinykron.studies import kroneckerbert as kb
from tinykron.studies import papers as rk
from tinykron.studies.claims import Answer, Relation, Row
from tinykron.studies.kron_students import Study
from tinykron.studies.krony_pt import every_block, every_second

ALL = {name: list(paper.relations) for name, paper in rk.PAPERS.items()}
COMMON = {one.id for one in [*identities.IDENTITIES, *identities.TIMES]}


def study_of(name: str, tmp_path_factory: pytest.TempPathFactory) -> Study:
    with pytest.MonkeyPatch.context() as patch:
        return small_study(rk.PAPERS[name].quick, tmp_path_factory.mktemp(name), patch)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return study_of("kngpt2", tmp_path_factory)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return study_of("kroneckerbert", tmp_path_factory)


def well_formed(relation: Relation, study: Study | None) -> dict[str, float]:
    values = relation.run(study, 0)
    assert relation.rule(values) in (-1, 0, 1) and all(isinstance(value, float) for value in values.values())
    json.dumps(values)
    return values


@pytest.mark.parametrize("relation", [one for one in ALL["kngpt2"] if one.id not in COMMON], ids=lambda one: one.id)
def test_a_relation_of_kngpt2(gpt2: Study, relation: Relation, monkeypatch: pytest.MonkeyPatch) -> None:
    if relation.id == "R10":  # two fine-tunings are enough
        monkeypatch.setattr(kn, "ABLATION", {name: kn.ABLATION[name] for name in ("text alone", "hidden")})
    well_formed(relation, gpt2)


@pytest.mark.parametrize(
    "relation", [one for one in ALL["kroneckerbert"] if one.id not in COMMON], ids=lambda one: one.id
)
def test_a_relation_of_kroneckerbert(bert: Study, relation: Relation) -> None:
    well_formed(relation, bert)


def test_every_relation_of_the_list_is_there() -> None:
    wanted = {f"K{n}" for n in range(1, 8)} | {f"R{n}" for n in range(1, 14)} | {"B1", "B2", "B3"}
    assert wanted <= {one.id for found in ALL.values() for one in found}
    for found in ALL.values():
        assert len({one.id for one in found}) == len(found) and {"R5", "R6", "R7"} <= {one.id for one in found}
    assert all(one.note == one.note.strip() and one.claim and one.published and one.measured for one in ALL["kngpt2"])


# Identities -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("relation", identities.IDENTITIES, ids=lambda one: one.id)
def test_identities_hold(relation: Relation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identities, "RESTARTS", 10)
    rows = tuple(Row(relation.id, seed, relation.run(None, seed), 0.0) for seed in range(3))
    assert Answer(relation, rows).verdict == "holds"


def test_an_identity_that_is_broken_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    right = kron.apply
    monkeypatch.setattr(
        kron, "apply", lambda a, b, x, order="auto": right(a, b, x) * (1.001 if order == "a_first" else 1)
    )
    relation = identities.IDENTITIES[0]
    assert relation.rule(relation.run(None, 0)) == -1


def test_counts_are_the_papers(gpt2: Study, bert: Study) -> None:
    assert kn.k7(gpt2, 0)["KnGPT2"] == pytest.approx(83.91, abs=0.005)
    found = kb.k7(bert, 0)
    assert (found["millions"], found["GFLOPs"]) == pytest.approx((5.23, 1.40), abs=0.005)


def test_time_is_asked_of_every_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identities, "REPEATS", 1)
    [relation] = identities.TIMES
    values, rule = well_formed(relation, None), relation.rule
    assert all(values[f"FLOPs, {name}"] < 1.0 for name in identities.TIMED)
    fast = {name: 0.5 for name in values}
    assert (rule(fast), rule(fast | {"time, KnGPT2 128": 1.2}), rule(fast | {"time, KnGPT2 128": 1.0})) == (1, -1, 0)


# What is compared -----------------------------------------------------------------------------------------------------


def test_what_is_compared_is_of_equal_size(gpt2: Study) -> None:
    whole, plan = gpt2.teacher.parameter_count(), kn.plan_of(gpt2)
    size = plan.total(whole)
    assert kn.KNGPT2.make(gpt2, 0).parameter_count() == size
    assert kn.truncated(gpt2, size).parameter_count() == pytest.approx(size, rel=0.08)
    assert [plan(gpt2).total(whole) for plan in (every_second, every_block)] == pytest.approx([size] * 2, rel=0.002)
    for other in (kn.S2, kn.S4):
        assert other.make(gpt2, 0).parameter_count() == pytest.approx(size, rel=0.002)
    sizes = kn.r6(gpt2, 0)
    assert 0.98 * sizes["parameters, Kronecker"] <= sizes["parameters, SVD"] <= sizes["parameters, Kronecker"]


def test_random_starts_leave_the_dense_matrices_or_nothing(gpt2: Study) -> None:
    some, none = kn.random_factors(gpt2, 0), kn.random_all(gpt2, 0)
    own = gpt2.teacher.blocks[0].mlp.up.weight.numpy()
    np.testing.assert_array_equal(some.blocks[0].mlp.up.weight.numpy(), own)
    assert np.abs(none.blocks[0].mlp.up.weight.numpy() - own).max() > 0.1
    other = kn.random_factors(gpt2, 1).blocks[1].mlp.up.factors.a
    assert not np.array_equal(some.blocks[1].mlp.up.factors.a, other)


def test_students_have_names_of_their_own() -> None:
    students = [*kn.ABLATION.values(), kn.UNTIED, kn.S2, kn.S4, kn.WEIGHTED, kb.KBERT8, kb.KBERT21, kb.S2, kb.S4]
    students += [kb.PLAIN, kb.ONE_BLOCK]
    assert len({one.name for one in students}) == len(students)


def test_a_larger_block_that_wins_says_nothing_of_the_smaller_model() -> None:
    rule = next(one.rule for one in kb.RELATIONS if one.id == "R8")
    ladder = {"KroneckerBERT-8 5": 2.0, "KroneckerBERT-21 5": 3.0}
    assert rule(ladder | {"one block 5": 4.0}) == 1 and rule(ladder | {"one block 5": 1.0}) == 0
    assert rule({"KroneckerBERT-8 5": 3.0, "KroneckerBERT-21 5": 2.0, "one block 5": 4.0}) == -1


def test_one_class_has_no_silhouette() -> None:
    x_ND = np.random.default_rng(0).standard_normal((40, 5))
    assert np.isnan(kb.silhouette(x_ND, np.zeros(40)))


def test_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    small = replace(rk.PAPERS["kngpt2"], quick=replace(kn.QUICK, **MICRO))
    monkeypatch.setitem(rk.PAPERS, "kngpt2", small)
    monkeypatch.setattr(data, "documents", lambda source=None: corpus.language_reference()[:40])
    out = str(tmp_path / "out")
    assert cli.main(["reproduce", "kngpt2", "--quick", "--only", "K1,R7", "--out", out]) == 0
    said = capsys.readouterr().out
    assert "| K1 |" in said and "| R7 |" in said and "| R1 |" not in said and "1 steps of 1 x 16 tokens" in said
    assert len(json.loads((tmp_path / "out" / "report.json").read_text())) == 2
    assert (tmp_path / "out" / "budgets.png").read_bytes().startswith(b"\x89PNG")
    assert cli.main(["reproduce", "kngpt2", "--model", "bert-tiny"]) == 2
    assert cli.main(["reproduce", "kroneckerbert", "--only", "B1"]) == 2
