"""Perplexity beside the sliding window of transformers' documentation, on the same text."""

from __future__ import annotations

import pytest

import tinykron as tk
from tests.checkpoints import TINY
from tests.oracle.test_gpt2 import write
from tests.oracle.theirs import IGNORED, random_gpt2
from tests.test_masking import PROSE
from tinykron import data
from tinykron.evaluate import evaluate

pytestmark = pytest.mark.oracle


@pytest.mark.parametrize(("context", "stride"), [(16, 16), (16, 5), (9, 1), (12, 12)])
def test_perplexity_is_theirs(tmp_path, context, stride):
    import torch

    tokenizer = data.train_tokenizer(PROSE, 300)
    config = TINY | {"vocab_size": tokenizer.get_vocab_size(), "n_positions": 16}
    theirs = random_gpt2({key: value for key, value in config.items() if key != "model_type"}, seed=0)
    folder = write(theirs, tmp_path / "model")
    tokenizer.save(str(folder / "tokenizer.json"))
    text = PROSE[3].text + PROSE[4].text
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")

    ids = torch.tensor([tokenizer.encode(text).ids])
    nats, counted, previous = 0.0, 0, 0
    for begin in range(0, ids.shape[1], stride):  # the loop of their documentation, "perplexity of fixed-length models"
        end = min(begin + context + 1, ids.shape[1])
        window = ids[:, begin:end]
        targets = window.clone()
        targets[:, : -(end - max(previous, 1))] = IGNORED
        with torch.no_grad():
            logits = theirs(window[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits[0], targets[0, 1:], ignore_index=IGNORED, reduction="sum")
        nats, counted, previous = nats + loss.item(), counted + end - max(previous, 1), end
        if end == ids.shape[1]:
            break
    found = evaluate(tk.load(folder), tmp_path / "text.txt", context, stride)
    assert found.tokens == counted == ids.shape[1] - 1
    assert found.nats == pytest.approx(nats / counted, abs=1e-5)
    assert found.perplexity == pytest.approx(float(torch.tensor(nats / counted).exp()), rel=1e-5)
