"""`tinykron lesson`: open the lessons as copies of a learner's own, check them in the terminal, begin one again.

The lessons that come with tinykron are never written to. A learner's copies lie in one folder, `my_lessons` in the home
folder or where `--folder` or TINYKRON_LESSONS says; a copy that is there is never written over.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tinykron.backend import current_device
from tinykron.data import shipped_folder
from tinykron.errors import TinykronError

SETTINGS = """\
# Of the lesson editor: run a lesson when it opens, and again what an edit changes; no writing by a language model.
[tool.marimo.runtime]
auto_instantiate = true
auto_reload = "autorun"
watcher_on_save = "autorun"

[tool.marimo.display]
theme = "system"

[tool.marimo.ai]
enabled = false
"""
TEMPORARY = ("/tmp/", "/private/tmp/", "/var/folders/", "/private/var/folders/")  # where the editor does not save
ACTIONS = "list, check, next, reset, update"


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
    settings = folder / "pyproject.toml"
    if not settings.exists():
        _write(settings, SETTINGS)
    copy = lesson.copy_in(folder)
    if not copy.exists():
        _write(copy, lesson.source.read_text(encoding="utf-8"))
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
    _write(copy, text)
    said = [f"your lesson {lesson.number} is new: {copy}", f"what was there: {kept}"]
    return said + ([f"with your {', '.join(carried)}"] if carried else [])


def carry(mine: str, new: str) -> tuple[str, list[str]]:
    """Return a new lesson's text with the functions that a learner wrote in an older one, and their names."""
    try:
        answers = {name: code for name, code in _functions(mine).items() if "kit.Todo" not in code}
    except SyntaxError as error:
        raise TinykronError(f"your lesson cannot be read: line {error.lineno}: {error.msg}") from None
    carried = []
    for name, code in _functions(new).items():
        if "kit.Todo" in code and name in answers:
            new = new.replace(code, answers[name])
            carried.append(name)
    return new, carried


def _functions(text: str) -> dict[str, str]:
    """Return the source of each exercise of a lesson: what stands below `@app.function`, comments with it."""
    found = {}
    rows = text.splitlines(keepends=True)
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef) and any("app.function" in ast.unparse(d) for d in node.decorator_list):
            found[node.name] = "".join(rows[node.decorator_list[-1].end_lineno : node.end_lineno])
    return found


def _write(path: Path, text: str) -> None:
    unfinished = path.with_name(path.name + ".tmp")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, path)


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
    from tinykron.kit import Result

    results = [value for value in found.values() if isinstance(value, Result)]
    checks = [{"name": result.name, "state": result.state, "message": result.message} for result in results]
    right = sum(map(bool, results))
    word = "done" if found.get("lesson_done") else f"{right} of {len(results)}"
    return State(lesson.number, lesson.title, word, checks)


def run(path: Path) -> dict[str, Any]:
    """Run a lesson from top to bottom with every gate open, and return what it defines."""
    before = os.environ.get("TINYKRON_LESSON_AUTO")
    os.environ["TINYKRON_LESSON_AUTO"] = "1"
    try:
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return dict(module.app.run()[1])
    finally:
        if before is None:
            del os.environ["TINYKRON_LESSON_AUTO"]
        else:
            os.environ["TINYKRON_LESSON_AUTO"] = before


# The verb -----------------------------------------------------------------------------------------------------------


def lesson_options(verb: argparse.ArgumentParser) -> None:
    """Add what `lesson` takes."""
    verb.add_argument("what", nargs="?", default="0", metavar="N", help=f"a lesson's number (default 0), or {ACTIONS}")
    verb.add_argument("number", nargs="?", type=int, metavar="N", help="of check, reset, update: the lesson's number")
    verb.add_argument("--folder", metavar="DIR", help="of your copies (default: my_lessons in your home folder)")
    verb.add_argument("--headless", action="store_true", help="open no browser; print the address")
    verb.add_argument("-p", "--port", type=int, metavar="P", help="of the page (default: a free one from 2718 on)")


def lesson(options: argparse.Namespace) -> int:
    """Run `lesson`: exit code 1 where `check` found something that is not done."""
    if importlib.util.find_spec("marimo") is None:
        raise TinykronError('the lessons need marimo, which is not installed: pip install "tinykron[lessons]"')
    folder = workplace(options.folder)
    if options.what == "list":
        return _list(folder, options.json)
    if options.what == "check":
        return _check(folder, options.number, options.json)
    if options.what == "next":
        left = next((lesson for lesson in lessons() if not state(lesson, folder).done), None)
        if left is None:
            print("all lessons are done")
            return 0
        return _open(left, folder, options)
    if options.what in ("reset", "update"):
        if options.number is None:
            raise TinykronError(f"lesson {options.what}: expected a lesson's number")
        print("\n".join(reset(find(options.number), folder, keep_answers=options.what == "update")))
        return 0
    if not options.what.isdigit() or options.number is not None:
        raise TinykronError(f"lesson: found {options.what!r}, expected a number or one of {ACTIONS}")
    return _open(find(int(options.what)), folder, options)


def _open(lesson: Lesson, folder: Path, options: argparse.Namespace) -> int:
    copy, said = begin(lesson, folder)
    print("\n".join(said), flush=True)
    command = [sys.executable, "-m", "marimo", "edit", copy.name, "--watch", "--skip-update-check"]
    command += ["--headless"] if options.headless else []
    command += ["--port", str(options.port)] if options.port else []
    server = subprocess.Popen(command, cwd=folder, env={**os.environ, "TINYKRON_DEVICE": current_device()})
    while True:
        try:
            return server.wait()
        except KeyboardInterrupt:  # it has heard it too, and asks whether to stop
            continue


def _list(folder: Path, as_json: bool) -> int:
    states = [state(lesson, folder) for lesson in lessons()]
    if as_json:
        print(json.dumps([asdict(found) for found in states], indent=2))
        return 0
    for found in states:
        print(f"{found.number:3}  {found.state:12} {found.title}")
    print(f"your copies: {folder}")
    return 0


def _check(folder: Path, number: int | None, as_json: bool) -> int:
    if number is None:
        states = [state(lesson, folder) for lesson in lessons() if lesson.copy_in(folder).exists()]
    else:
        states = [state(find(number), folder)]
    if as_json:
        print(json.dumps([asdict(found) for found in states], indent=2))
    elif not states:
        print(f"no lesson has been started in {folder}: `tinykron lesson` opens the first")
    else:
        for found in states:
            print(f"{found.number:3}  {found.state:12} {found.title}")
            for one in found.checks:
                print(f"     {one['state']:6} {one['name']}: {one['message']}")
    return 0 if states and all(found.done for found in states) else 1
