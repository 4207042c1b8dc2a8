"""WikiText's files: which is which, how many words they have, and what a word costs."""

from __future__ import annotations

import json
from math import exp
from pathlib import Path

import numpy as np
import pytest

import tinykron as tk
from tests.data.test_masking import PROSE
from tinykron import data
from tinykron.commands import cli
from tinykron.errors import DataError
from tinykron.measure.perplexity import evaluate
from tinykron.models.gpt2 import GPT2, GPT2Config
from tinykron.tasks import wikitext

SHARED = Path(__file__).parents[3] / "shared" / "data" / "wikitext2"
TEXT = " \n = Page 7 = \n \n The <unk> page tells of page 14 @-@ 21 . \n"


@pytest.fixture
def model() -> GPT2:
    tokenizer = data.train_tokenizer(PROSE, 300)
    model = GPT2(GPT2Config(tokenizer.get_vocab_size(), 16, 8, 1, 2), np.random.default_rng(0))
    model.tokenizer = tokenizer
    return model.eval()  # type: ignore[return-value]


@pytest.mark.parametrize("name", ["wiki.test.tokens", "wiki.test.raw", "test.txt"])
def test_a_set_is_found_and_costs_what_its_file_costs(model, tmp_path, name):
    (tmp_path / name).write_text(TEXT, encoding="utf-8")
    found = wikitext.measure(model, tmp_path, context=8, stride=4)
    assert found.evaluation == evaluate(model, tmp_path / name, 8, 4)
    assert found.words == 0 + 4 + 0 + 10 + 4  # words of each line, and the line ends
    nats = found.evaluation.nats * (len(model.tokenizer.encode(TEXT).ids) - 1)
    assert found.word_perplexity == pytest.approx(exp(nats / 18))
    assert f"perplexity {found.word_perplexity:.2f} by word, of 18 with line ends" in wikitext.render_words(found)


def test_sets_that_are_not_are_named(tmp_path):
    with pytest.raises(DataError, match="expected wiki.valid.tokens, wiki.valid.raw or valid.txt of WikiText"):
        wikitext.find(tmp_path, "valid")
    with pytest.raises(DataError, match="no set 'dev', expected one of train, valid, test"):
        wikitext.find(tmp_path, "dev")


@pytest.mark.parametrize(("split", "words"), [("valid", 217_646), ("test", 245_569)])
def test_the_words_are_those_that_the_papers_count(monkeypatch, split, words):
    if not SHARED.is_dir():
        pytest.skip("no shared/data/wikitext2")
    monkeypatch.setattr(wikitext, "evaluate", lambda *_: None)
    assert wikitext.measure(None, SHARED, split).words == words


def test_the_command_line_measures_it(model, tmp_path, capsys):
    tk.save(model, tmp_path / "model")
    (tmp_path / "wiki.valid.tokens").write_text(TEXT)
    given = ["eval", str(tmp_path / "model"), "--task", "lm/wikitext", "--data", str(tmp_path), "--split", "valid"]
    assert cli.main([*given, "--context", "8"]) == 0
    printed = capsys.readouterr().out
    assert cli.main([*given, "--context", "8", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["words"] == 18 and f"perplexity {found['word_perplexity']:.2f} by word" in printed
    assert cli.main([*given[:4], "--limit", "3"]) == 2
    assert "lm/wikitext: expected --data DIR" in capsys.readouterr().err
