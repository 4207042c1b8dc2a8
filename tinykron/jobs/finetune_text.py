"""Fine-tuning a language model on a text, or on WikiText's files: `tinykron finetune --task lm/text`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tinykron import checkpoint, data
from tinykron.checkpoint.hub import resolve
from tinykron.data.masking import Masking
from tinykron.errors import TinykronError
from tinykron.jobs.making import making
from tinykron.measure.perplexity import held_out_perplexity
from tinykron.tasks import wikitext
from tinykron.train.loop import fit
from tinykron.train.settings import Settings

NAMES = ("lm/text", wikitext.NAME)


@dataclass(frozen=True)
class TextTuning:
    """How to fine-tune on a text: so many passes over it, at the first learning rate given, then less in a cosine."""

    epochs: int = 1
    batch: int = 8
    context: int = 256  # at most; never above the model's own
    accumulate: int = 1  # batches whose gradients are averaged before a step
    split_batch: int = 1  # parts into which a batch is cut, to take less memory
    lr: float = 5e-5
    seed: int = 0

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise TinykronError(f"epochs: found {self.epochs}, expected at least 1")


@dataclass(frozen=True)
class TextTuned:
    """What came of it: perplexity of the held-out text, before and after, of hidden tokens for a masked model."""

    task: str
    before: float
    after: float
    steps: int
    training_tokens: int
    held_out_tokens: int
    context: int


def finetune_text(
    model: str | Path, task: str, out: str | Path, source: str | Path | None, settings: TextTuning
) -> TextTuned:
    """Fine-tune a GPT-2, LLaMA or BERT with its masked-LM head on a text, and save it with a card.

    task    "lm/text": `source` is a file or folder, by default the text that every Python carries, of which a
            twentieth is held out by name; "lm/wikitext": the folder of its files, held out is the set "valid"
    Progress is kept in the folder `<out>.training`: after Ctrl-C, which raises Interrupted, or a kill, the same call
    continues there. Raises TinykronError, before any work, if `out` exists or the model predicts no tokens.
    """
    out = Path(out)
    with making(out) as work:
        student = checkpoint.load(model)
        if not student.writes and not student.fills:
            raise TinykronError(f"{task}: this {type(student).__name__} has no head that predicts tokens")
        if student.tokenizer is None:
            raise TinykronError(f"{task}: the model has no tokenizer to read text with")
        training, held_out = _documents(task, source)
        tokens, held_out_tokens = (data.encode(student.tokenizer, part) for part in (training, held_out))
        masking = None if student.writes else Masking.of(student.tokenizer)
        context = min(settings.context, student.context, len(tokens) - 1)
        a_step = settings.batch * context * settings.accumulate
        steps = max(1, round(settings.epochs * len(tokens) / a_step))
        run = Settings(
            steps=steps,
            batch=settings.batch,
            context=context,
            accumulate=settings.accumulate,
            split_batch=settings.split_batch,
            lr=settings.lr,
            warmup=steps // 10,
            weight_decay=0.01,
            seed=settings.seed,
        )
        before = held_out_perplexity(student, held_out_tokens, context, masking)
        fit(student, tokens, run, masking=masking, folder=work.progress, title=f"{task}, {steps} steps")
        saved = work.save(student, checkpoint.stored_dtype(resolve(model)))
        after = held_out_perplexity(saved, held_out_tokens, context, masking)
        found = TextTuned(task, before, after, steps, len(tokens), len(held_out_tokens), context)
        card = [f"# {out.name}", "", f"{Path(model).name}, fine-tuned by tinykron.", "", f"- settings: {settings}"]
        card += [*(f"- {line}" for line in render(found).splitlines()), ""]
        work.write("README.md", "\n".join(card))
        return found


def _documents(task: str, source: str | Path | None) -> tuple[Sequence[data.Document], Sequence[data.Document]]:
    if task == NAMES[0]:
        return data.split(data.documents(source))
    if source is None:
        raise TinykronError(f"{task}: name the folder of its files with --data")
    training, held_out = (
        [data.Document(name, text) for name, text in data.whole_files(wikitext.find(source, split))]
        for split in ("train", "valid")
    )
    return training, held_out


def render(found: TextTuned) -> str:
    """Return what came of it as a line for a terminal."""
    return (
        f"{found.task}: held-out perplexity {found.before:.2f} -> {found.after:.2f} in windows of {found.context} "
        f"({found.steps:,} steps; {found.training_tokens:,} tokens of text, {found.held_out_tokens:,} held out)"
    )
