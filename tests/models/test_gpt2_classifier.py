"""GPT-2 as a classifier of texts: where it reads, how pairs are framed, folders, tasks, a whole fine-tuning."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import tinykron as tk
from tests.helpers import assert_close, host
from tests.tiny_tasks import QUICK, SST2, sentences, write_sst2
from tests.tiny_training import tiny_gpt2
from tinykron import data, tasks
from tinykron.data.corpus import Document
from tinykron.decode.generate import generate
from tinykron.errors import DataError, TinykronError
from tinykron.jobs import finetune
from tinykron.measure import perplexity
from tinykron.models.gpt2 import GPT2, GPT2Config, with_classifier
from tinykron.tasks.features import Features, encode, predict

TEXTS = [Document(str(number), text) for number, (text, _) in enumerate(sentences(60, 5))]
TOKENIZER = data.train_tokenizer(TEXTS, 280)
END = TOKENIZER.token_to_id("<|endoftext|>")
MNLI = tasks.TASKS["glue/mnli"]


def tiny_classifier(labels: int = 3, **config) -> GPT2:
    return with_classifier(tiny_gpt2(spread=20.0, **config).eval(), labels, np.random.default_rng(3))


def reader(seed: int = 0) -> GPT2:
    """A language model with a tokenizer."""
    config = GPT2Config(TOKENIZER.get_vocab_size(), n_positions=32, n_embd=16, n_layer=1, n_head=2)
    model = GPT2(replace(config, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0), np.random.default_rng(seed))
    model.tokenizer = TOKENIZER
    return model.eval()


def test_it_reads_the_last_position_that_counts(device):
    model = tiny_classifier().to(device)
    texts = [[1, 2, 3, 4], [5, 6], [7]]
    found = predict(model, [Features(ids, [0] * len(ids)) for ids in texts], batch=3)
    for ids, logits in zip(texts, found, strict=True):
        hidden_D = host(model(np.array([ids])).hidden[-1])[0, -1]
        assert_close(logits, hidden_D @ host(model.score.weight), rtol=1e-5, atol=1e-6)


def test_exits_are_classifiers_too(device):
    model = tiny_classifier(layers=3).to(device)
    ids_BT, mask_BT = np.array([[1, 2, 3, 4], [5, 6, 0, 0]]), np.array([[1, 1, 1, 1], [1, 1, 0, 0]])
    out = model(ids_BT, mask_BT, exits=(1, 3))
    assert_close(out.exits[3], host(out.logits), rtol=0, atol=0)
    assert_close(out.exits[1], host(model(ids_BT, mask_BT, exit=1).logits), rtol=1e-6)
    assert out.exits[1].shape == (2, 3)


def test_a_pair_is_joined_by_the_end_token_and_the_longer_one_cut():
    first, second = (TOKENIZER.encode(text).ids for text in ("page of the page", "tells"))
    assert encode(TOKENIZER, [("page of the page", "tells")], 32)[0] == (
        [*first, END, *second],
        [0] * (len(first) + 1 + len(second)),
    )
    cut, _ = encode(TOKENIZER, [("page of the page", "tells")], len(second) + 3)[0]
    assert cut == [*first[:2], END, *second]
    assert encode(TOKENIZER, [("page",)], 2)[0][0] == TOKENIZER.encode("page").ids[:2]
    assert encode(TOKENIZER, [("",)], 4)[0] == ([END], [0])
    assert TOKENIZER.truncation is None


def test_a_pair_needs_a_token_to_stand_between():
    from tokenizers import Tokenizer, models

    with pytest.raises(DataError, match="the tokenizer has none of <|endoftext|>"):
        encode(Tokenizer(models.WordLevel({"a": 0}, unk_token="a")), [("a", "a")], 8)


@pytest.mark.parametrize("tied", [True, False])
def test_a_folder_keeps_the_classifier(tmp_path, tied):
    model = tiny_classifier(tie_word_embeddings=tied)
    tk.save(model, tmp_path / "m")
    again = tk.load(tmp_path / "m")
    ids = np.array([[1, 2, 3]])
    assert_close(again(ids).logits, host(model(ids).logits), rtol=0, atol=0)
    assert (again.config.head, again.config.labels, again.head) == ("sequence", 3, None)
    assert again.config.to_dict()["architectures"] == ["GPT2ForSequenceClassification"]


def test_a_config_that_names_no_class_is_told_by_its_tensors(tmp_path):
    import json

    tk.save(tiny_classifier(), tmp_path / "m")
    config = json.loads((tmp_path / "m/config.json").read_text())
    del config["architectures"]
    (tmp_path / "m/config.json").write_text(json.dumps(config))
    assert tk.load(tmp_path / "m").config.head == "sequence"


def test_a_head_is_kept_put_in_order_or_drawn_anew():
    made = tasks.fitted(reader(), MNLI, np.random.default_rng(0))
    assert made.config.extra["id2label"] == {"0": "entailment", "1": "neutral", "2": "contradiction"}
    ids = np.array([[1, 2, 3]])
    kept = tasks.fitted(made, MNLI, np.random.default_rng(9))
    assert_close(kept(ids).logits, host(made(ids).logits), rtol=0, atol=0)
    names = {"0": "neutral", "1": "entailment", "2": "contradiction"}
    turned = with_classifier(made, 3, np.random.default_rng(1))
    turned.config = replace(turned.config, extra=turned.config.extra | {"id2label": names})
    assert_close(tasks.ready(turned, MNLI)(ids).logits, host(turned(ids).logits)[:, [1, 0, 2]], rtol=1e-6)
    assert tasks.fitted(made, SST2, np.random.default_rng(0)).config.labels == 2


def test_a_classifier_neither_writes_nor_has_a_perplexity_nor_spans():
    model = tasks.fitted(reader(), SST2, np.random.default_rng(0))
    with pytest.raises(TinykronError, match="generate: a GPT2 is no causal language model"):
        generate(model, [1, 2], max_new_tokens=2)
    with pytest.raises(TinykronError, match="eval: this GPT2 has no head that predicts tokens"):
        perplexity.evaluate(model)
    with pytest.raises(TinykronError, match="squad/1.1: expected a Bert, found a GPT2"):
        tasks.fitted(reader(), tasks.TASKS["squad/1.1"], np.random.default_rng(0))


def test_a_gpt2_is_fine_tuned_and_measured(tmp_path):
    tk.save(reader(), tmp_path / "model")
    write_sst2(tmp_path / "task")
    settings = replace(QUICK, epochs=6, context=24)
    found = finetune.finetune(tmp_path / "model", SST2, tmp_path / "made", tmp_path / "task", settings)
    assert found.saved.score > 0.9
    again = tasks.evaluate(tk.load(tmp_path / "made"), SST2, tmp_path / "task", 24)
    assert again.score == found.saved.score
