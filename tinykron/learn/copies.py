"""The lessons as a learner's own copies: begun, kept across updates, run without a page.

The lessons that come with tinykron are never written to. A learner's copies lie in one folder, `my_lessons` in the home
folder or where `--folder` or TINYKRON_LESSONS says; a copy that is there is never written over.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinykron.data.shipped import shipped_folder
from tinykron.errors import TinykronError
from tinykron.support import files

SETTINGS = """\
# Of the lesson editor: run a lesson when it opens, and again what an edit changes; no writing by a language model.
[tool.marimo.runtime]
auto_instantiate = true
auto_reload = "autorun"
watcher_on_save = "autorun"

[tool.marimo.display]
theme = "system"
custom_css = ["lessons.css"]

[tool.marimo.ai]
enabled = false
"""
STYLE = """\
/* What a closed gate holds back stays out of sight, in place of one notice for each cell. */
.marimo-cell:has([role="alert"].bg-background) { display: none; }
"""
TEMPORARY = ("/tmp/", "/private/tmp/", "/var/folders/", "/private/var/folders/")  # where the editor does not save


@dataclass(frozen=True)
class Lesson:
    """One lesson that comes with tinykron."""

    number: int
    title: str
    version: int
    source: Path

    def copy_in(self, folder: Path) -> Path:
        return folder / self.source.name


def lessons() -> list[Lesson]:
    """Return the lessons that came with this tinykron, in order."""
    found = []
    for source in sorted(shipped_folder("lessons").glob("l[0-9][0-9]_*.py")):
        text = source.read_text(encoding="utf-8")
        title = re.search(r'app_title="(?:\d+ )?(.*?)"', text)
        found.append(Lesson(int(source.name[1:3]), title[1] if title else source.stem, _version(text), source))
    return found


def _version(text: str) -> int:
    version = re.search(r"^ +LESSON = (\d+)", text, re.MULTILINE)
    return int(version[1]) if version else 0


def find(number: int) -> Lesson:
    """Return the lesson of that number. Raises TinykronError, naming those that there are."""
    every = lessons()
    for lesson in every:
        if lesson.number == number:
            return lesson
    raise TinykronError(f"no lesson {number}: found {', '.join(str(lesson.number) for lesson in every) or 'none'}")


# A learner's folder -------------------------------------------------------------------------------------------------


def workplace(folder: str | None = None) -> Path:
    """Return the folder of a learner's copies; it need not exist.

    Raises TinykronError for a temporary folder, where the editor saves nothing, and for one inside a clone of tinykron.
    """
    place = Path(folder or os.environ.get("TINYKRON_LESSONS") or Path.home() / "my_lessons").expanduser().resolve()
    text = f"{place.as_posix()}/"
    if text.startswith((*TEMPORARY, *_system_temporary())) or "AppData/Local/Temp/" in text:
        raise TinykronError(f"{place}: the lesson editor does not save in a temporary folder; choose another: --folder")
    clone = shipped_folder("lessons").parent.resolve()
    if place == clone or clone in place.parents:
        raise TinykronError(
            f"{place} is inside tinykron itself, where an update meets your work; choose another: --folder"
        )
    return place


def _system_temporary() -> tuple[str, ...]:
    return (f"{Path(tempfile.gettempdir()).resolve().as_posix()}/",) if TEMPORARY else ()


def begin(lesson: Lesson, folder: Path) -> tuple[Path, list[str]]:
    """Copy a lesson into a learner's folder, unless it is there; return the copy, and what there is to say about it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in (("pyproject.toml", SETTINGS), ("lessons.css", STYLE)):
        if not (folder / name).exists():
            files.write(folder / name, text)
    copy = lesson.copy_in(folder)
    if not copy.exists():
        files.write(copy, lesson.source.read_text(encoding="utf-8"))
        return copy, [f"lesson {lesson.number} is yours to write in: {copy}"]
    said = [f"your lesson {lesson.number}: {copy}"]
    if _version(copy.read_text(encoding="utf-8")) < lesson.version:
        said.append(f"there is a newer one: `tinykron lesson update {lesson.number}` takes it, with what you wrote")
    return copy, said


def reset(lesson: Lesson, folder: Path, keep_answers: bool = False) -> list[str]:
    """Begin a lesson again; the learner's copy stays beside it under another name.

    keep_answers  put the functions that the learner wrote in the place of the new lesson's exercises
    """
    copy = lesson.copy_in(folder)
    if not copy.exists():
        return begin(lesson, folder)[1]
    mine, text = copy.read_text(encoding="utf-8"), lesson.source.read_text(encoding="utf-8")
    number = 1
    while (kept := copy.with_name(f"{copy.stem}.before-{number}.txt")).exists():
        number += 1
    shutil.copy2(copy, kept)
    carried: list[str] = []
    if keep_answers:
        text, carried = carry(mine, text)
    files.write(copy, text)
    said = [f"your lesson {lesson.number} is new: {copy}", f"what was there: {kept}"]
    return said + ([f"with your {', '.join(carried)}"] if carried else [])


def carry(mine: str, new: str) -> tuple[str, list[str]]:
    """Return a new lesson's text with the functions that a learner wrote in an older one, and their names."""
    try:
        answers = {name: code for name, code in _functions(mine).items() if "kit.Todo" not in code}
    except SyntaxError as error:
        raise TinykronError(f"your lesson cannot be read: line {error.lineno}: {error.msg}") from None
    carried = [name for name, code in _functions(new).items() if "kit.Todo" in code and name in answers]
    for name in carried:
        new = put(new, name, answers[name])
    return new, carried


def put(text: str, name: str, code: str) -> str:
    """Return a lesson's text with `code` in the place of the exercise `name`."""
    return text.replace(_functions(text)[name], code)


def _functions(text: str) -> dict[str, str]:
    """Return the source of each exercise of a lesson: what stands below `@app.function`, comments with it."""
    found = {}
    rows = text.splitlines(keepends=True)
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef) and any("app.function" in ast.unparse(d) for d in node.decorator_list):
            found[node.name] = "".join(rows[node.decorator_list[-1].end_lineno : node.end_lineno])
    return found


# Checks in the terminal ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class State:
    """How far a learner is with a lesson."""

    number: int
    title: str
    state: str  # "not started", "1 of 2", "done", "error"
    checks: list[dict[str, str]]  # name, state, message

    @property
    def done(self) -> bool:
        return self.state == "done"


def state(lesson: Lesson, folder: Path) -> State:
    """Run a learner's copy without a page, and say what its checks say."""
    copy = lesson.copy_in(folder)
    if not copy.exists():
        return State(lesson.number, lesson.title, "not started", [])
    try:
        found = run(copy)
    except Exception as error:  # whatever a learner's file raises
        message = f"{type(error).__name__}: {error}"
        return State(lesson.number, lesson.title, "error", [{"name": copy.name, "state": "error", "message": message}])
    from tinykron.kit.checks import Result

    results = [value for value in found.values() if isinstance(value, Result)]
    checks = [{"name": result.name, "state": result.state, "message": result.message} for result in results]
    right = sum(map(bool, results))
    word = "done" if found.get("lesson_done") else f"{right} of {len(results)}"
    return State(lesson.number, lesson.title, word, checks)


def run(path: Path) -> dict[str, Any]:
    """Run a lesson from top to bottom with every gate open, and return what it defines."""
    with headless():
        return dict(load(path).app.run()[1])


def write_solved(source: Path, copy: Path) -> None:
    """Write a lesson with its own solutions in place."""
    from tinykron.kit.checks import Help

    text = source.read_text(encoding="utf-8")
    copy.write_text(text, encoding="utf-8")
    for value in run(copy).values():
        if isinstance(value, Help):
            text = put(text, value.name, value.solution + "\n")
    copy.write_text(text, encoding="utf-8")


@contextmanager
def headless() -> Iterator[None]:
    """Open every gate for a block."""
    before = os.environ.get("TINYKRON_LESSON_AUTO")
    os.environ["TINYKRON_LESSON_AUTO"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TINYKRON_LESSON_AUTO"]
        else:
            os.environ["TINYKRON_LESSON_AUTO"] = before


def load(path: Path) -> Any:
    """Import a lesson's file anew, whatever was imported from there before."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
