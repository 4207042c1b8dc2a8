"""The training loop: batches, schedule, clipping, progress, checkpoints.

A step's batch and dropout masks depend on (seed, step) alone. So the parameters, the optimiser's slots and the number
of the step are all there is to save, and a run that was killed continues to the very same bits on a CPU.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import inf, isfinite
from pathlib import Path
from typing import Any

import numpy as np

from tinykron.data.instructions import Examples
from tinykron.data.masking import Masking
from tinykron.distill.losses import Losses
from tinykron.distill.objective import Distillation
from tinykron.distill.teacher_cache import TeacherCache
from tinykron.errors import TinykronError
from tinykron.measure.perplexity import held_out_perplexity
from tinykron.nn import Module
from tinykron.optim import AdamW, clip_gradients, decay_groups, schedule
from tinykron.support.progress import Progress
from tinykron.threads import long_work
from tinykron.train.batches import Feed
from tinykron.train.resume import CHECKPOINT, resume_run, save_run
from tinykron.train.settings import History, Settings


def fit(
    student: Module,
    tokens: np.ndarray | Examples,
    settings: Settings,
    *,
    teacher: Module | None = None,
    losses: Losses | None = None,
    layers: Sequence[int] | None = None,
    distillation: Distillation | None = None,
    held_out: np.ndarray | None = None,
    masking: Masking | None = None,
    cache: TeacherCache | None = None,
    folder: str | Path | None = None,
    title: str = "training",
) -> History:
    """Train `student` in place on random windows of `tokens`, on the text alone or beside a teacher.

    tokens    (N,) token ids, or examples, of which a step draws `batch` whole ones; held_out, (N,) token ids, is
              evaluated as the settings say and at the end
    losses    what counts; by default the cross-entropy alone without a teacher, and KnGPT2's four terms with one
    layers    the teacher's layer for each of the student's; by default every k-th
    distillation  what to minimise, in place of these three: such as `exits.SortedLoss`
    masking   trains a masked language model: hidden tokens are predicted, in place of the next one
    cache     keeps the teacher's outputs on disk: a batch that comes again, as `settings.epoch` says, is read there
    folder    where checkpoints go: a run found there, of the same settings on the same inputs, is continued
    Ctrl-C finishes the step, writes a checkpoint and returns. Raises TinykronError if the loss becomes NaN or infinite.
    """
    losses = losses or (Losses() if teacher is not None else Losses(0.0, 0.0, 0.0, 1.0))
    distillation = distillation or Distillation(student, teacher, losses, layers or (), seed=settings.seed)
    feed = Feed(distillation, tokens, settings, masking, cache)
    adapters = distillation.adapters
    groups = [group for part in (student, adapters) for group in decay_groups(part, settings.weight_decay)]
    optimiser = AdamW(groups, settings.lr, settings.betas)
    factor = schedule(settings.schedule, settings.steps, settings.warmup, settings.floor)
    history = History(settings, inputs=feed.digest())
    path = Path(folder) / CHECKPOINT if folder else None
    if path and path.exists():
        resume_run(path, student, optimiser, history, adapters)
    kept = history.steps  # as many as the checkpoint holds
    student.train()
    unit, each = "tokens", settings.tokens_per_step
    if isinstance(tokens, Examples):  # which are of unequal length
        unit, each = "examples", settings.batch * settings.accumulate
    total, done = (steps * each for steps in (settings.steps, history.steps))
    with long_work(), interruptible() as stop, Progress(title, total, unit, done) as progress:
        while history.steps < settings.steps and not stop.is_set():
            step = history.steps
            optimiser.lr = settings.lr * factor(step)
            if _is_due(step, settings) and len(feed.weights(step)) > 1:
                history.term_norms.append((step, _term_norms(feed, step)))
            terms = _gradients(feed, step)
            history.terms.append(terms)
            trained = [*student.parameters(), *adapters.parameters()]
            history.gradient_norms.append(clip_gradients(trained, settings.clip))
            if not all(map(isfinite, (*terms.values(), history.gradient_norms[-1]))):
                raise TinykronError(f"{title}: the loss became {terms} at step {step}; try a lower learning rate")
            optimiser.step()
            history.steps += 1
            last = history.steps == settings.steps
            due = settings.evaluate_every and history.steps % settings.evaluate_every == 0
            if held_out is not None and (last or due):
                value = held_out_perplexity(student, held_out, settings.context, masking)
                history.perplexities.append((history.steps, value))
            note = [f"{name} {value:.3f}" for name, value in terms.items()]
            note += [f"held-out perplexity {value:.2f}" for _, value in history.perplexities[-1:]]
            progress.advance(each, ", ".join(note))
            if path and (last or history.steps % settings.checkpoint_every == 0):
                save_run(path, student, optimiser, history, adapters)
                kept = history.steps
        if path and history.steps > kept:  # Ctrl-C came between two checkpoints
            save_run(path, student, optimiser, history, adapters)
        history.interrupted = stop.is_set() and history.steps < settings.steps
    student.zero_grad()
    student.eval()
    return history


def _is_due(step: int, settings: Settings) -> bool:
    """Whether the terms' gradients are measured in a step: now and then, and in the last."""
    every = settings.measure_every
    return bool(every) and (step % every == 0 or step == settings.steps - 1)


def _gradients(feed: Feed, step: int) -> dict[str, float]:
    """Fill the gradients of one step; return the terms, averaged over its batches."""
    distillation, settings = feed.distillation, feed.settings
    distillation.start(settings.seed, step)
    sums: dict[str, float] = {}
    for batch, known in feed.batches(step):
        loss, terms = distillation(batch, feed.progress(step), known)
        (loss * (1.0 / settings.accumulate)).backward()
        for name, value in terms.items():
            sums[name] = sums.get(name, 0.0) + value / settings.accumulate
    return sums


def _term_norms(feed: Feed, step: int) -> dict[str, float]:
    batch, known = next(feed.batches(step))
    return term_norms(feed.distillation, batch, (feed.settings.seed, step), feed.progress(step), known)


def term_norms(
    distillation: Distillation, batch: Any, seed: Sequence[int], progress: float = 0.0, known: Any = None
) -> dict[str, float]:
    """Return the norm of the student's gradient from each weighted term alone, on one batch; leave gradients behind.

    seed             of the student's dropout, the same for each term
    progress, known  as a `Distillation` takes them
    """
    norms, weights = {}, distillation.losses.at(progress)
    known = distillation.ask(batch, weights) if known is None else known
    for term in weights:
        distillation.start(*seed)
        distillation(batch, progress, known, only=(term,))[0].backward()
        norms[term] = clip_gradients(distillation.student.parameters(), inf)
    return norms


@contextmanager
def interruptible() -> Iterator[threading.Event]:
    """Turn the first Ctrl-C into an event that the loop looks at; a second one interrupts at once."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = signal.getsignal(signal.SIGINT)

    def ask(number: int, frame: Any) -> None:
        stop.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, ask)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


# Checkpoints: one file, replaced as a whole, so that there is always a whole one --------------------------------------
