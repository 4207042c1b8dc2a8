"""WikiText's files as they were released, and perplexity by word as its papers count. Merity et al. 2017."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinykron.data.corpus import whole_files
from tinykron.errors import DataError
from tinykron.measure.perplexity import Evaluation, bounded_exp, evaluate, render

NAME = "lm/wikitext"
SETS = ("train", "valid", "test")


@dataclass(frozen=True)
class WikiText:
    """What a set of WikiText costs a model, by its own tokens and by the words that the papers count."""

    evaluation: Evaluation
    words: int  # separated by spaces, and one for the end of each line

    @property
    def word_perplexity(self) -> float:
        """The same cost by word: no tokenizer changes how many those are."""
        return bounded_exp(self.evaluation.nats * self.evaluation.of / self.words)


def find(folder: str | Path, split: str) -> Path:
    """Return the file of a set: wiki.test.tokens, wiki.test.raw or test.txt. Raises DataError where none is there."""
    if split not in SETS:
        raise DataError(f"{NAME} has no set {split!r}, expected one of {', '.join(SETS)}")
    names = f"wiki.{split}.tokens", f"wiki.{split}.raw", f"{split}.txt"
    found = next((path for name in names if (path := Path(folder) / name).is_file()), None)
    if found is None:
        raise DataError(f"{folder}: expected {', '.join(names[:-1])} or {names[-1]} of WikiText")
    return found


def measure(
    model: Any, folder: str | Path, split: str = "test", context: int | None = None, stride: int | None = None
) -> WikiText:
    """Return what a set of WikiText costs a model: the file is one stream, read as it is, `<unk>` and all.

    context, stride  of the windows, as `evaluate` takes them
    """
    path = find(folder, split)
    [(_, text)] = whole_files(path)
    lines = text.removesuffix("\n").split("\n")
    return WikiText(evaluate(model, path, context, stride), sum(len(line.split()) + 1 for line in lines))


def render_words(found: WikiText) -> str:
    """Return what was found as lines for a terminal."""
    return (
        f"{render(found.evaluation)}\nperplexity {found.word_perplexity:.2f} by word, of {found.words:,} with line ends"
    )
