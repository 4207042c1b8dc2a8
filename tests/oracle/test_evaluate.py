"""Perplexity beside the sliding window of transformers' documentation, on the same text."""

from __future__ import annotations

import pytest

import tinykron as tk
from tests.checkpoints import TINY
from tests.data.test_masking import PROSE
from tests.oracle.compare import write
from tests.oracle.theirs import IGNORED, random_gpt2
from tinykron import data
from tinykron.measure.perplexity import evaluate

pytestmark = pytest.mark.oracle


@pytest.mark.parametrize(("context", "stride"), [(16, 16), (16, 15), (16, 5), (9, 1), (12, 12), (12, 6)])
def test_perplexity_is_theirs(tmp_path, context, stride):
    import torch

    tokenizer = data.train_tokenizer(PROSE, 300)
    config = TINY | {"vocab_size": tokenizer.get_vocab_size(), "n_positions": 16}
    theirs = random_gpt2({key: value for key, value in config.items() if key != "model_type"}, seed=0)
    folder = write(theirs, tmp_path / "model", "transformer.")
    tokenizer.save(str(folder / "tokenizer.json"))
    text = PROSE[3].text + PROSE[4].text
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")

    ids = torch.tensor([tokenizer.encode(text).ids])
    # Their windows hold max_length tokens, and the model shifts its labels itself: the first token of a window is never
    # predicted. Side by side they would leave one token out between two windows, so there each is one token longer.
    max_length = context if stride < context else context + 1
    nats, counted, previous = 0.0, 0, 0
    for begin in range(0, ids.shape[1], stride):  # the loop of their documentation, "perplexity of fixed-length models"
        end = min(begin + max_length, ids.shape[1])
        target_length = end - previous  # may be different from stride on the last loop
        window = ids[:, begin:end]
        targets = window.clone()
        targets[:, :-target_length] = IGNORED
        with torch.no_grad():
            logits = theirs(window[:, :-1]).logits  # the last one's would be shifted out
        loss = torch.nn.functional.cross_entropy(logits[0], targets[0, 1:], ignore_index=IGNORED, reduction="sum")
        nats, counted, previous = nats + loss.item(), counted + int((targets[0, 1:] != IGNORED).sum()), end
        if end == ids.shape[1]:
            break
    found = evaluate(tk.load(folder), tmp_path / "text.txt", context, stride)
    assert found.tokens == counted == ids.shape[1] - 1
    assert found.nats == pytest.approx(nats / counted, abs=1e-5)
    assert found.perplexity == pytest.approx(float(torch.tensor(nats / counted).exp()), rel=1e-5)


@pytest.mark.parametrize(("context", "stride"), [(16, 8), (10, 3)])
def test_perplexity_is_that_of_their_labels(tmp_path, context, stride):
    """The same loop word for word: the loss that a model of transformers gives for its labels, averaged by target."""
    import torch

    tokenizer = data.train_tokenizer(PROSE, 300)
    config = TINY | {"vocab_size": tokenizer.get_vocab_size(), "n_positions": 16}
    theirs = random_gpt2({key: value for key, value in config.items() if key != "model_type"}, seed=1)
    folder = write(theirs, tmp_path / "model", "transformer.")
    tokenizer.save(str(folder / "tokenizer.json"))
    (tmp_path / "text.txt").write_text(PROSE[3].text, encoding="utf-8")
    encodings = torch.tensor([tokenizer.encode(PROSE[3].text).ids])

    nll_sum, n_tokens, prev_end_loc, seq_len = 0.0, 0, 0, encodings.size(1)
    for begin_loc in range(0, seq_len, stride):
        end_loc = min(begin_loc + context, seq_len)
        trg_len = end_loc - prev_end_loc
        input_ids = encodings[:, begin_loc:end_loc]
        target_ids = input_ids.clone()
        target_ids[:, :-trg_len] = IGNORED
        with torch.no_grad():
            neg_log_likelihood = theirs(input_ids, labels=target_ids).loss
        num_loss_tokens = int((target_ids[:, 1:] != IGNORED).sum())
        nll_sum += neg_log_likelihood.item() * num_loss_tokens
        n_tokens += num_loss_tokens
        prev_end_loc = end_loc
        if end_loc == seq_len:
            break
    found = evaluate(tk.load(folder), tmp_path / "text.txt", context, stride)
    assert found.tokens == n_tokens
    assert found.perplexity == pytest.approx(float(torch.tensor(nll_sum / n_tokens).exp()), rel=1e-5)
