"""Settings from TOML files: what each type takes, and what is named where it does not fit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from tinykron.errors import TinykronError
from tinykron.jobs import toml


@dataclass
class Settings:
    count: int = 1
    rate: float = 1.0
    budget: float | None = None
    on: bool = False
    word: str = ""
    note: str | None = None
    depths: tuple[int, ...] = ()
    names: tuple[str, ...] = ()
    inner: Path | None = None  # no setting of a table


GOOD = {"count": -3, "rate": 2, "budget": 0.5, "on": True, "word": "a", "note": "b", "depths": [1], "names": ["c"]}


def test_values_get_the_types_of_the_fields() -> None:
    found = toml.values(Settings, GOOD)
    assert found == GOOD | {"depths": (1,), "names": ("c",)} and type(found["rate"]) is float
    assert toml.values(Settings, {"rate": 1, "own": 2}, others=["own"]) == {"rate": 1.0}


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({"counts": 1}, "x: unknown counts; expected some of count, rate, budget, on, note, depths, names, more"),
        ({"inner": "a"}, "x: unknown inner"),
        ({"word": "a"}, "x: unknown word"),
        ({"count": True}, "x: count: found True, expected a whole number"),
        ({"count": 2**63}, "expected a whole number"),
        ({"rate": float("nan")}, "x: rate: found nan, expected a number"),
        ({"rate": 10**400}, "expected a number"),
        ({"on": 1}, "x: on: found 1, expected true or false"),
        ({"note": 1}, "x: note: found 1, expected a text"),
        ({"depths": [1.5]}, r"x: depths: found \[1.5\], expected a list of whole numbers"),
        ({"names": "c"}, "x: names: found 'c', expected a list of texts"),
    ],
)
def test_what_does_not_fit_is_named(table: dict[str, object], says: str) -> None:
    with pytest.raises(TinykronError, match=says):
        toml.values(Settings, table, "x: ", ["more"], without=["word"])


def test_files_and_sections_that_are_none_are_named(tmp_path: Path) -> None:
    for content, says in (b"a = ", "own.toml: not TOML"), (b"\xff", "own.toml: expected UTF-8"):
        (tmp_path / "own.toml").write_bytes(content)
        with pytest.raises(TinykronError, match=says):
            toml.read(tmp_path / "own.toml")
    with pytest.raises(TinykronError, match="none.toml: cannot be read"):
        toml.read(tmp_path / "none.toml")
    assert toml.section({"a": {"b": 1}}, "a") == {"b": 1}
    for content, says in ({}, "found none"), ({"a": 1}, "found 1"):
        with pytest.raises(TinykronError, match=r"x: a: expected a section \[a\], " + says):
            toml.section(content, "a", "x: ")
