"""A compressed and merged model in transformers: the same logits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import tinykron as tk
from tinykron import compress, data

pytestmark = pytest.mark.oracle


@pytest.mark.parametrize("name", ["gpt2-tiny", "llama-tiny"])
def test_transformers_reads_the_merged_model_with_the_same_logits(name: str, tmp_path: Path) -> None:
    import torch
    import transformers

    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(document.text for document in data.documents()[:30]))
    budget = compress.Budget(params=0.5)
    compress.compress(data.weights_folder(name), tmp_path / "small", budget, text, 512, merge=tmp_path / "dense")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "dense").eval()
    ours = tk.load(tmp_path / "small")
    ids = np.random.default_rng(0).integers(0, ours.config.vocab_size, (2, 50))
    with torch.no_grad():
        expected = theirs(torch.tensor(ids)).logits.numpy()
    assert np.abs(ours(ids).logits.numpy() - expected).max() <= 1e-5 * max(1.0, np.abs(expected).max())
