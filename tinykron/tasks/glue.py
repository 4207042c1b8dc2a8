"""GLUE: its nine tasks in their official files, their metrics, the files that its server takes. Wang et al. 2019."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from tinykron.backend import to_device
from tinykron.data.batch import Batch
from tinykron.data.corpus import read_text
from tinykron.errors import DataError
from tinykron.fused import cross_entropy, log_softmax
from tinykron.tasks import metrics
from tinykron.tasks.features import Features, encode
from tinykron.tensor import Tensor

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Source = Path | Mapping[str, str]  # a folder, or the text of files by name
Metric = Callable[[np.ndarray, np.ndarray], float]
UNLABELLED = "-"  # MultiNLI's gold label where its annotators did not agree: left out, as its authors do
LARGEST_SCORE = 5.0  # of STS-B, from 0 on


@dataclass(frozen=True)
class Example:
    """One text or a pair of texts, and what is said of it."""

    texts: tuple[str, ...]
    label: int | float | None  # number of the class, or a score; None in a test set
    index: str  # by which a test set numbers it


@dataclass(frozen=True)
class Split:
    """The examples of one set."""

    examples: list[Any]  # Examples, or Questions of SQuAD
    dropped: int = 0  # lines left out: QQP's broken ones, MNLI's without a gold label


@dataclass(frozen=True)
class File:
    """A tab-separated file, or the part of it that belongs to one set."""

    name: str
    columns: tuple[str, ...] = ()  # () where the first line names them
    ids: str = ""  # file of pairs of ids, one pair a line: of the rows, only those it lists are taken
    listed: bool = True  # False: only those it does not list
    longer: bool = False  # a line may hold more cells


@dataclass(frozen=True)
class Glue:
    """A task of texts or pairs of texts, in tab-separated files."""

    name: str
    folder: str  # of its files, within GLUE's
    texts: tuple[str, ...]  # names of columns
    label: str  # name of a column
    classes: tuple[str, ...]  # as the files call them, in the order of the hub's nyu-mll/glue; () for scores
    metrics: Mapping[str, Metric]
    files: Mapping[str, tuple[tuple[File, ...], ...]]  # of each set, the ways in which it is found
    submissions: Mapping[str, str] = field(default_factory=dict)  # of each test set, the file that the server takes
    index: str = "index"  # name of a test set's column
    drops_broken: bool = False  # lines of another number of cells are left out, and counted

    head: ClassVar[str] = "sequence"
    context: ClassVar[int] = 128  # most tokens of an example, as Devlin et al. 2019

    @property
    def labels(self) -> int:
        """How many numbers the head gives."""
        return len(self.classes) or 1

    @property
    def dev(self) -> list[str]:
        """The sets that a model is measured on: MNLI has two."""
        return [split for split in self.files if split.startswith("dev")]

    # Reading ----------------------------------------------------------------------------------------------------------

    def read(self, source: Source, split: str) -> Split:
        """Read one set, "train", "dev" or "test", of MNLI also "dev_matched", "dev_mismatched" and so on.

        source  the folder of the task's files, or GLUE's own that holds it; or the text of files by name
        A line ends at a newline, a cell at a tab; nothing else is special, least of all a quotation mark.
        Raises DataError naming the file, and the line, for what does not fit.
        """
        if split not in self.files:
            raise DataError(f"{self.name} has no set {split!r}, expected one of {', '.join(self.files)}")
        for chosen in self.files[split]:
            texts = [self._text(source, file.name) for file in chosen]
            if None not in texts:
                break
        else:
            names = " or ".join(" with ".join(file.name for file in way) for way in self.files[split])
            where = source if isinstance(source, Path) else "the files given"
            raise DataError(f"{where}: expected {names} of {self.name}, there or in a folder {self.folder}")
        parts = [self._examples(source, file, text or "", split) for file, text in zip(chosen, texts, strict=True)]
        return Split([example for part in parts for example in part.examples], sum(part.dropped for part in parts))

    def _text(self, source: Source, name: str) -> str | None:
        """Return the text of a file, without its byte-order mark; None where it is not."""
        if not isinstance(source, Path):
            return source.get(name)
        path = next((path for path in (source / name, source / self.folder / name) if path.is_file()), None)
        return read_text(path) if path else None

    def _examples(self, source: Source, file: File, text: str, split: str) -> Split:
        tested = split in self.submissions
        rows = list(_rows(text))
        columns = list(file.columns) or (rows.pop(0)[1] if rows else [])
        wanted = [*self.texts, *([] if tested else [self.label]), *(["#1 ID", "#2 ID"] if file.ids else [])]
        if lacking := [name for name in wanted if name not in columns]:
            raise DataError(f"{file.name}: expected columns {', '.join(wanted)}; found no {', '.join(lacking)}")
        listed = {tuple(cells) for _, cells in _rows(self._text(source, file.ids) or "")} if file.ids else set()
        if file.ids and not listed:
            raise DataError(f"{file.name}: needs {file.ids} beside it, which says what is held out; found none")
        examples, dropped = [], 0
        for number, (line, cells) in enumerate(rows):
            if len(cells) < len(columns) or (len(cells) > len(columns) and not file.longer):
                if not self.drops_broken:
                    raise DataError(f"{file.name}, line {line}: found {len(cells)} cells, expected {len(columns)}")
                dropped += 1
                continue
            row = dict(zip(columns, cells, strict=False))
            if file.ids and ((row["#1 ID"], row["#2 ID"]) in listed) != file.listed:
                continue
            if not tested and row[self.label] == UNLABELLED:
                dropped += 1
                continue
            label = None if tested else self._label(row[self.label], f"{file.name}, line {line}")
            index = row.get(self.index, str(number))
            examples.append(Example(tuple(row[name] for name in self.texts), label, index))
        if not examples:
            raise DataError(f"{file.name}: expected examples, found none")
        return Split(examples, dropped)

    def _label(self, text: str, where: str) -> int | float:
        if self.classes:
            if text not in self.classes:
                raise DataError(f"{where}: label {text!r}, expected one of {', '.join(self.classes)}")
            return self.classes.index(text)
        try:
            score = float(text)
        except ValueError:
            score = -1.0
        if not isfinite(score) or not 0.0 <= score <= LARGEST_SCORE:
            raise DataError(f"{where}: score {text!r}, expected a number from 0 to {LARGEST_SCORE:g}")
        return score

    # Learning, and being measured -------------------------------------------------------------------------------------

    def features(self, tokenizer: Tokenizer, examples: Sequence[Example], context: int) -> list[Features]:
        """Return what a model reads of each example, at most `context` tokens; the longer text is cut first."""
        encoded = encode(tokenizer, [example.texts for example in examples], context)
        targets = [example.label if example.label is not None else 0 for example in examples]
        return [Features(ids, types, target) for (ids, types), target in zip(encoded, targets, strict=True)]

    def loss(self, logits_BC: Tensor, batch: Batch, weights_C: np.ndarray | None = None) -> Tensor:
        """Return what training minimises, a scalar: the mean cross-entropy, or squared error of scores.

        weights_C  of each class, float32: its examples count so much more
        """
        if not self.classes:
            difference_B = logits_BC[:, 0] - to_device(batch.targets, logits_BC.device)
            return (difference_B * difference_B).mean()
        if weights_C is None:
            return cross_entropy(logits_BC, batch.targets)
        chosen_BC = np.eye(len(self.classes), dtype=np.float32)[batch.targets] * weights_C
        return -(log_softmax(logits_BC) * to_device(chosen_BC, logits_BC.device)).sum() / float(len(chosen_BC))

    def class_weights(self, examples: Sequence[Example]) -> np.ndarray:
        """Return weights (C,), float32, under which all classes together count alike; their mean over examples is 1."""
        if not self.classes:
            raise DataError(f"{self.name} has scores: there are no classes to weigh")
        counts_C = np.bincount([int(example.label or 0) for example in examples], minlength=len(self.classes))
        present = np.count_nonzero(counts_C)
        return (len(examples) / (present * np.maximum(counts_C, 1))).astype(np.float32)

    def measure(
        self, examples: Sequence[Example], features: Sequence[Features], logits: Sequence[np.ndarray]
    ) -> dict[str, float]:
        """Return the task's official metrics, by name, of the logits (C,) of each example."""
        gold_N = np.array([example.label for example in examples])
        return {name: metric(self._answers(logits), gold_N) for name, metric in self.metrics.items()}

    def details(
        self, examples: Sequence[Example], features: Sequence[Features], logits: Sequence[np.ndarray]
    ) -> dict[str, float]:
        """Return what is worth knowing beside the metrics: nothing."""
        return {}

    def _answers(self, logits: Sequence[np.ndarray]) -> np.ndarray:
        logits_NC = np.stack(logits)
        return logits_NC.argmax(axis=1) if self.classes else logits_NC[:, 0]

    def answer_files(
        self, split: str, examples: Sequence[Example], features: Sequence[Features], logits: Sequence[np.ndarray]
    ) -> dict[str, str]:
        """Return the file of predictions for a test set that GLUE's server takes: its text by its name."""
        answers = self._answers(logits)
        if self.classes:
            said = [self.classes[answer] for answer in answers]
        else:
            said = [f"{score:.3f}" for score in np.clip(answers, 0.0, LARGEST_SCORE)]
        rows = [f"{example.index}\t{answer}\n" for example, answer in zip(examples, said, strict=True)]
        return {self.submissions[split]: "index\tprediction\n" + "".join(rows)}


def _rows(text: str) -> Iterator[tuple[int, list[str]]]:
    """Yield (number of the line, cells) of each line that is not empty. Other separators of lines are text."""
    for number, line in enumerate(text.split("\n"), start=1):
        if line.removesuffix("\r"):
            yield number, line.removesuffix("\r").split("\t")


# The tasks ------------------------------------------------------------------------------------------------------------


def plain_files(*splits: str) -> dict[str, tuple[tuple[File, ...], ...]]:
    """Return where sets are that have one file each, with a header: "dev" in dev.tsv."""
    return {split: ((File(f"{split}.tsv"),),) for split in splits}


SETS = plain_files("train", "dev", "test")
COLA = ("source", "label", "notation", "sentence")
STS = ("genre", "filename", "year", "old_index", "score", "sentence1", "sentence2")
ACCURACY = {"accuracy": metrics.accuracy}
F1_ACCURACY = {"f1": metrics.f1} | ACCURACY
PAIR = ("sentence1", "sentence2")
BINARY = ("0", "1")
ENTAILMENT = ("entailment", "not_entailment")

COLA_FILES = {  # GLUE's, or CoLA's own, whose two dev sets are GLUE's one
    "train": ((File("train.tsv", COLA),), (File("in_domain_train.tsv", COLA),)),
    "dev": ((File("dev.tsv", COLA),), (File("in_domain_dev.tsv", COLA), File("out_of_domain_dev.tsv", COLA))),
    "test": ((File("test.tsv"),),),
}
MRPC_RAW = "msr_paraphrase_train.txt"  # GLUE may not hand MRPC out: it comes as released, and dev_ids.tsv cuts it
MRPC_FILES = {
    "train": ((File("train.tsv"),), (File(MRPC_RAW, ids="dev_ids.tsv", listed=False),)),
    "dev": ((File("dev.tsv"),), (File(MRPC_RAW, ids="dev_ids.tsv"),)),
    "test": ((File("test.tsv"),), (File("msr_paraphrase_test.txt"),)),
}
STS_FILES = {  # GLUE's, or the benchmark's own, some of whose lines name a source behind
    split: ((File(f"{split}.tsv"),), (File(f"sts-{split}.csv", STS, longer=True),))
    for split in ("train", "dev", "test")
}
MNLI_FILES = plain_files("train", "dev_matched", "dev_mismatched", "test_matched", "test_mismatched")

TASKS = {
    task.name: task
    for task in (
        Glue(
            "glue/cola", "CoLA", ("sentence",), "label", BINARY, {"matthews": metrics.matthews}, COLA_FILES,
            {"test": "CoLA.tsv"},
        ),
        Glue("glue/sst2", "SST-2", ("sentence",), "label", BINARY, ACCURACY, SETS, {"test": "SST-2.tsv"}),
        Glue(
            "glue/mrpc", "MRPC", ("#1 String", "#2 String"), "Quality", BINARY, F1_ACCURACY, MRPC_FILES,
            {"test": "MRPC.tsv"},
        ),
        Glue(
            "glue/stsb", "STS-B", PAIR, "score", (), {"pearson": metrics.pearson, "spearman": metrics.spearman},
            STS_FILES, {"test": "STS-B.tsv"},
        ),
        Glue(
            "glue/qqp", "QQP", ("question1", "question2"), "is_duplicate", BINARY, F1_ACCURACY, SETS,
            {"test": "QQP.tsv"}, index="id", drops_broken=True,
        ),
        Glue(
            "glue/mnli", "MNLI", PAIR, "gold_label", ("entailment", "neutral", "contradiction"), ACCURACY, MNLI_FILES,
            {"test_matched": "MNLI-m.tsv", "test_mismatched": "MNLI-mm.tsv"},
        ),
        Glue("glue/qnli", "QNLI", ("question", "sentence"), "label", ENTAILMENT, ACCURACY, SETS, {"test": "QNLI.tsv"}),
        Glue("glue/rte", "RTE", PAIR, "label", ENTAILMENT, ACCURACY, SETS, {"test": "RTE.tsv"}),
        Glue("glue/wnli", "WNLI", PAIR, "label", BINARY, ACCURACY, SETS, {"test": "WNLI.tsv"}),
    )
}  # fmt: skip
