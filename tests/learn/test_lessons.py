"""Every lesson, without a browser: its own solutions pass, its stubs are to do, wrong answers are refused by name.

Each lesson runs on the CPU and on the strict fake device. A closed gate would stop all cells below it without an error,
so the gates are open here, and each test asks for what the last cell defines.
"""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("marimo", reason="the extra `lessons` is not installed")

from tests.lesson_answers import Answers
from tinykron import backend
from tinykron.kit import checks

ROOT = Path(__file__).parents[2]
FILES = {path.stem: path for path in sorted((ROOT / "lessons").glob("l[0-9][0-9]_*.py"))}
ANSWERS: dict[str, Answers] = {
    name: importlib.import_module(f"tests.lesson_answers.{name[:3]}").ANSWERS
    for name in FILES
    if (ROOT / "tests" / "lesson_answers" / f"{name[:3]}.py").exists()
}
LARGEST = 150_000  # characters of a page's output


@pytest.fixture(autouse=True)
def headless(monkeypatch):
    monkeypatch.setenv("TINYKRON_LESSON_AUTO", "1")
    monkeypatch.setenv("TINYKRON_LESSON_FAST", "1")
    monkeypatch.setattr(backend, "_backends", dict(backend._backends))  # a lesson adds a device, to learn on


def load(name: str) -> types.ModuleType:
    """Import a lesson anew: its `xp` is that of the device the test runs on."""
    spec = importlib.util.spec_from_file_location(name, FILES[name])
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def solutions(module: types.ModuleType, defined: dict[str, Any]) -> dict[str, Any]:
    """Return the functions that the page's folded solutions write, by exercise."""
    found = {}
    for value in defined.values():
        if isinstance(value, checks.Help):
            names = dict(vars(module))
            exec(compile(value.solution, f"solution of {value.name}", "exec"), names)
            found[value.name] = names[value.name]
    return found


def results(defined: dict[str, Any]) -> dict[str, checks.Result]:
    return {value.name: value for value in defined.values() if isinstance(value, checks.Result)}


_solved: dict[tuple[str, str], tuple[types.ModuleType, dict[str, Any]]] = {}


def solved(name: str, device: str) -> tuple[types.ModuleType, dict[str, Any]]:
    """Return a lesson and its solutions, read once for each device."""
    if (name, device) not in _solved:
        module = load(name)
        _solved[name, device] = module, solutions(module, module.app.run()[1])
    return _solved[name, device]


def run(module: types.ModuleType, **defined: Any) -> tuple[str, dict[str, Any]]:
    """Run a lesson with some names given; return what its page shows, and what it defines."""
    outputs, names = module.app.run(defs=defined)
    shown = []
    for output in outputs:
        if hasattr(output, "_mime_"):
            shown.append(output._mime_()[1])
        elif hasattr(output, "text"):
            shown.append(output.text)
    return " ".join(shown), dict(names)


def test_every_lesson_has_answers():
    assert set(FILES) == set(ANSWERS)
    assert len({name[:3] for name in FILES}) == len(FILES)


@pytest.mark.parametrize("name", FILES)
def test_the_solutions_on_the_page_finish_the_lesson(name, device):
    module, right = solved(name, device)
    page, defined = run(module, **right)
    assert {n: r.state for n, r in results(defined).items()} == dict.fromkeys(right, "ok"), results(defined)
    assert defined["lesson_done"]
    assert page.count("<figure") == ANSWERS[name].pictures
    assert page.count("<figure") == page.count('role="img" aria-label="') + page.count("<img alt=")
    assert len(page) < LARGEST


@pytest.mark.parametrize("name", FILES)
def test_the_stubs_are_to_do(name):
    module, right = solved(name, "cpu")
    _, defined = run(module)
    assert {n: r.state for n, r in results(defined).items()} == dict.fromkeys(right, "todo")
    assert not defined["lesson_done"]


@pytest.mark.parametrize("name", FILES)
def test_wrong_answers_are_refused_and_named(name):
    module, right = solved(name, "cpu")
    for number, wrong in enumerate(ANSWERS[name].wrong):
        _, defined = run(module, **{**right, wrong.exercise: wrong.answer})
        found = results(defined)[wrong.exercise]
        assert found.state == wrong.state and wrong.word in found.message, f"wrong answer {number}: {found}"
        assert not defined["lesson_done"]


@pytest.mark.parametrize("name", FILES)
def test_there_are_enough_wrong_answers(name):
    _, right = solved(name, "cpu")
    counts = dict.fromkeys(right, 0)
    for wrong in ANSWERS[name].wrong:
        counts[wrong.exercise] += 1
    assert all(count >= 4 for count in counts.values()), counts


@pytest.mark.parametrize("name", FILES)
def test_every_slider_works_to_both_ends(name, device):
    module, right = solved(name, device)
    for widget, values in ANSWERS[name].widgets.items():
        for value in values:
            also = dict(ANSWERS[name].also.get(widget, {}))
            if widget.startswith("guess_"):
                options = widget.replace("guess", "options")
                also[options] = run(module)[1][options]
                assert value is None or value in also[options], (widget, value)
            page, defined = run(module, **right, **also, **{widget: types.SimpleNamespace(value=value)})
            assert defined["lesson_done"], (widget, value)
            assert page.count("<figure") == ANSWERS[name].pictures, (widget, value)


@pytest.mark.parametrize("name", FILES)
def test_every_widget_is_tried(name):
    module, right = solved(name, "cpu")
    _, defined = run(module, **right)
    widgets = {key for key, value in defined.items() if hasattr(value, "_component_args")}
    assert widgets == set(ANSWERS[name].widgets)


def marimo(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "marimo", *arguments], capture_output=True, text=True, cwd=ROOT)


def test_marimo_finds_nothing_to_say_or_to_change(tmp_path):
    copies = [tmp_path / path.name for path in FILES.values()]
    for copy in copies:
        copy.write_bytes(FILES[copy.stem].read_bytes())
    checked = marimo("check", "--strict", *map(str, copies))
    assert checked.returncode == 0, checked.stdout + checked.stderr
    marimo("check", "--fix", *map(str, copies))
    assert [copy.name for copy in copies if copy.read_bytes() != FILES[copy.stem].read_bytes()] == []


@pytest.mark.parametrize("name", FILES)
def test_a_lesson_runs_as_a_script(name, monkeypatch):
    """As `python lessons/lNN.py` runs it, its gates closed: nothing raises."""
    monkeypatch.delenv("TINYKRON_LESSON_AUTO")
    namespace = {"__name__": "__main__", "__file__": str(FILES[name])}
    exec(compile(FILES[name].read_text(encoding="utf-8"), str(FILES[name]), "exec"), namespace)
