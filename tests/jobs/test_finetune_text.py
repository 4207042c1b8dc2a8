"""Fine-tuning on a text: what it reads, that it learns, that it continues, what it refuses."""

from __future__ import annotations

import json

import numpy as np
import pytest

import tinykron as tk
from tests.tiny_teacher import make_encoder, make_teacher, write_text
from tests.tiny_training import interrupt
from tinykron import optim
from tinykron.commands import cli
from tinykron.errors import CheckpointError, DataError, Interrupted, TinykronError
from tinykron.jobs import finetune_text as jobs_finetune_text
from tinykron.jobs.finetune_text import TextTuning, finetune_text
from tinykron.train import loop

SETTINGS = TextTuning(epochs=1, batch=8, context=16, lr=1e-2)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    base = tmp_path_factory.mktemp("text")
    text = write_text(base / "text.txt")
    make_teacher(base / "gpt2", text, layers=1)
    make_encoder(base / "bert", text, layers=1)
    make_encoder(base / "bare", text, head=None, layers=1)
    (base / "wiki").mkdir()
    for split in ("train", "valid"):
        (base / "wiki" / f"wiki.{split}.tokens").write_text(text.read_text()[: 9000 if split == "train" else 900])
    return base


@pytest.mark.parametrize("model", ["gpt2", "bert"])
def test_a_language_model_learns_a_text(base, tmp_path, model):
    found = finetune_text(base / model, "lm/text", tmp_path / "out", base / "text.txt", SETTINGS)
    assert found.after < 0.5 * found.before
    assert found.steps == round(found.training_tokens / (8 * 16))
    assert f"{found.after:.2f}" in (tmp_path / "out/README.md").read_text()
    assert tk.load(tmp_path / "out").tokenizer is not None
    assert not (tmp_path / "out.training").exists()


def test_wikitexts_own_sets_are_read(base, tmp_path, capsys):
    arguments = ["finetune", str(base / "gpt2"), "--task", "lm/wikitext", "--data", str(base / "wiki"), "--lr", "1e-2"]
    arguments += ["--context", "16", "--epochs", "2", "--out", str(tmp_path / "out"), "--json"]
    assert cli.main(arguments) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["after"] < content["before"]
    tokens = len(tk.load(base / "gpt2").tokenizer.encode((base / "wiki/wiki.valid.tokens").read_text()).ids)
    assert content["held_out_tokens"] == tokens + 1  # and the end of the text


def test_a_run_that_was_stopped_continues_to_the_same_bits(base, tmp_path, monkeypatch):
    whole = finetune_text(base / "gpt2", "lm/text", tmp_path / "whole", base / "text.txt", SETTINGS)
    own, calls = optim.clip_gradients, []

    def stopping(*arguments):
        calls.append(1)
        if len(calls) == 3:
            interrupt()
        return own(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "clip_gradients", stopping)
        with pytest.raises(Interrupted):
            finetune_text(base / "gpt2", "lm/text", tmp_path / "out", base / "text.txt", SETTINGS)
    assert len(calls) == 3 and not (tmp_path / "out").exists()
    again = finetune_text(base / "gpt2", "lm/text", tmp_path / "out", base / "text.txt", SETTINGS)
    assert again == whole
    one, other = (tk.load(tmp_path / name).state_dict() for name in ("whole", "out"))
    assert all(np.array_equal(array, other[name]) for name, array in one.items())


def test_what_cannot_be_run_is_refused(base, tmp_path):
    text, out = base / "text.txt", tmp_path / "out"
    with pytest.raises(CheckpointError, match="exists already"):
        finetune_text(base / "gpt2", "lm/text", base / "wiki", text, SETTINGS)
    with pytest.raises(TinykronError, match="lm/text: this Bert has no head that predicts tokens"):
        finetune_text(base / "bare", "lm/text", out, text, SETTINGS)
    with pytest.raises(TinykronError, match="lm/wikitext: name the folder of its files with --data"):
        finetune_text(base / "gpt2", "lm/wikitext", out, None, SETTINGS)
    with pytest.raises(DataError, match="expected wiki.train.tokens"):
        finetune_text(base / "gpt2", "lm/wikitext", out, tmp_path, SETTINGS)
    with pytest.raises(TinykronError, match="epochs: found 0"):
        TextTuning(epochs=0)
    assert not out.exists() and jobs_finetune_text.NAMES == ("lm/text", "lm/wikitext")


@pytest.mark.parametrize("extra", [["--preset", "bert"], ["--lr", "1", "2"], ["--seeds", "2"], ["--class-weights"]])
def test_options_of_labelled_tasks_are_refused(base, tmp_path, capsys, extra):
    code = cli.main(["finetune", str(base / "gpt2"), "--task", "lm/text", "--out", str(tmp_path / "out"), *extra])
    assert code == 2 and "lm/text: " in capsys.readouterr().err
