"""The papers as runs of one command. A recipe takes a checkpoint, makes a smaller one, and reports what it cost."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from tinykron import checkpoint, data, kron
from tinykron.distill import Losses, layer_map
from tinykron.errors import CheckpointError, TinykronError
from tinykron.models.gpt2 import GPT2
from tinykron.nn import Embedding, Module, Unset
from tinykron.report import Measurement, Report, measure, write
from tinykron.train import History, Settings, fit

PROMPT_TOKENS = 12  # of held-out text, which every model of a report continues


@dataclass(frozen=True)
class KnGPT2:
    """The settings of the recipe `kngpt2`. KnGPT2 (arXiv 2110.08152) trained on 10 % of its text, once."""

    share: float = 0.1  # of the training text, for the light training
    passes: int = 1  # over that share
    batch: int = 8
    context: int = 256  # at most; never above the model's own
    lr: float = 1e-3
    head: str = "tied"  # "tied": logits through the embedding's factors; "dense": a matrix of its own, as in the paper
    losses: Losses = field(default_factory=Losses)
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise TinykronError(f"share: found {self.share}, expected above 0 and at most 1")
        if self.passes < 1:
            raise TinykronError(f"passes: found {self.passes}, expected at least 1")
        if self.head not in ("tied", "dense"):
            raise TinykronError(f'head: found "{self.head}", expected "tied" or "dense"')


def kngpt2(
    model: str | Path | None = None,
    source: str | Path | None = None,
    out: str | Path = "kngpt2",
    settings: KnGPT2 | None = None,
) -> Report | None:
    """Halve a GPT-2 by Kronecker products, distil it lightly, measure it beside its teacher and a truncated student.

    model   folder of the teacher; by default the shipped gpt2-tiny
    source  text file or folder; by default the text that every Python carries
    out     folder to make: report.md, report.json, report.png, losses.png, and the models `factorised`, `distilled`,
            `truncated`
    Returns the report, or None after Ctrl-C in a training; elsewhere a Ctrl-C is a KeyboardInterrupt. Either way the
    same call continues from the folder `<out>.partial`.
    Raises TinykronError, before any work, if `out` exists or the inputs do not fit.
    """
    settings, out = settings or KnGPT2(), Path(out)
    if out.exists():
        raise CheckpointError(f"{out}: exists already; choose another --out, or remove it")
    folder = Path(model) if model is not None else data.weights_folder("gpt2-tiny")
    say(f"loading the teacher from {folder}")
    teacher = checkpoint.load(folder)
    if not isinstance(teacher, GPT2):
        raise CheckpointError(f"{folder}: kngpt2 takes a GPT-2, found a {type(teacher).__name__}")
    if teacher.tokenizer is None:
        raise CheckpointError(f"{folder}: expected a tokenizer.json, to read the text with")
    text = _texts(teacher, source, settings)
    partial = out.with_name(out.name + ".partial")
    dtype = checkpoint.stored_dtype(folder)

    say("factorising the embedding and every second block by 2")
    plan = kron.kngpt2_plan(teacher)
    factorised = kron.factorise(teacher, plan)
    if settings.head == "dense" and factorised.head is None:
        _untie(factorised, teacher)
    _save(factorised, partial / "factorised", dtype)

    courses: dict[str, History] = {}
    students = {"distilled": factorised, "truncated": truncate(teacher)}
    for name, student in students.items():
        courses[name] = _light_training(name, student, teacher, text, settings, partial)
        if courses[name].interrupted:
            say(f"interrupted; the same command continues from {partial}")
            return None
        _save(student, partial / name, dtype)

    say("measuring teacher and students")
    folders = {"teacher": folder, **{name: partial / name for name in ("factorised", "distilled", "truncated")}}
    measured = measure(folders, text.held_out, text.prompt)
    report = Report(
        recipe="kngpt2",
        settings=_described(folder, source, text, settings),
        models=measured,
        plan=kron.plan_of(checkpoint.load(partial / "factorised")) or plan,
        courses=courses,
        prompt=teacher.tokenizer.decode(text.prompt),
        notes=_notes(measured, settings),
    )
    try:
        write(report, partial)
        for name in students:
            shutil.rmtree(partial / f"{name}.training", ignore_errors=True)
        os.replace(partial, out)
    except OSError as error:
        raise CheckpointError(f"{out}: cannot write the report: {error}; the models are in {partial}") from error
    return report


@dataclass(frozen=True)
class Texts:
    """The token streams of a run."""

    training_tokens: int
    light: np.ndarray  # the share for the light training
    held_out: np.ndarray
    prompt: list[int]


def _texts(teacher: Any, source: str | Path | None, settings: KnGPT2) -> Texts:
    """Read the text, hold some documents out, take the share for the light training."""
    training, held_out = data.split(data.documents(source))
    say(f"read {len(training)} documents for training, {len(held_out)} held out")
    tokens = data.encode(teacher.tokenizer, training)
    order = np.random.default_rng(settings.seed).permutation(len(training))
    light: list[np.ndarray] = []
    for index in order:  # whole documents, until their share is reached
        if sum(map(len, light)) >= settings.share * len(tokens):
            break
        light.append(data.encode(teacher.tokenizer, [training[index]]))
    held_out_tokens = data.encode(teacher.tokenizer, held_out)
    if len(held_out_tokens) < 2 * PROMPT_TOKENS:
        found = f"found {len(held_out_tokens)} held-out tokens, need {2 * PROMPT_TOKENS}"
        raise TinykronError(f"{source or 'the embedded text'}: too short: {found}")
    prompt = [int(token) for token in held_out_tokens[:PROMPT_TOKENS]]
    return Texts(len(tokens), np.concatenate(light), held_out_tokens, prompt)


def truncate(teacher: Any) -> Any:
    """Return a student of every second block of a GPT-2, all else copied: how DistilGPT2 starts. Sanh et al. 2019."""
    kept = range(0, teacher.config.n_layer, 2)
    student = type(teacher)(replace(teacher.config, n_layer=len(kept)), Unset())
    state = {}
    for name, array in teacher.state_dict().items():
        parts = name.split(".")
        if parts[0] != "blocks":
            state[name] = array
        elif int(parts[1]) in kept:
            state[".".join(["blocks", str(kept.index(int(parts[1]))), *parts[2:]])] = array
    student.load_state_dict(state)
    student.tokenizer = teacher.tokenizer
    return student


def _untie(student: Any, teacher: Any) -> None:
    """Give a student with a tied head a dense one of its own: the teacher's embedding."""
    student.head = Embedding(teacher.config.vocab_size, teacher.config.n_embd, Unset())
    student.head.load_state_dict({"weight": teacher.embedding.weight.data})
    student.config = replace(student.config, tie_word_embeddings=False)


def _light_training(name: str, student: Module, teacher: Any, text: Texts, settings: KnGPT2, partial: Path) -> History:
    context = min(settings.context, teacher.context, len(text.light) - 1)
    steps = max(1, round(settings.passes * len(text.light) / (settings.batch * context)))
    training = Settings(
        steps=steps,
        batch=settings.batch,
        context=context,
        lr=settings.lr,
        warmup=min(steps // 10, 100),
        weight_decay=0.0,
        seed=settings.seed,
        checkpoint_every=50,
    )
    title = f"distilling {name}"
    folder = partial / f"{name}.training"
    layers = layer_map(len(student.blocks), len(teacher.blocks))  # type: ignore[attr-defined]
    return fit(
        student,
        text.light,
        training,
        teacher=teacher,
        losses=settings.losses,
        layers=layers,
        folder=folder,
        title=title,
    )


def _save(model: Any, folder: Path, dtype: str) -> None:
    """Save a stage's model; one that a run before saved is replaced, for it is computed anew or continued."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.save(model, folder, dtype=dtype)


def _described(folder: Path, source: str | Path | None, text: Texts, settings: KnGPT2) -> dict[str, Any]:
    return {
        "teacher": folder.name,
        "text": str(source) if source else "the language reference and docstrings that every Python carries",
        "training tokens": text.training_tokens,
        "light training": f"{settings.passes} x {len(text.light):,} tokens ({settings.share:.0%} of the text)",
        "held-out tokens": len(text.held_out),
        "learning rate": settings.lr,
        "losses": str(settings.losses),
        "head": settings.head,
        "seed": settings.seed,
    }


def _notes(models: Sequence[Measurement], settings: KnGPT2) -> list[str]:
    by_name: Mapping[str, Measurement] = {row.name: row for row in models}
    teacher, distilled = by_name["teacher"], by_name["distilled"]
    smaller = 1 - distilled.parameters / teacher.parameters
    before, after = (by_name[name].perplexity / teacher.perplexity for name in ("factorised", "distilled"))
    notes = [
        f"The distilled model has {smaller:.0%} fewer parameters than its teacher and takes "
        f"{distilled.bytes / teacher.bytes:.0%} of its bytes, at {after:.2f} times its perplexity; "
        f"before distillation it was {before:.2f} times.",
    ]
    better = "below" if distilled.perplexity < by_name["truncated"].perplexity else "above"
    notes.append(
        f"Its perplexity is {better} that of the truncated student, in this one run with seed {settings.seed}."
    )
    return notes


def say(line: str) -> None:
    """Tell the user what is being done, on standard error."""
    print(line, file=sys.stderr, flush=True)
