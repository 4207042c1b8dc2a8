"""A compressed and merged model in transformers: the same logits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import tinykron as tk
from tinykron import data
from tinykron.jobs import compress

pytestmark = pytest.mark.oracle


@pytest.mark.parametrize(
    ("name", "budget"),
    [
        ("gpt2-tiny", compress.Budget(preset="kngpt2")),
        ("gpt2-tiny", compress.Budget(params=0.3)),
        ("llama-tiny", compress.Budget(params=0.5)),
    ],
)
def test_transformers_reads_the_merged_model_with_the_same_logits(
    name: str, budget: compress.Budget, tmp_path: Path
) -> None:
    import torch
    import transformers

    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(document.text for document in data.documents()[:30]))
    compress.compress(data.weights_folder(name), tmp_path / "small", budget, text, 512, merge=tmp_path / "dense")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "dense").eval()
    ours = tk.load(tmp_path / "small")
    ids = np.random.default_rng(0).integers(0, ours.config.vocab_size, (2, 50))
    with torch.no_grad():
        expected = theirs(torch.tensor(ids)).logits.numpy()
        exact = theirs.double()(torch.tensor(ids)).logits.numpy()
    assert np.abs(ours(ids).logits.numpy() - expected).max() <= 1e-5 * max(1.0, np.abs(expected).max())
    if name == "llama-tiny":
        return  # its rotary angles are float32
    for parameter in ours.parameters():
        parameter.data = parameter.data.astype(np.float64)
    difference = np.abs(ours(ids).logits.numpy() - exact).max()  # without the rounding of either's float32
    assert difference <= 1e-5
