"""The training loop: batches, schedule, clipping, progress, checkpoints.

A step's batch and dropout masks depend on (seed, step) alone. So the parameters, the optimiser's slots and the number
of the step are all there is to save, and a run that was killed continues to the very same bits on a CPU.
"""

from __future__ import annotations

import hashlib
import json
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from math import inf, isfinite
from pathlib import Path
from typing import Any

import numpy as np

from tinykron import data, safetensors_file
from tinykron.backend import long_work, to_host
from tinykron.distill import Batch, Distillation, Losses
from tinykron.errors import CheckpointError, TinykronError
from tinykron.evaluate import held_out_perplexity
from tinykron.instructions import Examples
from tinykron.masking import Masking
from tinykron.nn import Module
from tinykron.optim import AdamW, clip_gradients, decay_groups, schedule
from tinykron.progress import Progress
from tinykron.teacher_cache import TeacherCache

CHECKPOINT = "training.safetensors"
LEAST = {  # of each setting that is a whole number
    "steps": 1, "batch": 1, "context": 1, "accumulate": 1, "checkpoint_every": 1,
    "warmup": 0, "seed": 0, "evaluate_every": 0, "measure_every": 0, "epoch": 0,
}  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """How to train. Tokens per step: batch * context * accumulate."""

    steps: int
    batch: int = 16
    context: int = 256
    accumulate: int = 1  # batches whose gradients are averaged before a step
    lr: float = 1e-3
    schedule: str = "cosine"
    warmup: int = 0
    floor: float = 0.1  # where the schedule ends, as a share of lr
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 1.0
    seed: int = 0
    checkpoint_every: int = 100
    evaluate_every: int = 0  # 0: only at the end
    measure_every: int = 50  # steps: each term's share of the gradient, where there are several; 0: never
    epoch: int = 0  # steps after which the same batches come again; 0: never

    def __post_init__(self) -> None:
        for name, least in LEAST.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise TinykronError(
                    f"training setting {name}: found {value!r}, expected a whole number from {least} on"
                )
        for name in ("lr", "floor", "weight_decay", "clip"):
            value = getattr(self, name)
            if not _number(value) or value < 0.0 or (name == "clip" and not value):
                limit = "above 0" if name == "clip" else "from 0 on"
                raise TinykronError(f"training setting {name}: found {value!r}, expected a number {limit}")
        pair = self.betas if isinstance(self.betas, tuple) else ()
        if len(pair) != 2 or not all(_number(beta) and 0.0 <= beta < 1.0 for beta in pair):
            raise TinykronError(f"training setting betas: found {self.betas!r}, expected two numbers in [0, 1)")
        schedule(self.schedule, self.steps, self.warmup, self.floor)  # refuses what it does not know

    @property
    def tokens_per_step(self) -> int:
        return self.batch * self.context * self.accumulate


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and isfinite(value)


@dataclass
class History:
    """What a training went through."""

    settings: Any  # Settings; of a labelled task, FineTuning
    steps: int = 0  # done
    terms: list[dict[str, float]] = field(default_factory=list)  # of each step, before weighting
    gradient_norms: list[float] = field(default_factory=list)  # of each step, before clipping
    perplexities: list[tuple[int, float]] = field(default_factory=list)  # (steps done, held-out perplexity)
    term_norms: list[tuple[int, dict[str, float]]] = field(default_factory=list)  # (steps done, by term)
    inputs: str = ""  # fingerprint of the text, the teacher and the losses: a run continues on the same alone
    interrupted: bool = False  # stopped by Ctrl-C; the checkpoint holds the last whole step


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


@dataclass(frozen=True)
class Feed:
    """The batches of a run, and what the teacher says of them. They depend on (seed, place in the epoch) alone."""

    distillation: Distillation
    tokens: np.ndarray | Examples
    settings: Settings
    masking: Masking | None = None
    cache: TeacherCache | None = None

    def __post_init__(self) -> None:
        if self.pairs and self.masking is None:
            raise TinykronError("next_sentence: expected a masked language model, found no masking")
        if self.masking and isinstance(self.tokens, Examples):
            raise TinykronError("examples: are for causal models, found a masked language model")
        if self.cache and self.distillation.losses.needs_teacher:
            self.cache.open(self._origin(), self.epoch * self.settings.accumulate)

    @property
    def epoch(self) -> int:
        """Steps after which the same batches come again."""
        return self.settings.epoch or self.settings.steps

    @property
    def pairs(self) -> bool:
        return "next_sentence" in self.distillation.losses.terms

    def weights(self, step: int) -> dict[str, float]:
        """Return the weight of each term that counts in a step."""
        return self.distillation.losses.at(self.progress(step))

    def progress(self, step: int) -> float:
        """Return the share of the run that is over before a step: 0 for the first, 1 for the last."""
        return step / max(1, self.settings.steps - 1)

    def batches(self, step: int) -> Iterator[tuple[Batch, dict[str, Any]]]:
        """Yield each batch of a step, with what the teacher says of it."""
        generator = np.random.default_rng((self.settings.seed, step % self.epoch))
        for number in range(self.settings.accumulate):
            batch = self._drawn(generator)
            yield batch, self._known(batch, step, step % self.epoch * self.settings.accumulate + number)

    def _drawn(self, generator: np.random.Generator) -> Batch:
        if isinstance(self.tokens, Examples):
            return Batch(*self.tokens.sample_batch(self.settings.batch, generator))
        drawn = self.tokens, self.settings.batch, self.settings.context, generator
        if self.masking is None:
            return Batch(*data.sample_batch(*drawn))
        if self.pairs:
            ids_BT, targets_BT, types_BT, other_B = self.masking.sample_pairs(*drawn)
            return Batch(ids_BT, targets_BT, None, types_BT, other_B)
        return Batch(*self.masking.sample_batch(*drawn))

    def _known(self, batch: Batch, step: int, number: int) -> dict[str, Any]:
        ask, losses = self.distillation.ask, self.distillation.losses
        if self.cache is None or not losses.needs_teacher:
            return ask(batch, self.weights(step))
        return self.cache.get(number, lambda: ask(batch, losses.terms), self.distillation.device)

    def _origin(self) -> dict[str, str]:
        """Return what the teacher's outputs depend on, by name."""
        settings, distillation = self.settings, self.distillation
        drawn = {name: getattr(settings, name) for name in ("batch", "context", "accumulate", "seed")}
        return {
            "teacher": digest_model(distillation.teacher),
            "text": _digest_text(self.tokens, self.masking),
            "batches": ", ".join(f"{name} {value}" for name, value in (drawn | {"epoch": self.epoch}).items()),
            "losses": ", ".join(sorted(distillation.losses.terms)),
            "layer map": str(list(distillation.layers)),
        }

    def digest(self) -> str:
        """Return what differs wherever a run would go another way, beyond its settings and its student."""
        distillation = self.distillation
        given = distillation.identity, self.cache and self.cache.dtype
        text, teacher = _digest_text(self.tokens, self.masking), digest_model(distillation.teacher)
        return hashlib.blake2b(repr((given, text, teacher)).encode(), digest_size=16).hexdigest()


def digest_model(model: Module | None) -> str:
    """Return a fingerprint of all parameters, by name and value."""
    digest = hashlib.blake2b(digest_size=16)
    for name, array in model.state_dict().items() if model else ():
        digest.update(name.encode())
        digest.update(to_host(array).tobytes())
    return digest.hexdigest()


def _digest_text(tokens: np.ndarray | Examples, masking: Masking | None) -> str:
    digest = hashlib.blake2b(repr(masking).encode(), digest_size=16)
    tokens = tokens.stream if isinstance(tokens, Examples) else tokens
    digest.update(np.asarray(tokens, dtype=np.int64).tobytes())
    return digest.hexdigest()


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


def save_run(path: Path, student: Module, optimiser: AdamW, history: History, adapters: Module | None = None) -> None:
    """Write the checkpoint of a run. Raises CheckpointError where it cannot be written."""
    arrays = {f"model.{name}": to_host(array) for name, array in student.state_dict().items()}
    if adapters is not None:
        arrays |= {f"adapters.{name}": to_host(array) for name, array in adapters.state_dict().items()}
    arrays |= {f"optimiser.{name}": to_host(array) for name, array in optimiser.state_dict().items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        safetensors_file.write(path, arrays, {"history": json.dumps(asdict(history))})
    except OSError as error:
        raise CheckpointError(f"{path}: cannot write the training checkpoint: {error}") from error


def resume_run(
    path: Path, student: Module, optimiser: AdamW, history: History, adapters: Module | None = None
) -> dict[str, Any]:
    """Continue from a checkpoint; return what it says. Raises CheckpointError if it is damaged, or of another run."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            saved = json.loads((file.metadata() or {})["history"])
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  the file is no dict
        then, steps, terms, gradient_norms = (saved[key] for key in ("settings", "steps", "terms", "gradient_norms"))
        perplexities = [(step, value) for step, value in saved["perplexities"]]
        term_norms = [(step, norms) for step, norms in saved["term_norms"]]
        now = json.loads(json.dumps(asdict(history.settings)))
        changed = [f"{key} {then.get(key)} -> {now[key]}" for key in now if then.get(key) != now[key]]
        changed += [] if saved["inputs"] == history.inputs else ["another text, teacher or losses"]
    except (SafetensorError, OSError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise CheckpointError(f"{path}: not a training checkpoint: {error}") from error
    if changed:
        raise CheckpointError(
            f"{path}: belongs to another run ({', '.join(changed)}); use another folder, or remove it"
        )
    try:
        student.load_state_dict(_part(arrays, "model."))
        if adapters is not None:
            adapters.load_state_dict(_part(arrays, "adapters."))
        optimiser.load_state_dict(_part(arrays, "optimiser."), steps)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: belongs to another model: {error}") from error
    history.steps, history.terms, history.gradient_norms = steps, terms, gradient_norms
    history.perplexities, history.term_norms = perplexities, term_norms
    return saved


def _part(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
