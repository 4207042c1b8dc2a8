"""Recipes: what is done to a checkpoint, in which order and with which settings, as TOML files to copy and edit."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_type_hints

from tinykron import kron, tasks
from tinykron.data.corpus import read_text
from tinykron.data.shipped import shipped_folder
from tinykron.distill.losses import Losses, Schedule
from tinykron.errors import TinykronError
from tinykron.jobs import toml
from tinykron.support.numbers import real, whole

BASELINES = ("truncated", "low-rank")
HEADS = ("tied", "dense")
MATRICES = ("all", "linear")


@dataclass(frozen=True)
class Factorise:
    """The first stage: which matrices become smaller, and how."""

    preset: str | None = None  # a paper's shapes, fitted to the matrices alone
    params: float | None = None  # or a budget, planned and fitted to the text: a share up to 1, or a number
    matrices: str = "all"  # that a plan may change; "linear": not the embedding
    head: str = "tied"  # of a model whose output matrix is its embedding; "dense": it gets one of its own
    tokens: int = 8192  # of the text, that a plan is calibrated on

    def __post_init__(self) -> None:
        if (self.preset is None) == (self.params is None):
            raise TinykronError("factorise: expected a preset or params, one of the two")
        _one_of("factorise: preset", self.preset, kron.PRESETS, None)
        _one_of("factorise: head", self.head, HEADS)
        _one_of("factorise: matrices", self.matrices, MATRICES)
        if self.params is not None:
            real("factorise: params", self.params, above=0.0)
        whole("factorise: tokens", self.tokens, 2)


@dataclass(frozen=True)
class Pretrain:
    """The second stage: student and teacher side by side on text."""

    losses: Losses = field(default_factory=Losses)
    share: float = 0.1  # of the training text
    passes: int = 1  # over that share
    batch: int = 8
    context: int = 256  # at most; never above the model's own
    lr: float = 1e-3
    dropout: bool = True  # of the students, at the model's own rates
    baselines: tuple[str, ...] = ()  # trained alike, to compare with

    def __post_init__(self) -> None:
        real("pretrain: share", self.share, above=0.0, most=1.0)
        real("pretrain: lr", self.lr, above=0.0)
        for name, least in (("passes", 1), ("batch", 1), ("context", 3)):
            whole(f"pretrain: {name}", getattr(self, name), least)
        for baseline in self.baselines:
            _one_of("pretrain: baselines", baseline, BASELINES)


@dataclass(frozen=True)
class Finetune:
    """The third stage: on a labelled task, beside a teacher that was fine-tuned on it before."""

    task: str
    losses: Losses = field(default_factory=Losses)
    epochs: int = 3  # at most, of teacher and students; the best one counts
    batch: int = 16
    lr: float = 1e-4
    teacher_lr: float = 5e-5

    def __post_init__(self) -> None:
        tasks.find(self.task)
        for name in ("epochs", "batch"):
            whole(f"finetune: {name}", getattr(self, name), 1)
        for name in ("lr", "teacher_lr"):
            real(f"finetune: {name}", getattr(self, name), above=0.0)
        moving = [name for name in self.losses.terms if isinstance(getattr(self.losses, name), Schedule)]
        if moving:
            raise TinykronError(f"finetune: losses: {', '.join(moving)}: a schedule is for pretrain; expected a number")
        if "next_sentence" in self.losses.terms:
            raise TinykronError("finetune: losses: next_sentence is for pretrain")


@dataclass(frozen=True)
class Recipe:
    """All that a recipe says. A stage that is left out is not run; the first is always there."""

    name: str
    model: str  # shipped, taken where no other is given
    factorise: Factorise
    pretrain: Pretrain | None = None
    finetune: Finetune | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        whole("seed", self.seed)


SECTIONS: dict[str, type] = {"factorise": Factorise, "pretrain": Pretrain, "finetune": Finetune}


def names() -> list[str]:
    """Return the names of the recipes that come with tinykron."""
    return sorted(path.stem for path in shipped_folder("recipes").glob("*.toml"))


def find(name: str | Path) -> Path:
    """Return the file of a recipe: one that ships, by name, or any other by its path."""
    path = Path(name)
    if path.suffix == ".toml":
        return path
    if str(name) not in names():
        raise TinykronError(f"recipe: found {str(name)!r}, expected one of {', '.join(names())}, or a .toml file")
    return shipped_folder("recipes") / f"{name}.toml"


def title(name: str | Path) -> str:
    """Return what a recipe's first line says of it."""
    return text(name).splitlines()[0].lstrip("# ")


def text(name: str | Path) -> str:
    """Return a recipe's file as it stands. Raises TinykronError where it cannot be read."""
    return read_text(find(name), TinykronError)


def trains_exits(name: str | Path) -> bool:
    """Whether a recipe is one of `tinykron sort`: it names exits."""
    return "exits" in toml.read(find(name))


def read(name: str | Path, changes: Sequence[str] = ()) -> Recipe:
    """Return a recipe, shipped or of one's own.

    changes  "pretrain.share=0.2", "seed=1", ...: in place of what the file says, values as in TOML
    Raises TinykronError naming file and key, what was found and what was expected.
    """
    path = find(name)
    said = toml.read(path)
    for change in changes:
        _change(said, change)
    try:
        return parse(path.stem, said)
    except TinykronError as error:
        raise TinykronError(f"{path}: {error}") from error


def parse(name: str, content: Mapping[str, Any]) -> Recipe:
    """Return the recipe that a table describes. Raises TinykronError naming the key."""
    given: dict[str, Any] = {}
    for section, kind in SECTIONS.items():
        if section not in content and section != "factorise":
            continue
        table = toml.section(content, section)
        has_losses = "losses" in get_type_hints(kind)
        given[section] = toml.values(kind, table, f"{section}: ", ["losses"] * has_losses)
        if "losses" in table:
            given[section]["losses"] = _losses(table["losses"], section)
    if "finetune" in given and "task" not in given["finetune"]:
        raise TinykronError("finetune: expected task, found none")
    top = toml.values(Recipe, content, others=SECTIONS, without=["name"])
    if "model" not in top:
        raise TinykronError("model: expected the name of a shipped model, found none")
    return Recipe(name=name, **top, **{section: SECTIONS[section](**said) for section, said in given.items()})


def _losses(table: Any, section: str) -> Losses:
    if not isinstance(table, Mapping):
        raise TinykronError(f"{section}: losses: expected a section [{section}.losses], found {table!r}")
    try:
        return Losses.from_dict(table)
    except TinykronError as error:
        raise TinykronError(f"{section}: {error}") from error


def with_task(recipe: Recipe, task: str) -> Recipe:
    """Return a recipe whose fine-tuning is on another task. Raises TinykronError where it has none."""
    if recipe.finetune is None:
        raise TinykronError(f"{recipe.name}: has no stage [finetune] for a task")
    return replace(recipe, finetune=replace(recipe.finetune, task=task))


def _change(said: dict[str, Any], change: str) -> None:
    key, equals, value = change.partition("=")
    parts = key.strip().split(".")
    try:
        if not equals or not all(parts):
            raise ValueError("no key and value")
        parsed = tomllib.loads(f"value = {value}")["value"]
    except (tomllib.TOMLDecodeError, ValueError) as error:
        raise TinykronError(
            f"--set {change!r}: expected KEY=VALUE as in TOML, such as pretrain.lr=1e-4: {error}"
        ) from None
    table = said
    for part in parts[:-1]:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise TinykronError(f"--set {change!r}: {part} is no section")
    table[parts[-1]] = parsed


def _one_of(what: str, found: Any, known: Any, *others: Any) -> None:
    if found not in known and found not in others:
        raise TinykronError(f"{what}: found {found!r}, expected one of {', '.join(known)}")
