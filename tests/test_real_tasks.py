"""Fine-tuning through the real files of GLUE and SQuAD, where they are: `pytest -m slow tests/test_real_tasks.py`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import tinykron as tk
from tinykron import data, finetune, tasks
from tinykron.task_train import FineTuning

pytestmark = pytest.mark.slow

SHARED = Path(__file__).parent.parent.parent / "shared" / "data"
SETTINGS = FineTuning(epochs=1, batch=16, context=64, lr=1e-3)


def real(name: str) -> Path:
    if not (SHARED / name).is_dir():
        pytest.skip(f"no shared/data/{name}")
    return SHARED / name


@pytest.mark.parametrize("model", ["bert-tiny", "gpt2-tiny"])
def test_a_tiny_model_learns_some_of_sst2(tmp_path, model):
    folder, task = real("sst2"), tasks.find("glue/sst2")
    header, *lines = (folder / "train.tsv").read_text().splitlines(keepends=True)
    (tmp_path / "train.tsv").write_text(header + "".join(lines[:: len(lines) // 8000][:8000]))
    (tmp_path / "dev.tsv").write_bytes((folder / "dev.tsv").read_bytes())
    found = finetune.finetune(data.weights_folder(model), task, tmp_path / "made", tmp_path, SETTINGS)
    dev = np.array([int(example.label) for example in task.read(tmp_path, "dev").examples])
    majority = max(np.mean(dev), 1 - np.mean(dev))
    assert found.saved.score > majority + 4 * 0.5 / np.sqrt(len(dev))  # beyond what guessing reaches


def test_a_tiny_bert_learns_to_point_into_squads_paragraphs(tmp_path):
    articles = json.loads((real("squad") / "xquad.en.json").read_text())["data"]
    for name, part in (("train", articles[:40]), ("dev", articles[40:])):
        (tmp_path / f"{name}-v1.1.json").write_text(json.dumps({"version": "1.1", "data": part}))
    task = tasks.find("squad/1.1")
    settings = replace(SETTINGS, epochs=3, context=128)
    found = finetune.finetune(data.weights_folder("bert-tiny"), task, tmp_path / "made", tmp_path, settings)
    untrained = tasks.evaluate(
        tasks.fitted(tk.load(data.weights_folder("bert-tiny")), task, np.random.default_rng(0)), task, tmp_path, 128
    )
    assert found.saved.sets["dev"]["f1"] > untrained.sets["dev"]["f1"]
