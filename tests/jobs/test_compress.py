"""`tinykron compress`: what it makes, what it promises, what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tinykron as tk
from tests.helpers import assert_close
from tests.tiny_teacher import make_teacher, write_text
from tinykron import data, kron
from tinykron.commands import cli
from tinykron.data import batch
from tinykron.data.masking import Masking
from tinykron.errors import CheckpointError, DataError, TinykronError
from tinykron.jobs import compress
from tinykron.measure import perplexity
from tinykron.models.bert import Bert, BertConfig


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compress")
    make_teacher(folder / "teacher", write_text(folder / "text.txt"), layers=2)
    return folder


@pytest.fixture(scope="module")
def made(base: Path) -> compress.Outcome:
    budget = compress.Budget(params=0.6, flops=0.8)
    out = compress.compress(base / "teacher", base / "small", budget, base / "text.txt", 512, merge=base / "dense")
    assert out is not None
    return out


def test_the_saved_model_is_as_small_as_promised(base: Path, made: compress.Outcome) -> None:
    teacher, small = tk.load(base / "teacher"), tk.load(base / "small")
    assert small.parameter_count() == made.after.parameters <= 0.6 * teacher.parameter_count()
    size = (base / "small" / "model.safetensors").stat().st_size
    assert size == made.after.bytes < 0.6 * made.before.bytes + 5000
    assert made.promises == {"params": True, "flops": True}
    assert {path.name for path in (base / "small").iterdir()} == {
        "config.json",
        "model.safetensors",
        "plan.json",
        "tokenizer.json",
    }


def test_its_plan_can_be_loaded_and_used_again(base: Path, made: compress.Outcome, tmp_path: Path) -> None:
    plan = kron.KronPlan.from_json((base / "small" / "plan.json").read_text())
    assert plan == made.plan
    again = compress.compress(
        base / "teacher", tmp_path / "again", compress.Budget(plan=base / "small" / "plan.json"), base / "text.txt", 512
    )
    assert again is not None and again.after.parameters == made.after.parameters
    assert again.after.perplexity == pytest.approx(made.after.perplexity, rel=1e-2)


def test_the_merged_model_has_the_same_logits(base: Path, made: compress.Outcome) -> None:
    small, dense = tk.load(base / "small"), tk.load(base / "dense")
    assert kron.plan_of(dense) is None and kron.plan_of(small) is not None
    ids = np.random.default_rng(0).integers(0, small.config.vocab_size, (3, 20))
    assert_close(dense(ids).logits, small(ids).logits.numpy(), rtol=0.0, atol=1e-5)


def test_the_outcome_is_measured_on_held_out_text(base: Path, made: compress.Outcome) -> None:
    _, held_out = data.split(data.documents(base / "text.txt"))
    for side, name in ((made.before, "teacher"), (made.after, "small")):
        assert side.perplexity == pytest.approx(perplexity.measured(tk.load(base / name), held_out))
    told = compress.render(made)
    assert f"{made.before.parameters:,} -> {made.after.parameters:,}" in told and "BROKEN" not in told
    made.promises["params"] = False
    try:
        assert "BROKEN: the budget params is not kept" in compress.render(made)
    finally:
        made.promises["params"] = True


def test_a_broken_promise_is_seen(made: compress.Outcome) -> None:
    tight = compress.Budget(params=0.1, bytes=0.1, flops=0.01)
    assert compress._promises(tight, made, 2) == {"params": False, "bytes": False, "flops": False}


@pytest.mark.parametrize("preset", ["kngpt2"])
def test_a_preset_without_calibration(base: Path, preset: str, tmp_path: Path) -> None:
    budget = compress.Budget(preset=preset)
    made = compress.compress(base / "teacher", tmp_path / preset, budget, base / "text.txt", weighted=False)
    assert made is not None
    teacher = tk.load(base / "teacher")
    plain = kron.factorise(teacher, kron.PRESETS[preset](teacher))
    assert made.after.parameters == plain.parameter_count()


def test_a_dry_run_says_sizes_and_makes_nothing(base: Path, capsys: pytest.CaptureFixture) -> None:
    before = sorted(base.iterdir())
    assert cli.main(["compress", str(base / "teacher"), "--dry-run", "--params", "0.5", "--flops", "0.4"]) == 0
    told = capsys.readouterr().out
    total = tk.load(base / "teacher").parameter_count()
    assert f"{total:,} parameters" in told and f"at most {total // 2:,} parameters (50.0%)" in told
    assert "at most 40.0% of the FLOPs of the matrices" in told and "MB for second moments" in told
    assert cli.main(["compress", str(base / "teacher"), "--dry-run", "--preset", "kngpt2", "--plain"]) == 0
    assert "the plan: " in capsys.readouterr().out
    assert sorted(base.iterdir()) == before


def test_the_command_line(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    arguments = [
        "compress",
        str(base / "teacher"),
        "--calibration",
        str(base / "text.txt"),
        "--tokens",
        "256",
        "--json",
    ]
    out = tmp_path / "out"
    assert cli.main([*arguments, "--bytes", "0.8", "--out", str(out), "--dtype", "float32"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["promises"] == {"bytes": True} and told["after"]["bytes"] <= 0.8 * 4 * told["before"]["parameters"]
    assert told["plan"].keys() == kron.KronPlan.from_json((out / "plan.json").read_text()).keys()
    assert cli.main([*arguments, "--params", "0.5"]) == 2
    assert "expected --out DIR, or --dry-run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ({}, "expected a budget"),
        ({"params": 0.5, "preset": "kngpt2"}, "found params, preset; a preset or a plan has no budget beside it"),
        ({"preset": "kngpt2", "plan": "x.json"}, "found preset, plan"),
        ({"preset": "other"}, "found preset 'other', expected one of kngpt2"),
    ],
)
def test_budgets_that_contradict_each_other(budget: dict[str, Any], message: str) -> None:
    with pytest.raises(TinykronError, match=message):
        compress.Budget(**budget)


def test_bad_input_is_refused_before_any_work(base: Path, tmp_path: Path) -> None:
    budget = compress.Budget(params=0.5)
    with pytest.raises(CheckpointError, match="exists already"):
        compress.compress(base / "teacher", base / "teacher", budget)
    with pytest.raises(CheckpointError, match="exists already"):
        compress.compress(base / "teacher", tmp_path / "new", budget, merge=tmp_path)
    with pytest.raises(CheckpointError, match=r"plan\.json: cannot be read"):
        compress.compress(base / "teacher", tmp_path / "new", compress.Budget(plan=tmp_path / "plan.json"))
    with pytest.raises(TinykronError, match="tokens: found 1, expected at least 2"):
        compress.compress(base / "teacher", tmp_path / "new", budget, tokens=1)
    empty = tmp_path / "empty.txt"
    empty.write_text(" \n")
    with pytest.raises(DataError, match="empty"):
        compress.compress(base / "teacher", tmp_path / "new", budget, empty)
    assert not (tmp_path / "new").exists()


def test_windows_of_a_text(base: Path) -> None:
    model = tk.load(base / "teacher")
    documents = data.documents(base / "text.txt")
    found = batch.batches(model, documents, 300)
    assert sum(ids.size for ids in found) == 300 // 32 * 32 and {ids.shape[1] for ids in found} == {32}
    other = batch.batches(model, documents, 300, seed=1)
    assert not np.array_equal(found[0], other[0])
    model.tokenizer = None
    with pytest.raises(TinykronError, match="no tokenizer to read text with"):
        batch.batches(model, documents, 300)


def test_windows_of_a_masked_model_are_framed_and_hide_tokens() -> None:
    from tinykron.data.masking import train_wordpiece

    documents = data.documents()[:40]
    tokenizer = train_wordpiece(documents, 200)
    model = Bert(BertConfig(tokenizer.get_vocab_size(), 16, 1, 2, 16, 24, head="masked_lm"), np.random.default_rng(0))
    model.tokenizer = tokenizer
    found = np.concatenate(batch.batches(model, documents, 400))
    masking = Masking.of(tokenizer)
    assert found.shape[1] == 24 and set(found[:, 0]) == {masking.start} and set(found[:, -1]) == {masking.end}
    assert 0.05 < (found == masking.mask).mean() < 0.25
    assert perplexity.measured(model, documents) is not None
    bare = Bert(BertConfig(200, 16, 1, 2, 16, 24, head=None), np.random.default_rng(0))
    assert perplexity.measured(bare, documents) is None
