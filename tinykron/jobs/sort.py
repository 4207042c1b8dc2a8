"""From a checkpoint to one whose every exit is a model: sorted fine-tuning and its baselines, `tinykron sort`."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from tinykron import checkpoint, data, kron
from tinykron.checkpoint.hub import resolve
from tinykron.data.instructions import Example
from tinykron.decode import shortlist
from tinykron.errors import CheckpointError, TinykronError
from tinykron.exits import analysis
from tinykron.exits.losses import Batch, SortedLoss, depth_weights, equal_weights
from tinykron.jobs import recipes, toml
from tinykron.jobs.making import making
from tinykron.jobs.sort_data import CONTEXTS, KINDS, Splits, read
from tinykron.measure.perplexity import bounded_exp
from tinykron.models.checks import trained_exits
from tinykron.models.exit_parts import add_parts
from tinykron.support.numbers import real, whole
from tinykron.support.tables import Table
from tinykron.tasks.closed_book import exact_matches
from tinykron.train.batches import digest_model
from tinykron.train.loop import fit
from tinykron.train.settings import Settings

METHODS = {
    "sorted": "all exits learn together: Sorted LLaMA (arXiv 2309.08968)",
    "plain": "the full model alone: SFT",
    "heads": "plain, and then as long one head for each inner exit while all else stands still: SFT + ICT",
    "extracted": "each exit cut out and trained by itself: one folder for each",
    "balcony": "the model stands still; each inner exit gets a block and a norm that learn from it (arXiv 2503.05005)",
}
LOSSES = {
    "mean": "all exits in every step, with equal weights: Sorted LLaMA, eq. 1",
    "sampled": "as many exits as there are, drawn in every step: SortedNet (arXiv 2309.00255)",
    "depth": "weights that grow with depth: LayerSkip (arXiv 2404.16710)",
    "rotational": "the same, and in each step one inner exit beside the last: LayerSkip's curriculum",
}


@dataclass(frozen=True)
class Sorting:
    """What is trained, and how. A step reads `batch` windows or examples, `accumulate` times."""

    exits: tuple[int, ...]  # numbers of blocks; all blocks are always among them
    method: str = "sorted"
    kind: str = "text"  # of what it learns from
    loss: str = "mean"
    distil: float = 0.0  # share of an inner exit's loss that is the KL from the last exit
    draws: int = 0  # of "sampled": exits drawn in a step; 0: as many as there are
    scale: float = 1.0  # of "depth" and "rotational": LayerSkip's e_scale
    steps: int = 300
    batch: int = 8
    accumulate: int = 1  # batches whose gradients are averaged before a step
    context: int = 0  # tokens of a window or example, at most; 0: as CONTEXTS has it
    lr: float = 5e-4
    weight_decay: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, known in (("method", METHODS), ("loss", LOSSES), ("kind", KINDS)):
            if getattr(self, name) not in known:
                raise TinykronError(f"{name}: found {getattr(self, name)!r}, expected one of {', '.join(known)}")
        real("distil", self.distil, 0.0, 1.0)
        real("scale", self.scale, above=0.0)
        whole("context", self.context)
        if whole("draws", self.draws) and self.loss != "sampled":
            raise TinykronError(f"draws: found {self.draws}; they are of the loss sampled, found {self.loss}")
        if self.distil and self.loss == "sampled":
            raise TinykronError("distil: an exit that is drawn alone has no last exit beside it to learn from")
        _ = self.training  # refuses what no training takes

    @classmethod
    def read(cls, source: str | Path, **others: Any) -> Sorting:
        """Return settings from a TOML file, or of a recipe that ships with tinykron, such as "sorted-llama".

        others  take the place of what the file says
        Raises TinykronError naming the file and the key.
        """
        path = recipes.find(source)
        given = toml.values(cls, toml.read(path), f"{path}: ") | others
        if "exits" not in given:
            raise TinykronError(f"{path}: expected exits, such as [2, 4, 6], in the file or beside it")
        return cls(**given)

    @property
    def training(self) -> Settings:
        """What the training loop takes: a cosine after a short warm-up."""
        warmup, context = self.steps // 20, self.context or CONTEXTS[self.kind]
        return Settings(
            self.steps, self.batch, context, self.accumulate, lr=self.lr, warmup=warmup,
            weight_decay=self.weight_decay, seed=self.seed, checkpoint_every=50,
        )  # fmt: skip


@dataclass(frozen=True)
class Sorted:
    """What came out."""

    folder: str
    settings: Sorting
    trained_on: str
    held_out: int  # targets that each loss is the mean of
    losses: dict[str, dict[int, float]]  # "before", the method, those beside it: {blocks: nats a token}
    right: dict[str, dict[int, float]] = field(default_factory=dict)  # likewise, questions answered right, in per cent

    def as_dict(self) -> dict[str, Any]:
        """Return the outcome as plain values, for JSON."""
        return asdict(self)


# The methods ----------------------------------------------------------------------------------------------------------

Models = dict[int, Any]  # by exit, the model that serves it


def objective(model: Any, settings: Sorting) -> SortedLoss:
    """Return the loss that sorted fine-tuning minimises."""
    exits, blocks = settings.exits, len(model.blocks)
    if settings.loss in ("mean", "sampled"):
        draws = (settings.draws or len(exits)) if settings.loss == "sampled" else 0
        return SortedLoss(model, equal_weights(exits), settings.distil, draws)
    rotation = max(1, len(exits) - 1) if settings.loss == "rotational" else 1
    return SortedLoss(model, depth_weights(exits, blocks, settings.scale), settings.distil, rotation=rotation)


def on_frozen(model: Any, kind: str, exits: Sequence[int]) -> Any:
    """Give exits parts of their own, the only ones that training changes from now on; change `model` and return it."""
    for parameter in model.parameters():
        parameter.requires_grad = False
    for part in add_parts(model, kind, exits).exit_parts:
        for parameter in part.parameters():
            parameter.requires_grad = True
    return model


@dataclass(frozen=True)
class Run:
    """A start, what it is trained on, and where trainings keep their progress."""

    start: Any
    splits: Splits
    settings: Sorting
    folder: Path

    @cached_property
    def origin(self) -> str:
        """By which a training is known that started elsewhere."""
        return digest_model(self.start)

    def train(self, model: Any, loss: SortedLoss, name: str) -> None:
        """Train a model in place; a training that was stopped goes on. Ctrl-C raises Interrupted in its end."""
        loss.origin = self.origin
        fit(
            model, self.splits.training, self.settings.training, distillation=loss, masking=self.splits.masking,
            folder=self.folder / name, title=name,
        )  # fmt: skip

    def sorted(self) -> Models:
        """Train all exits of one model together."""
        model = copy.deepcopy(self.start)
        self.train(model, objective(model, self.settings), "sorted")
        return self._served(model, self.settings.exits)

    def plain(self) -> Models:
        """Train the full model alone, whose exits are read as they come."""
        model = copy.deepcopy(self.start)
        self.train(model, SortedLoss(model, {len(model.blocks): 1.0}), "plain")
        return dict.fromkeys(self.settings.exits, model)

    def heads(self) -> Models:
        """After plain fine-tuning train one head for each inner exit; the trunk stands still."""
        model = on_frozen(self.plain()[len(self.start.blocks)], "heads", self._inner)
        self.train(model, SortedLoss(model, equal_weights(self._inner)), "heads")
        return self._served(model, self.settings.exits)

    def extracted(self) -> Models:
        """Cut each inner exit out and train it by itself; the full model is that of plain fine-tuning."""
        models = {exit: kron.cut(self.start, exit) for exit in self._inner}
        for exit, model in models.items():
            self.train(model, SortedLoss(model, {exit: 1.0}), f"extracted-{exit}")
        blocks = len(self.start.blocks)
        return models | {blocks: self.plain()[blocks]}

    def balcony(self) -> Models:
        """Train a block and a norm for each inner exit towards the full model's predictions; that stands still."""
        model = on_frozen(copy.deepcopy(self.start), "blocks", self._inner)
        weights = equal_weights(self._inner) | {len(model.blocks): 0.0}
        self.train(model, SortedLoss(model, weights, pull=1.0), "balcony")
        return self._served(model, self.settings.exits)

    @property
    def _inner(self) -> list[int]:
        inner = [exit for exit in self.settings.exits if exit < len(self.start.blocks)]
        if not inner:
            raise TinykronError("exits: expected one below the last, to have a part of its own")
        return inner

    def _served(self, model: Any, exits: tuple[int, ...]) -> Models:
        model.exits = exits
        return dict.fromkeys(exits, model)


def losses_by_exit(models: Models, batches: Sequence[Batch], title: str = "") -> dict[int, float]:
    """Return the held-out loss of each exit by the model that serves it, in nats a token."""
    found: dict[int, float] = {}
    for model in dict.fromkeys(models.values()):
        served = [exit for exit, other in models.items() if other is model]
        found |= analysis.losses_of(model, batches, served, title)
    return dict(sorted(found.items()))


def right_by_exit(models: Models, questions: Sequence[Example], title: str = "") -> dict[int, float]:
    """Return the share of questions that each exit answers right, in per cent."""
    found = {}
    for exit, model in sorted(models.items()):
        found[exit] = exact_matches(model, questions, exit if exit < len(model.blocks) else None, title)
    return found


# The verb -------------------------------------------------------------------------------------------------------------


def sort(
    model: str | Path,
    out: str | Path,
    settings: Sorting,
    source: str | Path | None = None,
    beside: Sequence[str] = (),
) -> Sorted:
    """Fine-tune the exits of a checkpoint and save the result as a new one with a card.

    model   folder, cache path or cached hub id: any decoder, or a BERT with its masked-token head
    out     folder to make: a checkpoint whose config.json holds the exits, beside the tokens that were frequent in
            what it read; of "extracted", one folder for each exit
    source  text file or folder, or a file of examples, as the settings' kind says; None: what every Python carries
    beside  further methods to train for as long on the same batches, and to measure beside it; they are not saved
    Progress is kept in the folder `<out>.training`: after Ctrl-C, which raises Interrupted, or a kill, the same
    call continues there. Raises TinykronError, before any training, if `out` exists or something does not fit.
    """
    out, folder = Path(out), resolve(model)
    with making(out) as work:
        start = checkpoint.load(folder)
        settings = _fitting(start, settings, beside)
        if start.tokenizer is None:
            raise CheckpointError(f"{folder}: expected a tokenizer.json, to read text with")
        splits = read(start, source, settings.context, settings.kind)
        run = Run(start, splits, settings, work.progress)
        losses: dict[str, dict[int, float]] = {}
        right: dict[str, dict[int, float]] = {}

        def measure(name: str, models: Models) -> None:
            losses[name] = losses_by_exit(models, splits.held_out, f"measuring {name}")
            if splits.questions:
                right[name] = right_by_exit(models, splits.questions, f"{name} answers")

        measure("before", dict.fromkeys(settings.exits, start))
        dtype = checkpoint.stored_dtype(folder)
        for name in dict.fromkeys((settings.method, *beside)):
            models = getattr(run, name)()
            if name == settings.method:
                models = _save(models, work.clear(), dtype)  # rounded as they are saved
                if start.causal and name != "extracted":
                    shortlist.write(shortlist.frequent(splits.tokens), work.result)
            measure(name, models)
        counted = sum(int((batch[1] != data.IGNORED).sum()) for batch in splits.held_out)
        found = Sorted(str(out), settings, splits.said, counted, losses, right)
        work.write("README.md", _card(out.name, folder.name, found))
        return found


def _fitting(model: Any, settings: Sorting, beside: Sequence[str]) -> Sorting:
    """Return the settings for a model, after checking that they go together."""
    blocks = len(model.blocks)
    exits = trained_exits(settings.exits, blocks)
    for name in beside:
        replace(settings, method=name)  # refuses what it does not know
    methods = {settings.method, *beside}
    if not model.causal:
        if not model.fills:
            raise TinykronError(f"sort: this {type(model).__name__} has no head that predicts tokens")
        if settings.kind != "text":
            raise TinykronError(f"sort: {settings.kind}: for decoders, found a {type(model).__name__}")
        if found := sorted(methods & {"heads", "balcony"}):
            raise TinykronError(f"sort: {', '.join(found)}: for decoders, found a {type(model).__name__}")
    if model.exit_parts:
        raise TinykronError("sort: the exits of this model have parts of their own; start from the model without them")
    plain = Sorting(exits)
    if "sorted" in methods and settings.loss in ("depth", "rotational") and exits[0] == 1:
        raise TinykronError("exits: weights by depth leave none to an exit after 1 block; choose deeper ones")
    for name in ("loss", "distil"):
        if "sorted" not in methods and getattr(settings, name) != getattr(plain, name):
            raise TinykronError(f"{name}: is for the method sorted, found {', '.join(sorted(methods))}")
    return replace(
        settings,
        exits=exits if exits[-1] == blocks else (*exits, blocks),
        context=min(settings.context or CONTEXTS[settings.kind], model.context),
    )


def _save(models: Models, result: Path, dtype: str) -> Models:
    """Save a model, or one for each exit, and return them as they are read again."""
    different = list(dict.fromkeys(models.values()))
    result.parent.mkdir(parents=True, exist_ok=True)
    if len(different) == 1:
        checkpoint.save(different[0], result, dtype)
        return dict.fromkeys(models, checkpoint.load(result))
    for exit, model in models.items():
        checkpoint.save(model, result / f"exit-{exit}", dtype)
    return {exit: checkpoint.load(result / f"exit-{exit}") for exit in models}


def render(found: Sorted) -> str:
    """Return the losses of each method by exit, with perplexities, as lines for a terminal."""
    lines = []
    for table in tables(found):
        lines += [table.title, *table.plain()]
    return "\n".join([*lines, f"saved: {found.folder}"])


def tables(found: Sorted) -> list[Table]:
    """Return tables with a row for each method: losses, and answers where questions were asked."""
    exits = found.settings.exits
    heading = ["", *(f"{exit} blocks" for exit in exits)]
    rows = [
        [name, *(f"{losses[exit]:.3f} ({bounded_exp(losses[exit]):.1f})" for exit in exits)]
        for name, losses in found.losses.items()
    ]
    title = f"held-out loss in nats a token (perplexity) by exit, {found.held_out:,} tokens"
    made = [Table(heading, rows, title, left=heading)]
    if found.right:
        shares = [[name, *(f"{right[exit]:.1f}" for exit in exits)] for name, right in found.right.items()]
        made.append(
            Table(heading, shares, "held-out questions answered right (exact match), in per cent", left=heading)
        )
    return made


def _card(name: str, model: str, found: Sorted) -> str:
    settings = {one.name: getattr(found.settings, one.name) for one in fields(found.settings)}
    lines = [
        f"# {name}",
        "",
        f"{model}, fine-tuned by tinykron with the method {found.settings.method}: {METHODS[found.settings.method]}.",
        "",
        f"- trained on {found.trained_on}",
        f"- settings: {', '.join(f'{key} {value}' for key, value in settings.items())}",
        "",
    ]
    for table in tables(found):
        lines += [f"{table.title.capitalize()}; of {found.settings.method}, of the weights as they were saved:", ""]
        lines += [*table.markdown(), ""]
    return "\n".join(lines)
