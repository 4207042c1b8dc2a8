"""Measuring a model for a report: sizes, speeds, held-out perplexity, a task's score, and a sample of what it says."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tinykron import checkpoint, tasks
from tinykron.data.masking import Masking
from tinykron.decode.generate import generate
from tinykron.measure.costs import flops_per_token
from tinykron.measure.perplexity import masked_perplexity, perplexity
from tinykron.tasks import similarity
from tinykron.tasks.features import predict
from tinykron.tasks.glue import Glue
from tinykron.tensor import no_grad

SAMPLE_TOKENS = 48  # of each model's text in a report; fewer where the context is short
GAP = 6  # a masked model's sample has one hidden token in so many
SHOWN = 3  # examples whose class a classifier's sample says


@dataclass(frozen=True)
class Measurement:
    """One model of a report. What a model does not do is None."""

    name: str
    parameters: int  # all that is stored
    parameters_without_head: int  # less the output head, where that is a matrix of its own
    bytes: int  # of the tensor files on disk
    flops_per_token: int  # forward, at half the context
    reading: float  # tokens a second, forward over whole windows
    writing: float | None = None  # tokens a second, greedy decoding of one sequence
    perplexity: float | None = None  # held-out, per token; of hidden tokens for a masked model
    score: float | None = None  # of its task: the mean of the official metrics
    similarity: float | None = None  # Pearson's correlation of its sentence embeddings with people's scores
    sample: str = ""  # what it writes after the report's prompt, fills its gaps with, or says of examples


def prompt_text(model: Any, prompt_ids: Sequence[int]) -> str:
    """Return what a report says its samples start from: "" for a model without samples."""
    if model.writes:
        return model.tokenizer.decode(list(prompt_ids))
    if model.fills:
        return model.tokenizer.decode(_with_gaps(model, prompt_ids).tolist(), skip_special_tokens=False)
    return ""


def measure(
    folders: Mapping[str, str | Path],
    held_out: np.ndarray,
    prompt_ids: Sequence[int],
    task: tasks.Task | None = None,
    task_folder: str | Path | None = None,
    pairs: str | Path | None = None,
) -> list[Measurement]:
    """Load the models in `folders`, by name, and measure each.

    held_out    (N,) token ids that no model was trained on
    prompt_ids  of the text that each continues, or fills the gaps of
    task        that the models with its head are measured by; task_folder holds its files
    pairs       of sentences with people's scores, as `similarity.read` takes them, for a BERT without another head
    """
    models = {name: checkpoint.load(folder) for name, folder in folders.items()}
    reading, writing = speeds(models, held_out, prompt_ids)
    measured = []
    for name, model in models.items():
        row = Measurement(
            name=name,
            parameters=model.parameter_count(),
            parameters_without_head=model.parameter_count() - _own_head(model),
            bytes=checkpoint.tensor_bytes(folders[name]),
            flops_per_token=flops_per_token(model, model.context // 2),
            reading=reading[name],
            writing=writing.get(name),
        )
        title = f"reading held-out text, {name}"
        if model.writes:
            written = generate(model, prompt_ids, max_new_tokens=_sample_tokens(model, prompt_ids), stop=())[0]
            sample = model.tokenizer.decode(list(written[len(prompt_ids) :]))
            row = replace(row, perplexity=perplexity(model, held_out, model.context, title=title), sample=sample)
        elif model.fills:
            masking = Masking.of(model.tokenizer)
            value = masked_perplexity(model, held_out, model.context, masking)
            row = replace(row, perplexity=value, sample=_filled(model, prompt_ids))
        elif task is not None and model.config.head == task.head:
            score = tasks.evaluate(model, task, task_folder).score
            row = replace(row, score=score, sample=_told(model, task, task_folder))
        if pairs is not None and not model.causal:
            row = replace(row, similarity=similarity.measure(model, pairs).pearson)
        measured.append(row)
    return measured


def _own_head(model: Any) -> int:
    """Return the parameters of an output matrix that is not the embedding."""
    return model.head.parameter_count() if model.writes and model.head else 0


def speeds(
    models: Mapping[str, Any], tokens: np.ndarray, prompt_ids: Sequence[int], rounds: int = 5
) -> tuple[dict[str, float], dict[str, float]]:
    """Return tokens a second, by model: of the forward pass, and, where it writes, of greedy decoding with its prompt.

    The models take turns, so that a busy moment of the machine meets them all; the best of `rounds` counts.
    """
    reading: dict[str, float] = {}
    writing: dict[str, float] = {}
    with no_grad():
        for turn in range(rounds + 1):
            for name, model in models.items():
                ids_BT = np.resize(tokens, (4, min(model.context, 256))).astype(np.int64)
                start = time.perf_counter()
                model(ids_BT).hidden[-1].numpy()
                read = ids_BT.size / (time.perf_counter() - start)
                if turn:  # the first warms up
                    reading[name] = max(reading.get(name, 0.0), read)
                if model.writes:
                    count, start = _sample_tokens(model, prompt_ids), time.perf_counter()
                    generate(model, prompt_ids, max_new_tokens=count, stop=())
                    written = count / (time.perf_counter() - start)
                    if turn:
                        writing[name] = max(writing.get(name, 0.0), written)
    return reading, writing


def _sample_tokens(model: Any, prompt_ids: Sequence[int]) -> int:
    return min(SAMPLE_TOKENS, model.context - len(prompt_ids))


def _with_gaps(model: Any, ids: Sequence[int]) -> np.ndarray:
    hidden = np.array(ids[: model.context - 2])
    hidden[GAP // 2 :: GAP] = Masking.of(model.tokenizer).mask
    return hidden


def _filled(model: Any, ids: Sequence[int]) -> str:
    """Return the prompt with its gaps filled, each by the likeliest token."""
    masking, hidden = Masking.of(model.tokenizer), _with_gaps(model, ids)
    with no_grad():
        guessed = model(masking.frame(hidden[None])).logits.numpy()[0, 1:-1].argmax(axis=-1)
    return model.tokenizer.decode(np.where(hidden == masking.mask, guessed, hidden).tolist())


def _told(model: Any, task: tasks.Task, folder: str | Path | None) -> str:
    """Return the first examples of a task's dev set with what a model says of each."""
    if not isinstance(task, Glue):
        return ""
    examples = task.read(tasks.source_of(task, folder), task.dev[0]).examples[:SHOWN]
    features = task.features(model.tokenizer, examples, tasks.check_context(model, task, None))
    lines = []
    for example, logits in zip(examples, predict(tasks.ready(model, task), features), strict=True):
        said = task.classes[int(logits.argmax())] if task.classes else f"{logits[0]:.2f}"
        lines.append(f"{' | '.join(example.texts)} -> {said}")
    return "\n".join(lines)
