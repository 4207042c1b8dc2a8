"""The relations of Sorted LLaMA at the smallest scale: each gives the values that its rule asks for."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.decoders import tiny_gpt2
from tests.helpers import host
from tinykron import data, kron
from tinykron.commands import cli
from tinykron.data.batch import Batch
from tinykron.errors import TinykronError
from tinykron.exits.losses import SortedLoss, equal_weights, exit_loss
from tinykron.fused import cross_entropy
from tinykron.studies import claims, sorted_llama
from tinykron.studies.sorted_decoding import DECODING, s9
from tinykron.studies.sorted_elastic import ELASTIC
from tinykron.studies.sorted_students import Scale, Study
from tinykron.train.loop import fit
from tinykron.train.settings import Settings

SMALL = Scale(steps=2, batch=1, context=16, held_out=128, prompts=2, new_tokens=3, seeds=1)
TOKENS = np.random.default_rng(0).integers(0, 40, 400)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return Study(SMALL, tmp_path_factory.mktemp("study"))


ALL = [*sorted_llama.RELATIONS, *DECODING, *ELASTIC]
QUICK = [one for one in ALL if one.id not in ("B6", "S6")]  # many prompts; timings


@pytest.mark.parametrize("relation", QUICK, ids=lambda one: one.id)
def test_a_relation_gives_what_its_rule_asks_for(study: Study, relation: claims.Relation) -> None:
    values = relation.run(study, 0)
    assert relation.rule(values) in (-1, 0, 1) and np.isfinite(list(values.values())).all()


def test_names_are_unique_and_greedy_drafts_change_nothing(study: Study) -> None:
    names = [one.id for one in ALL]
    assert len(set(names)) == len(names) and {"B7", *(f"S{n}" for n in range(1, 14))} <= set(names)
    assert s9(study, 0)["differing tokens"] == 0.0


def test_a_model_is_trained_once(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    study.soft(0)
    monkeypatch.setattr("tinykron.studies.sorted_students.fit", None)
    assert len(study.soft(0).blocks) == 8
    with pytest.raises(TypeError):
        study.soft(1)


def test_a_cut_model_is_the_exit() -> None:
    model = tiny_gpt2(0, n_layer=3).eval()
    part, ids = kron.cut(model, 2), TOKENS[None, :9]
    np.testing.assert_array_equal(host(part(ids).logits), host(model(ids, exit=2).logits))
    assert part.config.n_layer == 2 and len(model.blocks) == 3


# The objective --------------------------------------------------------------------------------------------------------


def test_the_sorted_loss_is_that_of_its_exits() -> None:
    model = tiny_gpt2(0, n_layer=3).eval()
    batch = Batch(*data.sample_batch(TOKENS, 2, 8, np.random.default_rng(0)))
    found, terms = SortedLoss(model, equal_weights((1, 3)), pull=0.5)(batch)
    wanted, same = exit_loss(model, (batch.ids_BT, batch.targets), equal_weights((1, 3)), 0.5)
    assert found.item() == wanted.item() and terms == same
    drawn = SortedLoss(model, {2: 1.0}, draws=3)
    drawn.start(0, 0)
    loss, terms = drawn(batch)
    assert loss.item() == pytest.approx(cross_entropy(model(batch.ids_BT, exit=2).logits, batch.targets).item())
    assert terms == {"drawn exits": pytest.approx(loss.item())}


def test_training_drawn_exits_makes_them_better_and_another_objective_does_not_continue_it(tmp_path: Path) -> None:
    model, settings = tiny_gpt2(0, spread=1.0, n_layer=3), Settings(24, 4, 8, lr=3e-3)
    history = fit(
        model, TOKENS, settings, distillation=SortedLoss(model, equal_weights((1, 3)), draws=2), folder=tmp_path
    )
    values = [terms["drawn exits"] for terms in history.terms]
    assert np.mean(values[-6:]) < np.mean(values[:6])
    with pytest.raises(TinykronError, match="belongs to another run"):
        fit(model, TOKENS, settings, distillation=SortedLoss(model, equal_weights((1, 3))), folder=tmp_path)


def test_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(sorted_llama, "QUICK", SMALL)
    out = str(tmp_path / "out")
    assert cli.main(["reproduce", "sorted-llama", "--quick", "--only", "S3,S9", "--out", out]) == 0
    said = capsys.readouterr().out
    assert "| S3 |" in said and "| S9 |" in said and "| S1 |" not in said and "2 steps of 1 x 16 tokens" in said
    assert len(json.loads((tmp_path / "out" / "report.json").read_text())) == 2
    assert (tmp_path / "out" / "exits.png").read_bytes().startswith(b"\x89PNG")
    assert cli.main(["reproduce", "sorted-llama", "--model", "bert-tiny"]) == 2
    assert cli.main(["reproduce", "fit", "--only", "S3"]) == 2
