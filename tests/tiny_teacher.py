"""A text of a few words, and a GPT-2 and a BERT of a few thousand parameters that read it, as folders."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import tinykron as tk
from tinykron import data
from tinykron.data.masking import train_wordpiece
from tinykron.models.bert import Bert, BertConfig
from tinykron.models.gpt2 import GPT2, GPT2Config


def write_text(path: Path, lines: int = 500) -> Path:
    words = "the list holds items and a dict maps keys to values while tuples stay as they are".split()
    generator = np.random.default_rng(3)
    text = [" ".join(generator.choice(words, 9)) + ".\n" + ("\n" if i % 5 == 4 else "") for i in range(lines)]
    path.write_text("".join(text))
    return path


def make_teacher(folder: Path, text: Path, layers: int = 4, with_tokenizer: bool = True) -> Path:
    tokenizer = data.train_tokenizer(data.documents(text), 300)
    config = GPT2Config(tokenizer.get_vocab_size(), n_positions=32, n_embd=16, n_layer=layers, n_head=2)
    model = GPT2(config, np.random.default_rng(1))
    model.tokenizer = tokenizer if with_tokenizer else None
    tk.save(model, folder, dtype="bfloat16")
    return folder


def make_encoder(folder: Path, text: Path, head: str | None = "masked_lm", layers: int = 2) -> Path:
    tokenizer = train_wordpiece(data.documents(text), 160)
    config = BertConfig(tokenizer.get_vocab_size(), 16, layers, 2, 32, 32, head=head)
    model = Bert(config, np.random.default_rng(1))
    model.tokenizer = tokenizer
    tk.save(model, folder, dtype="float32")
    return folder
