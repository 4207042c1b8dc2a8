"""Recipes, run whole on teachers of a few thousand parameters."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from math import isclose

import numpy as np
import pytest

import tinykron as tk
from tests.helpers import assert_close, host
from tests.tiny_tasks import write_sst2
from tests.tiny_teacher import make_encoder, make_teacher, write_text
from tinykron import kron, tasks
from tinykron.distill.losses import Losses
from tinykron.errors import CheckpointError, TinykronError
from tinykron.jobs import recipes, stages
from tinykron.jobs.recipes import Factorise, Finetune, Pretrain, Recipe
from tinykron.jobs.report import as_json, loss_table, markdown, render, table_of
from tinykron.jobs.stages import Inputs
from tinykron.jobs.students import fitting, low_rank_plan, truncate, with_head_of
from tinykron.models.gpt2 import with_classifier

PRETRAIN = Pretrain(share=0.5, batch=2, context=16, baselines=("truncated",))
RECIPE = Recipe("kngpt2", "gpt2-tiny", Factorise("kngpt2"), PRETRAIN)
TASK = Finetune("glue/sst2", Losses(), epochs=2, batch=8, lr=1e-2, teacher_lr=1e-2)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    base = tmp_path_factory.mktemp("run")
    text = write_text(base / "text.txt")
    make_teacher(base / "teacher", text)
    make_encoder(base / "encoder", text)
    make_encoder(base / "bare", text, head=None)
    write_sst2(base / "task")
    return base


@pytest.fixture(scope="module")
def run(base):
    """A whole run of three stages."""
    inputs = Inputs(base / "teacher", base / "text.txt", base / "task")
    return base / "out", stages.run(replace(RECIPE, finetune=TASK), base / "out", inputs)


NAMES = ["teacher", "factorised", "distilled", "truncated", "teacher tuned", "distilled tuned", "truncated tuned"]


def test_the_run_leaves_reports_and_models_and_nothing_else(run):
    out, _ = run
    assert {path.name for path in out.iterdir()} == {
        "report.md", "report.json", "report.png", "losses.png", *NAMES[1:],
    }  # fmt: skip
    assert not out.with_name("out.partial").exists()
    assert (out / "report.png").read_bytes().startswith(b"\x89PNG")


def test_the_report_agrees_with_the_saved_models(base, run):
    out, report = run
    places = {name: base / "teacher" if name == "teacher" else out / name for name in NAMES}
    assert [row.name for row in report.models] == NAMES
    for row in report.models:
        model = tk.load(places[row.name])
        assert row.parameters == row.parameters_without_head == sum(p.size for p in model.parameters())
        assert row.bytes == (places[row.name] / "model.safetensors").stat().st_size
        assert row.reading > 0 and row.sample
        tuned = row.name.endswith("tuned")
        assert (row.perplexity is None, row.writing is None, row.score is None) == (tuned, tuned, not tuned)
        if tuned:
            found = tasks.evaluate(model, tasks.find("glue/sst2"), base / "task", 32)
            assert isclose(row.score, found.score)


def test_the_student_is_smaller_by_the_plan_and_distillation_helps(base, run):
    _, report = run
    teacher, factorised, distilled, truncated, *_ = report.models
    plan = kron.kngpt2_plan(tk.load(base / "teacher"))
    assert factorised.parameters == plan.total(teacher.parameters) < teacher.parameters
    assert distilled.parameters == factorised.parameters and distilled.bytes < teacher.bytes
    assert distilled.flops_per_token < teacher.flops_per_token
    assert truncated.parameters < teacher.parameters
    course = report.courses["distilled"].terms
    assert set(course[0]) == {"cross_entropy", "embedding", "hidden", "attention"}
    assert np.mean([t["hidden"] for t in course[-5:]]) < course[0]["hidden"]
    tuned = report.courses["distilled tuned"]
    assert set(tuned.terms[0]) == {"cross_entropy", "embedding", "hidden", "attention"} and len(tuned.scores) == 2


def test_the_distilled_model_merges_to_a_dense_one(run):
    small = tk.load(run[0] / "distilled")
    dense = kron.merge(small)
    assert kron.plan_of(small) and kron.plan_of(dense) is None
    ids = np.arange(12)[None]
    assert_close(dense(ids).logits, small(ids).logits, rtol=1e-4, atol=1e-5)


def test_the_report_in_all_its_forms(run):
    _, report = run
    text, page, content = render(report), markdown(report), json.loads(as_json(report))
    table = table_of(report.models)
    headings, rows = table.headings, table.rows
    assert "task score" in headings and "similarity" not in headings
    for row in rows:
        assert "| " + " | ".join(row) + " |" in page
        assert all(cell in text for cell in row)
    assert [model["name"] for model in content["models"]] == NAMES
    assert len(content["energy"]) == len(report.plan) == 13  # the embedding, six matrices in each of two blocks
    for choice in report.plan.values():
        assert 0.0 < choice.energy <= 1.0
    assert f"{next(iter(report.plan.values())).energy:.3f}" in page
    for row in loss_table(report.courses).rows:
        assert "| " + " | ".join(row) + " |" in page
    assert any(row[4].endswith("%") and row[5].endswith("%") for row in loss_table(report.courses).rows)
    assert len(content["courses"]["distilled"]["terms"]) == report.courses["distilled"].settings.steps


def test_a_dense_head_is_counted_apart(base, tmp_path):
    recipe = replace(RECIPE, factorise=Factorise("kngpt2", head="dense"), pretrain=replace(PRETRAIN, share=0.2))
    report = stages.run(recipe, tmp_path / "out", Inputs(base / "teacher", base / "text.txt"))
    teacher, factorised, *_ = report.models
    config = tk.load(base / "teacher").config
    assert factorised.parameters - factorised.parameters_without_head == config.vocab_size * config.n_embd
    assert teacher.parameters == teacher.parameters_without_head
    assert tk.load(tmp_path / "out" / "distilled").head is not None


@pytest.mark.parametrize("model", ["encoder", "bare"])
def test_a_bert_is_planned_and_trained_on_text_with_what_it_has(base, tmp_path, model):
    pretrain = replace(PRETRAIN, share=0.1, losses=Losses(0.0, 0.0, 1.0, 0.0, logits=1.0), baselines=("low-rank",))
    recipe = Recipe("better", "bert-tiny", Factorise(params=0.6, tokens=256), pretrain)
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("the list,a dict,1\ntuples stay,tuples stay as they are,4\nkeys,values,2\n")
    report = stages.run(recipe, tmp_path / "out", Inputs(base / model, base / "text.txt", pairs=pairs))
    teacher, factorised, distilled, low_rank = report.models
    assert factorised.parameters == distilled.parameters <= 0.6 * teacher.parameters
    assert low_rank.parameters <= distilled.parameters
    assert all(row.similarity is not None for row in report.models)
    terms = set(report.courses["distilled"].terms[0])
    assert terms == ({"hidden", "logits"} if model == "encoder" else {"hidden"})
    assert (teacher.perplexity is None) == (model == "bare")
    assert ("losses left out" in report.settings) == (model == "bare")


def test_kroneckerbert_takes_over_its_teachers_head(base, tmp_path):
    pretrain = Pretrain(Losses(attention_form="scores", logits=1.0), share=0.1, batch=2, context=16)
    plan = Factorise(params=0.7, tokens=256, matrices="linear")
    recipe = Recipe("kroneckerbert8", "bert-tiny", plan, pretrain, replace(TASK, epochs=1))
    report = stages.run(recipe, tmp_path / "out", Inputs(base / "encoder", base / "text.txt", base / "task"))
    assert [row.name for row in report.models][-2:] == ["teacher tuned", "distilled tuned"]
    assert "embedding" not in report.plan
    teacher = tk.load(tmp_path / "out/teacher tuned")
    start = with_head_of(teacher, tk.load(tmp_path / "out/distilled"), tasks.find("glue/sst2"))
    for part in ("head", "pooler"):
        for name, array in getattr(teacher, part).state_dict().items():
            np.testing.assert_array_equal(host(getattr(start, part).state_dict()[name]), host(array))


INTERRUPTED = """
import sys
from tests.jobs.test_stages import Inputs, RECIPE, stages
try:
    stages.run(RECIPE, sys.argv[3], Inputs(*sys.argv[1:3]))
except KeyboardInterrupt:
    sys.exit(130)
"""


def test_a_run_that_was_killed_continues_to_the_same_student(base, run, tmp_path):
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
    inputs = Inputs(str(base / "teacher"), str(base / "text.txt"))
    if process.returncode:
        assert not out.exists()
        with pytest.raises(CheckpointError, match="out.partial: holds another run; choose another --out"):
            stages.run(replace(RECIPE, seed=1), out, inputs)
        stages.run(RECIPE, out, inputs)
    whole, continued = (tk.load(place / "distilled").state_dict() for place in (run[0], out))
    for name, array in whole.items():
        np.testing.assert_array_equal(array, continued[name])


@pytest.mark.parametrize("stage", ["factorised", "distilled", "tuned_teacher", "tuned"])
def test_a_run_that_stops_in_any_stage_continues_to_the_same_models(base, run, tmp_path, monkeypatch, stage):
    out, inputs = tmp_path / "out", Inputs(base / "teacher", base / "text.txt", base / "task")
    recipe = replace(RECIPE, finetune=TASK)
    own = getattr(stages.Run, stage)

    def stopped(self, *arguments):
        own(self, *arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(stages.Run, stage, stopped)
        with pytest.raises(KeyboardInterrupt):
            stages.run(recipe, out, inputs)
    assert not out.exists()
    stages.run(recipe, out, inputs)
    for name in ("distilled", "distilled tuned"):
        whole, continued = (tk.load(place / name).state_dict() for place in (run[0], out))
        assert all(np.array_equal(array, continued[key]) for key, array in whole.items())


def test_what_a_run_refuses(base, run, tmp_path):
    text = base / "text.txt"
    with pytest.raises(CheckpointError, match="exists already"):
        stages.run(RECIPE, base / "out", Inputs(base / "teacher", text))
    mute, flat = (
        make_teacher(tmp_path / name, text, layers, layers > 1) for name, layers in (("flat", 1), ("mute", 2))
    )
    (tmp_path / "short.txt").write_text("one line\n")
    silent = make_teacher(tmp_path / "silent", text, with_tokenizer=False)
    low = replace(RECIPE, pretrain=replace(PRETRAIN, losses=Losses(0, 0, 0, 0, logits=1.0)))
    dense = replace(RECIPE, factorise=Factorise(params=0.5, head="dense"))
    for recipe, inputs, message in (
        (RECIPE, Inputs(silent, text), r"tokenizer\.json"),
        (RECIPE, Inputs(mute, text), "tokenizer|1 block"),
        (RECIPE, Inputs(tmp_path / "nowhere", text), "expected a folder"),
        (RECIPE, Inputs(base / "teacher", tmp_path / "short.txt"), "found 1 documents"),
        (RECIPE, Inputs(base / "teacher", text, pairs=text), "sentence embeddings are a BERT's, found a GPT2"),
        (replace(low, factorise=Factorise(params=0.6)), Inputs(base / "bare", text), "logits: the model has no head"),
        (dense, Inputs(base / "encoder", text), 'head = "dense" is for a GPT-2, found a Bert'),
        (replace(RECIPE, finetune=TASK), Inputs(base / "teacher", text), "name the folder of its files"),
        (replace(RECIPE, finetune=TASK), Inputs(base / "teacher", text, tmp_path / "no"), "found nothing"),
    ):
        with pytest.raises(TinykronError, match=message):
            stages.run(recipe, tmp_path / "refused", inputs)
        assert not (tmp_path / "refused").exists()
    assert flat


# Students -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["teacher", "encoder"])
def test_the_truncated_student_starts_as_every_second_block(base, kind):
    teacher = tk.load(base / kind)
    student = truncate(teacher)
    assert len(student.blocks) == len(teacher.blocks) // 2
    last = len(student.blocks) - 1
    assert_close(student.blocks[last].mlp.up.weight, teacher.blocks[2 * last].mlp.up.weight)
    student.blocks[last].mlp.up.weight.data[0, 0] += 1.0  # the teacher's stays as it is
    assert student.blocks[last].mlp.up.weight.data[0, 0] != teacher.blocks[2 * last].mlp.up.weight.data[0, 0]


def test_low_rank_holds_no_more_in_any_matrix(base):
    plan = kron.kngpt2_plan(tk.load(base / "teacher"))
    other = low_rank_plan(plan)
    assert other.keys() == plan.keys()
    for name, choice in other.items():
        assert choice.parameters <= plan[name].parameters < choice.parameters + sum(choice.dense)
        assert choice.shape == (choice.dense[0], 1)


def test_losses_without_a_head_are_left_out_and_named(base):
    losses = Losses(logits=1.0, next_sentence=1.0)
    assert fitting(Losses(), tk.load(base / "teacher")) == (Losses(), [])
    assert fitting(losses, tk.load(base / "encoder")) == (Losses(logits=1.0), ["next_sentence"])
    assert fitting(losses, tk.load(base / "bare")) == (
        Losses(cross_entropy=0.0, next_sentence=1.0),
        ["cross_entropy", "logits"],
    )
    with pytest.raises(TinykronError, match="pretrain: losses: cross_entropy: the model has no head for it"):
        fitting(Losses(0, 0, 0, 1.0), with_classifier(tk.load(base / "teacher"), 2))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_on_the_shipped_weights_distillation_wins_back_much_of_what_factors_cost(tmp_path, seed):
    report = stages.run(replace(recipes.read("kngpt2"), seed=seed, finetune=None), tmp_path / "out")
    teacher, factorised, distilled, _ = (row.perplexity for row in report.models)
    assert teacher < distilled < factorised
    assert np.log(distilled / teacher) < 0.7 * np.log(factorised / teacher)
