"""A BERT of a few thousand parameters and labelled tasks of a few dozen lines, which it learns in milliseconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.data.test_masking import PROSE
from tinykron.data.masking import train_wordpiece
from tinykron.models.bert import Bert, BertConfig
from tinykron.tasks.features import Features
from tinykron.tasks.glue import TASKS
from tinykron.tasks.tuning import FineTuning

TOKENIZER = train_wordpiece(PROSE, 160)
CONTEXT = 16
SST2, STSB = TASKS["glue/sst2"], TASKS["glue/stsb"]
QUICK = FineTuning(epochs=3, batch=8, context=CONTEXT, lr=1e-2, checkpoint_every=1)
WORDS = ("number", "before", "the", "of")


def tiny_bert(
    seed: int = 0,
    head: str | None = "masked_lm",
    labels: int = 2,
    dropout: float = 0.0,
    context: int = CONTEXT,
    layers: int = 1,
) -> Bert:
    """A random BERT of width 8, whose matrices are large enough to tell texts apart."""
    config = BertConfig(
        TOKENIZER.get_vocab_size(), 8, layers, 2, 16, context, head=head, labels=labels,
        hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout,
    )  # fmt: skip
    model = Bert(config, np.random.default_rng(seed))
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.data *= 12.0
    model.tokenizer = TOKENIZER
    return model.eval()  # type: ignore[return-value]


def sentences(count: int, seed: int) -> list[tuple[str, int]]:
    """Texts of random words; those with "page" twice among them are of class 1, those with "tells" of class 0."""
    generator = np.random.default_rng(seed)
    drawn = [list(generator.choice(WORDS, generator.integers(3, 8))) for _ in range(count)]
    for number, words in enumerate(drawn):
        words[0] = words[-1] = "page" if number % 2 else "tells"
    return [(" ".join(words), number % 2) for number, words in enumerate(drawn)]


def write_sst2(folder: Path) -> Path:
    """Write train.tsv, dev.tsv and test.tsv in SST-2's columns."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, count, seed in (("train", 40, 1), ("dev", 15, 2)):
        lines = [f"{text}\t{label}\n" for text, label in sentences(count, seed)]
        (folder / f"{split}.tsv").write_text("sentence\tlabel\n" + "".join(lines))
    lines = [f"{number}\t{text}\n" for number, (text, _) in enumerate(sentences(5, 3))]
    (folder / "test.tsv").write_text("index\tsentence\n" + "".join(lines))
    return folder


def sst2_features(count: int = 40, seed: int = 1) -> list[Features]:
    return [
        Features(encoding.ids, encoding.type_ids, label)
        for text, label in sentences(count, seed)
        for encoding in [TOKENIZER.encode(text)]
    ]
