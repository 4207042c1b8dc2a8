"""The recipe `kngpt2`, whole, on a teacher of a few thousand parameters."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import tinykron as tk
from tests.helpers import assert_close
from tinykron import data, kron, recipes
from tinykron.errors import CheckpointError, TinykronError
from tinykron.models.gpt2 import GPT2, GPT2Config
from tinykron.report import HEADINGS, as_json, cells, loss_rows, markdown, render

SETTINGS = recipes.KnGPT2(share=0.5, batch=2, context=16, lr=1e-3)


def write_text(path: Path, lines: int = 500) -> Path:
    words = "the list holds items and a dict maps keys to values while tuples stay as they are".split()
    generator = np.random.default_rng(3)
    text = [" ".join(generator.choice(words, 9)) + ".\n" + ("\n" if i % 5 == 4 else "") for i in range(lines)]
    path.write_text("".join(text))
    return path


def make_teacher(folder: Path, text: Path, layers: int = 4, with_tokenizer: bool = True) -> Path:
    tokenizer = data.train_tokenizer(data.documents(text), 300)
    config = GPT2Config(tokenizer.get_vocab_size(), n_positions=32, n_embd=16, n_layer=layers, n_head=2)
    model = GPT2(config, np.random.default_rng(1))
    model.tokenizer = tokenizer if with_tokenizer else None
    tk.save(model, folder, dtype="bfloat16")
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    base = tmp_path_factory.mktemp("run")
    text = write_text(base / "text.txt")
    teacher = make_teacher(base / "teacher", text)
    return base, recipes.kngpt2(teacher, text, base / "out", SETTINGS)


def test_the_run_leaves_reports_and_models_and_nothing_else(run):
    base, _ = run
    names = {path.name for path in (base / "out").iterdir()}
    assert names == {"report.md", "report.json", "report.png", "losses.png", "factorised", "distilled", "truncated"}
    assert not (base / "out.partial").exists()
    assert (base / "out" / "report.png").read_bytes().startswith(b"\x89PNG")


def test_the_report_agrees_with_the_saved_models(run):
    base, report = run
    places = {"teacher": base / "teacher", **{n: base / "out" / n for n in ("factorised", "distilled", "truncated")}}
    assert [row.name for row in report.models] == list(places)
    for row in report.models:
        model = tk.load(places[row.name])
        assert row.parameters == row.parameters_without_head == sum(p.size for p in model.parameters())
        assert row.bytes == (places[row.name] / "model.safetensors").stat().st_size
        assert row.perplexity > 1 and row.reading > 0 and row.writing > 0 and isinstance(row.sample, str)


def test_the_student_is_smaller_by_the_plan_and_distillation_helps(run):
    base, report = run
    teacher, factorised, distilled, truncated = report.models
    plan = kron.kngpt2_plan(tk.load(base / "teacher"))
    assert factorised.parameters == plan.total(teacher.parameters) < teacher.parameters
    assert distilled.parameters == factorised.parameters and distilled.bytes < teacher.bytes
    assert distilled.flops_per_token < teacher.flops_per_token
    assert truncated.parameters < teacher.parameters
    course = report.courses["distilled"].terms
    assert set(course[0]) == {"cross_entropy", "embedding", "hidden", "attention"}
    assert np.mean([t["hidden"] for t in course[-5:]]) < course[0]["hidden"]


def test_the_distilled_model_merges_to_a_dense_one(run):
    base, _ = run
    small = tk.load(base / "out" / "distilled")
    dense = kron.merge(small)
    assert kron.plan_of(small) and kron.plan_of(dense) is None
    ids = np.arange(12)[None]
    assert_close(dense(ids).logits, small(ids).logits, rtol=1e-4, atol=1e-5)


def test_the_truncated_student_starts_as_every_second_block(run):
    base, _ = run
    teacher = tk.load(base / "teacher")
    student = recipes.truncate(teacher)
    assert student.config.n_layer == 2
    assert_close(student.blocks[1].mlp.up.weight, teacher.blocks[2].mlp.up.weight)
    student.blocks[1].mlp.up.weight.data[0, 0] += 1.0  # the teacher's stays as it is
    assert student.blocks[1].mlp.up.weight.data[0, 0] != teacher.blocks[2].mlp.up.weight.data[0, 0]


def test_the_report_in_all_its_forms(run):
    _, report = run
    text, page, content = render(report), markdown(report), json.loads(as_json(report))
    for row in report.models:
        assert row.name in text and f"{row.perplexity:.2f}" in text
        assert "| " + " | ".join(cells(row)) + " |" in page
    for heading in HEADINGS[1:]:
        assert heading in page
    assert [model["name"] for model in content["models"]] == [row.name for row in report.models]
    assert len(content["energy"]) == len(report.plan) == 13  # the embedding, six matrices in each of two blocks
    for choice in report.plan.values():
        assert 0.0 < choice.energy <= 1.0
    assert f"{next(iter(report.plan.values())).energy:.3f}" in page
    for row in loss_rows(report.courses):
        assert "| " + " | ".join(row) + " |" in page
        assert row[4].endswith("%") and row[5].endswith("%")  # measured at the start and at the end
    assert len(content["courses"]["distilled"]["terms"]) == report.courses["distilled"].settings.steps


def test_a_dense_head_is_counted_apart(run, tmp_path):
    base, _ = run
    settings = recipes.KnGPT2(share=0.2, batch=2, context=16, head="dense")
    report = recipes.kngpt2(base / "teacher", base / "text.txt", tmp_path / "out", settings)
    teacher, factorised, distilled, _ = report.models
    config = tk.load(base / "teacher").config
    assert factorised.parameters - factorised.parameters_without_head == config.vocab_size * config.n_embd
    assert teacher.parameters == teacher.parameters_without_head
    assert tk.load(tmp_path / "out" / "distilled").head is not None


INTERRUPTED = """
import sys
from tests.test_recipes import SETTINGS
from tinykron import recipes
try:
    sys.exit(0 if recipes.kngpt2(*sys.argv[1:4], SETTINGS) else 130)
except KeyboardInterrupt:  # between two trainings
    sys.exit(130)
"""


def test_a_run_that_was_killed_continues_to_the_same_student(run, tmp_path):
    base, _ = run
    out = tmp_path / "out"
    command = [sys.executable, "-c", INTERRUPTED, str(base / "teacher"), str(base / "text.txt"), str(out)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (tmp_path / "out.partial" / "factorised").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode in (0, 130), errors  # 0 where it was done already
    assert "Traceback" not in errors
    if process.returncode:
        assert not out.exists()
        recipes.kngpt2(base / "teacher", base / "text.txt", out, SETTINGS)
    whole, continued = (tk.load(place / "distilled").state_dict() for place in (base / "out", out))
    for name, array in whole.items():
        np.testing.assert_array_equal(array, continued[name])


def test_what_a_run_refuses(run, tmp_path):
    base, _ = run
    text = base / "text.txt"
    with pytest.raises(CheckpointError, match="exists already"):
        recipes.kngpt2(base / "teacher", text, base / "out", SETTINGS)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        recipes.kngpt2(make_teacher(tmp_path / "mute", text, with_tokenizer=False), text, tmp_path / "a", SETTINGS)
    with pytest.raises(TinykronError, match="1 block"):
        recipes.kngpt2(make_teacher(tmp_path / "flat", text, layers=1), text, tmp_path / "b", SETTINGS)
    with pytest.raises(TinykronError, match="expected a folder"):
        recipes.kngpt2(tmp_path / "nowhere", text, tmp_path / "c", SETTINGS)
    (tmp_path / "short.txt").write_text("one line\n")
    with pytest.raises(TinykronError, match="found 1 documents"):
        recipes.kngpt2(base / "teacher", tmp_path / "short.txt", tmp_path / "d", SETTINGS)
    assert not any((tmp_path / name).exists() for name in ("a", "b", "c", "d"))


@pytest.mark.parametrize("wrong", [{"share": 0.0}, {"share": 1.5}, {"passes": 0}, {"head": "none"}])
def test_settings_outside_their_range_name_themselves(wrong):
    with pytest.raises(TinykronError, match=next(iter(wrong))):
        recipes.KnGPT2(**wrong)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_on_the_shipped_weights_distillation_wins_back_much_of_what_factors_cost(tmp_path, seed):
    report = recipes.kngpt2(out=tmp_path / "out", settings=recipes.KnGPT2(seed=seed))
    teacher, factorised, distilled, _ = (row.perplexity for row in report.models)
    assert teacher < distilled < factorised
    assert np.log(distilled / teacher) < 0.7 * np.log(factorised / teacher)
