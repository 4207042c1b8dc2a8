"""`tinykron lesson`: copies, what is never written over, what the terminal says of a learner's work."""

from __future__ import annotations

import json
import subprocess

import pytest

pytest.importorskip("marimo", reason="the extra `lessons` is not installed")

from tinykron.commands import cli
from tinykron.commands import lesson as commands_lesson
from tinykron.data import shipped as data_shipped
from tinykron.errors import TinykronError
from tinykron.learn import copies

STUB = """\
import marimo

app = marimo.App(app_title="{number} Doubling")

with app.setup:
    from tinykron import kit

    LESSON = {version}


@app.function
# EXERCISE. Return twice x.
def double(x):
    raise kit.Todo


@app.cell
def check_1():
    result_1 = kit.check("double", double, [("three", (3,), 6)])
    return (result_1,)


@app.cell
def finish(result_1):
    lesson_done = kit.finish(result_1, text="{text}")
    return (lesson_done,)
"""
RIGHT, WRONG = "return x + x", "return x * x"


def write_lessons(folder, version: int = 1, text: str = "Done.") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in (0, 4):
        lesson = STUB.format(number=number, version=version, text=text)
        (folder / f"l{number:02}_doubling.py").write_text(lesson)


@pytest.fixture
def places(tmp_path, monkeypatch):
    """Return the folder of two lessons that "came with tinykron", and a learner's, which is allowed to be temporary."""
    shipped = tmp_path / "tinykron" / "lessons"
    write_lessons(shipped)
    monkeypatch.setattr(copies, "shipped_folder", lambda kind: shipped)
    monkeypatch.setattr(copies, "TEMPORARY", ())
    monkeypatch.delenv("TINYKRON_LESSONS", raising=False)
    return shipped, tmp_path / "mine"


@pytest.fixture
def opened(monkeypatch):
    """Start no editor; return the (command, folder, environment) that would have been started."""
    calls = []

    class Editor:
        def __init__(self, command, cwd, env):
            calls.append((command, cwd, env))

        def wait(self):
            return 0

    monkeypatch.setattr(subprocess, "Popen", Editor)
    return calls


def call(capsys, folder, *arguments) -> tuple[int, str]:
    code = cli.main(["lesson", *map(str, arguments), "--folder", str(folder)])
    captured = capsys.readouterr()
    return code, captured.out + captured.err


def solve(copy, line: str = RIGHT) -> None:
    copy.write_text(copy.read_text().replace("raise kit.Todo", line))


def test_it_opens_a_copy_and_leaves_the_original_alone(places, opened, capsys):
    shipped, mine = places
    before = (shipped / "l00_doubling.py").read_text()
    code, said = call(capsys, mine)
    assert code == 0 and str(mine / "l00_doubling.py") in said
    assert (mine / "l00_doubling.py").read_text() == before == (shipped / "l00_doubling.py").read_text()
    (command, cwd, _), *_ = opened
    assert cwd == mine and "edit" in command and "l00_doubling.py" in command and "--headless" not in command
    assert "auto_instantiate = true" in (mine / "pyproject.toml").read_text()


def test_it_hands_on_the_port_and_the_device(places, opened, capsys):
    call(capsys, places[1], 4, "--headless", "-p", "2799", "--device", "cpu")
    (command, _, environment), *_ = opened
    assert command[-3:] == ["--headless", "--port", "2799"] and environment["TINYKRON_DEVICE"] == "cpu"


def test_nothing_of_a_learner_is_written_over(places, opened, capsys):
    shipped, mine = places
    call(capsys, mine)
    copy = mine / "l00_doubling.py"
    solve(copy)
    (mine / "pyproject.toml").write_text("# mine\n")
    work = copy.read_text()
    write_lessons(shipped, version=2)
    _, said = call(capsys, mine)
    assert copy.read_text() == work and (mine / "pyproject.toml").read_text() == "# mine\n"
    assert "tinykron lesson update 0" in said
    assert "update" not in call(capsys, mine, 4)[1]


def test_an_update_keeps_what_the_learner_wrote(places, opened, capsys):
    shipped, mine = places
    call(capsys, mine)
    copy = mine / "l00_doubling.py"
    solve(copy, "y = x + x  # mine\n    return y")
    write_lessons(shipped, version=2, text="Better.")
    code, said = call(capsys, mine, "update", 0)
    assert code == 0 and "your double" in said
    new = copy.read_text()
    assert "y = x + x  # mine\n    return y" in new and "LESSON = 2" in new and "Better." in new
    assert "# mine" in (mine / "l00_doubling.before-1.txt").read_text()
    assert call(capsys, mine, "check", 0)[0] == 0


def test_a_reset_begins_again_and_keeps_the_old_one_beside(places, opened, capsys):
    shipped, mine = places
    call(capsys, mine)
    for number in (1, 2):
        solve(mine / "l00_doubling.py", f"return {number}")
        assert call(capsys, mine, "reset", 0)[0] == 0
        assert f"return {number}" in (mine / f"l00_doubling.before-{number}.txt").read_text()
        assert (mine / "l00_doubling.py").read_bytes() == (shipped / "l00_doubling.py").read_bytes()


def test_check_says_how_far_it_is_and_exits_accordingly(places, opened, capsys):
    _, mine = places
    assert call(capsys, mine, "check") == (
        1,
        f"no lesson has been started in {mine}: `tinykron lesson` opens the first\n",
    )
    assert call(capsys, mine, "check", 4)[0] == 1
    call(capsys, mine, 0)
    copy = mine / "l00_doubling.py"
    for line, code, words in [
        (None, 1, ["0 of 1", "todo", "double"]),
        (WRONG, 1, ["0 of 1", "no", "`9`", "`6`"]),
        (RIGHT, 0, ["done", "ok"]),
        ("return x +", 1, ["error", "SyntaxError"]),
    ]:
        copy.unlink()
        call(capsys, mine, 0)
        if line:
            solve(copy, line)
        found, said = call(capsys, mine, "check", 0)
        assert found == code and all(word in said for word in words), (line, said)


def test_list_and_next(places, opened, capsys):
    _, mine = places
    assert call(capsys, mine, "list")[1].count("not started") == 2
    call(capsys, mine, "next")
    solve(mine / "l00_doubling.py")
    call(capsys, mine, "next")
    states = json.loads(call(capsys, mine, "list", "--json")[1])
    assert [(state["number"], state["state"]) for state in states] == [(0, "done"), (4, "0 of 1")]
    solve(mine / "l04_doubling.py")
    assert call(capsys, mine, "next") == (0, "all lessons are done\n")
    assert [command[4] for command, _, _ in opened] == ["l00_doubling.py", "l04_doubling.py"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["5"], ["no lesson 5", "0, 4"]),
        (["five"], ["'five'", "list"]),
        (["0", "4"], ["expected"]),
        (["reset"], ["number"]),
        (["check", "7"], ["no lesson 7"]),
    ],
)
def test_what_it_does_not_understand(places, opened, capsys, arguments, words):
    code, said = call(capsys, places[1], *arguments)
    assert code == 2 and all(word in said for word in words) and not opened and not places[1].exists()


def test_folders_where_work_would_be_lost_are_refused(tmp_path, monkeypatch):
    monkeypatch.delenv("TINYKRON_LESSONS", raising=False)
    clone = data_shipped.shipped_folder("lessons").parent
    for folder in (tmp_path, "/tmp/x", "/private/var/folders/ab/x", clone, clone / "lessons", clone / "my_lessons"):
        with pytest.raises(TinykronError, match="--folder"):
            copies.workplace(str(folder))
    monkeypatch.setattr("pathlib.Path.home", lambda: copies.Path("/home/ada"))
    assert copies.workplace() == copies.Path("/home/ada/my_lessons")
    monkeypatch.setenv("TINYKRON_LESSONS", "/srv/ada")
    assert copies.workplace() == copies.Path("/srv/ada")


def test_without_marimo_it_says_what_to_install(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(commands_lesson.importlib.util, "find_spec", lambda name: None)
    code, said = call(capsys, tmp_path, "list")
    assert code == 2 and "tinykron[lessons]" in said
