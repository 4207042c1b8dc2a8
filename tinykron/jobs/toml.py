"""Settings from TOML files: each key checked by its name and its type against the fields of a dataclass."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from math import isfinite
from pathlib import Path
from typing import Any, get_type_hints

from tinykron.data.corpus import read_text
from tinykron.errors import TinykronError
from tinykron.support.numbers import LARGEST

EXPECTED = {  # by the type of a field, in words; fields of other types are no settings of a table
    int: "a whole number",
    float: "a number",
    float | None: "a number",
    bool: "true or false",
    str: "a text",
    str | None: "a text",
    tuple[int, ...]: "a list of whole numbers",
    tuple[str, ...]: "a list of texts",
}


def read(path: Path) -> dict[str, Any]:
    """Return what a TOML file says. Raises TinykronError naming the file."""
    try:
        return tomllib.loads(read_text(path, TinykronError))
    except tomllib.TOMLDecodeError as error:
        raise TinykronError(f"{path}: not TOML: {error}") from None


def section(content: Mapping[str, Any], name: str, where: str = "") -> dict[str, Any]:
    """Return a section of a file. Raises TinykronError where it is missing, or is no section."""
    found = content.get(name)
    if not isinstance(found, dict):
        shown = "none" if found is None else repr(found)
        raise TinykronError(f"{where}{name}: expected a section [{name}], found {shown}")
    return found


def check_names(table: Mapping[str, Any], known: Iterable[str], where: str = "") -> None:
    """Raise TinykronError for a key that is not known; `where` stands before what it says, such as "pretrain: "."""
    known = list(known)
    unknown = [key for key in table if key not in known]
    if unknown:
        raise TinykronError(f"{where}unknown {', '.join(unknown)}; expected some of {', '.join(known)}")


def values(
    settings: type, table: Mapping[str, Any], where: str = "", others: Iterable[str] = (), without: Iterable[str] = ()
) -> dict[str, Any]:
    """Return what a table says of the fields of a dataclass: a list as a tuple, a whole number as the float it is for.

    others   keys that are known, and read elsewhere
    without  fields that are no keys
    Raises TinykronError naming the key, what was found and what was expected.
    """
    hints = {name: hint for name, hint in get_type_hints(settings).items() if hint in EXPECTED and name not in without}
    check_names(table, [*hints, *others], where)
    found = {}
    for key in [key for key in table if key in hints]:
        value, hint = table[key], hints[key]
        if not _fits(value, hint):
            raise TinykronError(f"{where}{key}: found {value!r}, expected {EXPECTED[hint]}")
        if isinstance(value, list):
            value = tuple(value)
        found[key] = float(value) if hint in (float, float | None) else value
    return found


def _fits(value: Any, hint: Any) -> bool:
    if hint == tuple[int, ...]:
        return isinstance(value, list) and all(_fits(item, int) for item in value)
    if hint == tuple[str, ...]:
        return isinstance(value, list) and all(_fits(item, str) for item in value)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= LARGEST
    if hint in (float, float | None):
        return _fits(value, int) or (isinstance(value, float) and isfinite(value))
    return isinstance(value, bool if hint is bool else str)
