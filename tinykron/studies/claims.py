"""Claims of papers, answered by experiment: what was claimed, what comes out here, with every seed, and the verdict.

A relation is a comparison that a small model can answer: one number against another, in each of several seeds. It
*holds* where every seed says so, *fails* where every seed says the contrary, and is *open* else. Rows are written as
they are found, and an interrupted run goes on where it was.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from math import isfinite, isnan
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Generic, TypeVar

from tinykron.errors import CheckpointError, TinykronError
from tinykron.support.tables import Table

ROWS, SETTINGS = "rows.jsonl", "settings.json"
HOLDS, FAILS, OPEN = "holds", "fails", "open"

Kind = TypeVar("Kind")
Values = dict[str, float]  # what one seed gave, by name
Rule = Callable[[Values], int]  # 1: so it is claimed; -1: the contrary; 0: neither


@dataclass(frozen=True)
class Relation:
    """A claim, and how it is answered."""

    id: str
    claim: str  # in words, with its source
    published: str  # the paper's figure
    measured: str  # what the numbers are, with units
    run: Callable[[Any, int], Values]  # of a study and a seed
    rule: Rule
    note: str = ""  # what limits the answer


@dataclass(frozen=True)
class Row:
    """What one seed gave for one relation."""

    relation: str
    seed: int
    values: Values
    seconds: float  # beyond models that were trained before


@dataclass(frozen=True)
class Answer:
    """A relation with all its rows."""

    relation: Relation
    rows: tuple[Row, ...]

    @property
    def verdict(self) -> str:
        """What the seeds say together; open with fewer than three, or where a value is no number."""
        votes = {0 if any(map(isnan, row.values.values())) else self.relation.rule(row.values) for row in self.rows}
        if len(self.rows) < 3 or len(votes) > 1 or votes == {0}:
            return OPEN
        return HOLDS if votes == {1} else FAILS

    @property
    def ours(self) -> dict[str, str]:
        """Mean and standard deviation over the seeds, by name."""
        return {name: spread([row.values[name] for row in self.rows]) for name in self.rows[0].values}

    @property
    def minutes(self) -> float:
        return sum(row.seconds for row in self.rows) / 60.0


# Rules ----------------------------------------------------------------------------------------------------------------


def less(first: str, second: str, margin: float = 0.0) -> Rule:
    """Claim that one value is below another, by more than a share `margin` of it; within the margin says neither."""

    def rule(values: Values) -> int:
        one, other = values[first], values[second]
        return 1 if one < other * (1.0 - margin) else -1 if one > other * (1.0 + margin) else 0

    return rule


def near(first: str, second: str, within: float) -> Rule:
    """Claim that one value is no further from another than a share `within` of it."""
    return lambda values: 1 if abs(values[first] - values[second]) <= within * abs(values[second]) else -1


def each_less(first: str, second: str, skip: int = 0) -> Rule:
    """Claim that "first n" is below "second n" for every n there is, but for the `skip` smallest."""

    def rule(values: Values) -> int:
        numbers = _numbers(values, first)[skip:]
        return 1 if all(values[f"{first} {n}"] < values[f"{second} {n}"] for n in numbers) else -1

    return rule


def agree(*rules: Rule) -> Rule:
    """Claim several things that stand or fall together: their vote where all vote alike, else neither."""

    def rule(values: Values) -> int:
        votes = {one(values) for one in rules}
        return votes.pop() if len(votes) == 1 else 0

    return rule


def throughout(first: str, second: str, margin: float = 0.0) -> Rule:
    """Claim that "first n" is below "second n" for every n above 0; the contrary is that it is above for all of them.

    Those are budgets, and 0 is before any training. Within a share `margin` of the second it says neither; below 0, it
    is what the first may be above the second.
    """

    def rule(values: Values) -> int:
        budgets = [n for n in _numbers(values, first) if n]
        return agree(*(less(f"{first} {n}", f"{second} {n}", margin) for n in budgets))(values)

    return rule


def falling(prefix: str) -> Rule:
    """Claim that "prefix n" falls as n rises."""

    def rule(values: Values) -> int:
        found = [values[f"{prefix} {n}"] for n in _numbers(values, prefix)]
        return 1 if all(one > later for one, later in zip(found, found[1:], strict=False)) else -1

    return rule


def rising(prefix: str) -> Rule:
    """Claim that "prefix n" rises with n."""

    def rule(values: Values) -> int:
        return falling(prefix)({name: -value for name, value in values.items()})

    return rule


def _numbers(values: Values, prefix: str) -> list[int]:
    return sorted(int(name.removeprefix(f"{prefix} ")) for name in values if name.rpartition(" ")[0] == prefix)


def above(name: str, limit: float) -> Rule:
    """Claim that a value is at least a number."""
    return lambda values: 1 if values[name] >= limit else -1


def below(name: str, limit: float) -> Rule:
    """Claim that a value is less than a number."""
    return lambda values: 1 if values[name] < limit else -1


def not_above(first: str, second: str) -> Rule:
    """Claim that one value is at most another."""
    return lambda values: 1 if values[first] <= values[second] else -1


def both(*rules: Rule) -> Rule:
    """Claim all of several things: the least of their votes."""
    return lambda values: min(rule(values) for rule in rules)


def relation(
    to: list[Relation], id: str, claim: str, published: str, measured: str, rule: Rule, note: str = ""
) -> Callable[[Callable[[Any, int], Values]], Callable[[Any, int], Values]]:
    """Return a decorator that adds a function (study, seed) -> values to a list of relations, as this one."""

    def add(run: Callable[[Any, int], Values]) -> Callable[[Any, int], Values]:
        to.append(Relation(id, claim, published, measured, run, rule, note))
        return run

    return add


# Running --------------------------------------------------------------------------------------------------------------


def run(
    relations: Sequence[Relation],
    study: Any,
    seeds: int,
    folder: str | Path,
    settings: dict[str, Any],
    say: Callable[[str], None] = print,
) -> list[Answer]:
    """Answer relations with what `folder` holds already and what is missing there; write each row as it is found.

    study     what the relations' functions are given, beside a seed
    settings  how it was run: rows of other settings are not continued
    Raises CheckpointError for a folder of other settings.
    """
    kept = Kept(folder, Row, SETTINGS, json.dumps(settings, indent=2))
    found = {(row.relation, row.seed): row for row in kept.rows}
    missing = [(seed, one) for seed in range(seeds) for one in relations if (one.id, seed) not in found]
    for number, (seed, relation) in enumerate(missing, 1):
        say(f"{relation.id}, seed {seed} ({number} of {len(missing)}): {relation.claim}")
        start = time.perf_counter()
        values = relation.run(study, seed)
        row = Row(relation.id, seed, values, time.perf_counter() - start)
        found[relation.id, seed] = row
        kept.add(row)
        say("  " + ", ".join(f"{name} {value:.4g}" for name, value in values.items()))
    return [
        Answer(relation, tuple(found[relation.id, seed] for seed in range(seeds) if (relation.id, seed) in found))
        for relation in relations
    ]


class Kept(Generic[Kind]):
    """The rows of a run in a folder: each is written when it is found, and an interrupted run goes on behind them.

    kind      the dataclass of a row
    settings  how they are made, and the name of the file that says so: rows of other settings are not continued
    Raises CheckpointError for a folder of other settings.
    """

    def __init__(self, folder: str | Path, kind: type[Kind], name: str, settings: str) -> None:
        self.path = Path(folder) / ROWS
        self.path.parent.mkdir(parents=True, exist_ok=True)
        said = Path(folder) / name
        if said.exists() and said.read_text(encoding="utf-8") != f"{settings}\n":
            raise CheckpointError(f"{folder}: holds rows of another run; choose another --out")
        said.write_text(f"{settings}\n", encoding="utf-8")
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        self.rows = [kind(**json.loads(line)) for line in lines]

    def add(self, row: Any) -> None:
        """Write a row behind the others."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(row)) + "\n")


def chosen(relations: Iterable[Relation], only: str | None) -> list[Relation]:
    """Return the relations that "R5,R6" names; all for None. Raises TinykronError for one that there is not."""
    known = {relation.id: relation for relation in relations}
    if only is None:
        return list(known.values())
    names = [name.strip() for name in only.split(",")]
    if unknown := [name for name in names if name not in known]:
        raise TinykronError(f"--only: found {', '.join(unknown)}, expected some of {', '.join(known)}")
    return [known[name] for name in names]


# Reporting ------------------------------------------------------------------------------------------------------------


def spread(values: Sequence[float]) -> str:
    """Return mean ± standard deviation, to three or four digits; of what is not finite, the mean alone."""
    if not all(map(isfinite, values)):
        return f"{mean(values):g}"
    return f"{mean(values):.4g} ± {stdev(values) if len(values) > 1 else 0.0:.2g}"


def markdown(title: str, answers: Sequence[Answer], how: str, command: str) -> str:
    """Return a report: how it was run, and each relation with its figure, ours, and the verdict."""
    headings = ("relation", "claim", "published", "ours, mean ± standard deviation", "verdict", "minutes")
    rows = []
    for answer in answers:
        one = answer.relation
        if not answer.rows:
            continue
        ours = "; ".join(f"{name} {value}" for name, value in answer.ours.items())
        note = f" {one.note}" if one.note else ""
        cells = [one.id, one.claim, one.published, f"{one.measured}: {ours} ({len(answer.rows)} seeds)"]
        rows.append([*cells, f"**{answer.verdict}**{note}", f"{answer.minutes:.1f}"])
    again = f"Each row again: `{command} --only RELATION`."
    return "\n".join([f"# {title}", "", how, "", *Table(headings, rows).markdown(), "", again, ""])


def as_dict(answers: Sequence[Answer]) -> list[dict[str, Any]]:
    """Return answers as plain values, for JSON."""
    return [
        {key: getattr(answer.relation, key) for key in ("id", "claim", "published", "measured", "note")}
        | {"verdict": answer.verdict if answer.rows else OPEN, "rows": [asdict(row) for row in answer.rows]}
        for answer in answers
    ]
