"""The training loop: one for texts, examples and labelled tasks, alone or beside a teacher.

A step's batch and dropout masks depend on (seed, step) alone. So the parameters, the optimiser's slots and the number
of the step are all there is to save, and a run that was killed continues to the very same bits on a CPU.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import inf, isfinite
from pathlib import Path
from typing import Any

import numpy as np

from tinykron.backend import to_host
from tinykron.data.batch import Batch
from tinykron.data.instructions import Examples
from tinykron.data.masking import Masking
from tinykron.distill.losses import Losses
from tinykron.distill.objective import Distillation
from tinykron.errors import Interrupted, TinykronError
from tinykron.measure.perplexity import held_out_perplexity
from tinykron.nn import Module, seed_dropout
from tinykron.optim import AdamW, clip_gradients, decay_groups, schedule
from tinykron.support.progress import Progress
from tinykron.tensor import Tensor
from tinykron.threads import long_work
from tinykron.train.batches import Batches, Feed
from tinykron.train.resume import CHECKPOINT, best_weights, resume_run, save_run, write_best
from tinykron.train.settings import History, Settings, mean_score

Objective = Callable[[Batch, float], tuple[Tensor, dict[str, float]]]  # batch, share of the run done -> loss, its terms


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
    folder    where checkpoints go: a run found there, of the same settings on the same inputs, is continued
    Raises what `run` raises.
    """
    losses = losses or (Losses() if teacher is not None else Losses(0.0, 0.0, 0.0, 1.0))
    distillation = distillation or Distillation(student, teacher, losses, layers or (), seed=settings.seed)
    feed = Feed(distillation, tokens, settings, masking)

    def perplexity(history: History) -> None:
        value = held_out_perplexity(student, held_out, settings.context, masking)  # type: ignore[arg-type]
        history.perplexities.append((history.steps, value))

    evaluate = perplexity if held_out is not None else None
    return run(student, feed, distillation, settings, evaluate=evaluate, folder=folder, title=title)


def run(
    model: Module,
    batches: Batches,
    objective: Distillation | Objective,
    settings: Settings,
    *,
    evaluate: Callable[[History], None] | None = None,
    patience: int = 0,
    keep_best: bool = False,
    folder: str | Path | None = None,
    title: str = "training",
) -> History:
    """Train `model` in place, step by step: the one loop of tinykron.

    batches    of each step, with its share of the step's loss
    objective  loss and terms of a batch; of a `Distillation`, the terms' shares of the gradient are measured as well,
               and what it learns beside the student is trained with it
    evaluate   measures the model after `settings.evaluate_every` steps and after the last, and adds to the history
    patience   evaluations without a better score after which training ends; 0: never
    keep_best  the model ends with the weights that had the best score
    folder     where checkpoints go: a run found there, of the same settings on the same inputs, is continued
    Ctrl-C finishes the step, writes a checkpoint and raises Interrupted. Raises TinykronError if the loss becomes NaN
    or infinite, CheckpointError for the checkpoint of another run.
    """
    distillation = objective if isinstance(objective, Distillation) else None
    adapters = distillation.adapters if distillation else None
    trained = [model, adapters] if adapters else [model]
    optimiser = AdamW(
        [group for part in trained for group in decay_groups(part, settings.weight_decay)], settings.lr, settings.betas
    )
    factor = schedule(settings.schedule, settings.steps, settings.warmup, settings.floor)
    history = History(settings, inputs=batches.digest())
    path = Path(folder) / CHECKPOINT if folder else None
    best: dict[str, np.ndarray] = {}
    if path and path.exists():
        resume_run(path, model, optimiser, history, adapters)
        best = best_weights(path.parent) if history.scores else {}
    kept = history.steps  # as many as the checkpoint holds

    def over() -> bool:
        stale = patience and len(history.scores) - 1 - history.best() >= patience
        return bool(stale) or history.steps == settings.steps

    model.train()
    total, done = (steps * batches.per_step for steps in (settings.steps, history.steps))
    with long_work(), interruptible() as stop, Progress(title, total, batches.unit, done) as progress:
        while not over() and not stop.is_set():
            step = history.steps
            optimiser.lr = settings.lr * factor(step)
            if distillation and _is_due(step, settings) and len(distillation.losses.at(_progress(step, settings))) > 1:
                first, _ = next(batches(step))
                norms = term_norms(distillation, first, (settings.seed, step), _progress(step, settings))
                history.term_norms.append((step, norms))
            terms = _gradients(model, batches, objective, settings, step)
            history.terms.append(terms)
            parameters = [parameter for part in trained for parameter in part.parameters()]
            history.gradient_norms.append(clip_gradients(parameters, settings.clip))
            if not all(map(isfinite, (*terms.values(), history.gradient_norms[-1]))):
                raise TinykronError(f"{title}: the loss became {terms} at step {step}; try a lower learning rate")
            optimiser.step()
            history.steps += 1
            last = history.steps == settings.steps
            due = settings.evaluate_every and history.steps % settings.evaluate_every == 0
            if evaluate and (last or due):
                evaluate(history)
                if keep_best and history.best() == len(history.scores) - 1:
                    best = {name: to_host(array).copy() for name, array in model.state_dict().items()}
                    write_best(path, best)
            progress.advance(batches.per_step, _note(history))
            if path and (last or history.steps % settings.checkpoint_every == 0):
                save_run(path, model, optimiser, history, adapters)
                kept = history.steps
        if path and history.steps > kept:  # Ctrl-C or the end of patience came between two checkpoints
            save_run(path, model, optimiser, history, adapters)
    model.zero_grad()
    model.eval()
    if stop.is_set() and not over():
        raise Interrupted(f"{title}: interrupted after {history.steps} of {settings.steps} steps")
    if best:
        model.load_state_dict(best)
    return history


def _is_due(step: int, settings: Settings) -> bool:
    """Whether the terms' gradients are measured in a step: now and then, and in the last."""
    every = settings.measure_every
    return bool(every) and (step % every == 0 or step == settings.steps - 1)


def _progress(step: int, settings: Settings) -> float:
    """Return the share of the run that is over before a step: 0 for the first, 1 for the last."""
    return step / max(1, settings.steps - 1)


def _gradients(
    model: Module, batches: Batches, objective: Distillation | Objective, settings: Settings, step: int
) -> dict[str, float]:
    """Fill the gradients of one step; return the terms, averaged over its batches."""
    if isinstance(objective, Distillation):
        objective.start(settings.seed, step)
    else:
        model.zero_grad()
        seed_dropout(model, settings.seed, step)
    sums: dict[str, float] = {}
    for batch, share in batches(step):
        loss, terms = objective(batch, _progress(step, settings))
        (loss * share).backward()
        for name, value in terms.items():
            sums[name] = sums.get(name, 0.0) + share * value
    return sums


def _note(history: History) -> str:
    """Return what progress says: the terms of the last step, and the last evaluation."""
    note = [f"{name} {value:.3f}" for name, value in history.terms[-1].items()]
    note += [f"held-out perplexity {value:.2f}" for _, value in history.perplexities[-1:]]
    note += [f"score {100 * mean_score(found):.2f}" for _, found in history.scores[-1:]]
    return ", ".join(note)


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
