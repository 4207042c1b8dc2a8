"""Fine-tuning through the real files of GLUE and SQuAD: `pytest -m slow tests/tasks/test_real_tasks.py`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import tinykron as tk
from tinykron import data, tasks
from tinykron.jobs import finetune
from tinykron.tasks.tuning import FineTuning

pytestmark = pytest.mark.slow

SHARED = Path(__file__).parents[3] / "shared" / "data"
SETTINGS = FineTuning(epochs=1, batch=16, context=64, lr=1e-3)


def real(name: str) -> Path:
    if not (SHARED / name).is_dir():
        pytest.skip(f"no shared/data/{name}")
    return SHARED / name


@pytest.mark.parametrize("model", ["bert-tiny", "gpt2-tiny"])
def test_a_tiny_model_is_tuned_on_a_slice_of_sst2_and_measured_on_its_dev_set(tmp_path, model):
    folder, task = real("sst2"), tasks.find("glue/sst2")
    (tmp_path / "train.tsv").write_text("".join((folder / "train.tsv").read_text().splitlines(keepends=True)[:641]))
    (tmp_path / "dev.tsv").write_bytes((folder / "dev.tsv").read_bytes())
    found = finetune.finetune(data.weights_folder(model), task, tmp_path / "made", tmp_path, SETTINGS)
    assert found.saved.examples == {"dev": 872}
    assert 0.4 < found.saved.score <= 1.0
    assert tasks.evaluate(tk.load(tmp_path / "made"), task, tmp_path, 64).score == found.saved.score


def test_a_tiny_bert_is_tuned_on_squads_paragraphs(tmp_path):
    articles = json.loads((real("squad") / "xquad.en.json").read_text())["data"]
    for name, part in (("train", articles[:20]), ("dev", articles[20:])):
        (tmp_path / f"{name}-v1.1.json").write_text(json.dumps({"version": "1.1", "data": part}))
    task = tasks.find("squad/1.1")
    found = finetune.finetune(data.weights_folder("bert-tiny"), task, tmp_path / "made", tmp_path, SETTINGS)
    asked = sum(len(paragraph["qas"]) for article in articles[20:] for paragraph in article["paragraphs"])
    assert found.saved.examples == {"dev": asked}
    assert 0.0 <= found.saved.sets["dev"]["exact_match"] <= found.saved.sets["dev"]["f1"] <= 1.0
