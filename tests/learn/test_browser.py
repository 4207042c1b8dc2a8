"""Lessons in a real browser: `pytest -m browser`. It needs Chromium, and the extras `lessons` and `browser`."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import dedent

import pytest

from tinykron.learn.copies import find, lessons

kit = pytest.importorskip("tinykron.kit.checks", reason="the extra `lessons` is not installed")
playwright = pytest.importorskip("playwright.sync_api", reason="the extra `browser` is not installed")

pytestmark = pytest.mark.browser

ROOT = Path(__file__).parents[2]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-sync"]
FLAGS += ["--disable-dev-shm-usage"]  # small in containers
FULL_PATH = 3  # the lesson that is gone through from end to end, click by click
FULL_PATHS = (10, 14, 17)  # one of each further sitting, as a learner takes it who looks everything up
SECONDS = 180_000  # the longest wait, in milliseconds: a busy machine is slow


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no Chromium")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture
def folder() -> Iterator[Path]:
    """Return a learner's folder in the home folder: the editor saves nothing in a temporary one."""
    place = Path(tempfile.mkdtemp(prefix="tinykron-lessons-", dir=Path.home()))
    yield place
    shutil.rmtree(place)


@contextmanager
def served(number: int, folder: Path) -> Iterator[str]:
    """Open a lesson as `tinykron lesson N --headless` does; give its address."""
    command = [sys.executable, "-m", "tinykron", "lesson", str(number), "--folder", str(folder), "--headless"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    server = subprocess.Popen(command, env=environment, start_new_session=True, **pipes)
    try:
        said = []
        for line in server.stdout:
            said.append(line)
            if found := re.search(r"http://\S+access_token=\S+", line):
                yield found[0]
                break
        else:
            raise AssertionError("".join(said))
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait()
        server.stdout.close()


@contextmanager
def page_at(browser, address: str) -> Iterator:
    """Open an address; fail if the page asks another host for anything, or shows a widget that is broken."""
    page = browser.new_page(viewport={"width": 1200, "height": 2400})
    page.set_default_timeout(SECONDS)
    outside: list[str] = []
    here = ("http://localhost:", "http://127.0.0.1:", "ws://", "data:", "blob:", "file:")
    page.on("request", lambda request: outside.append(request.url) if not request.url.startswith(here) else None)
    for _ in range(100):  # the address is printed before the server listens
        try:
            page.goto(address)
            break
        except playwright.Error:
            page.wait_for_timeout(200)
    yield page
    assert outside == []
    assert page.get_by_text("Bad Data").count() == 0
    page.close()


def picture_texts(page) -> list[str]:
    return page.locator("figure [aria-label], figure img").evaluate_all(
        "found => found.map(one => one.getAttribute('aria-label') || one.alt)"
    )


def move_first_slider(page) -> None:
    """Move it to one side, and from its end to the other; wait until a picture answers.

    Where the first picture lies behind a question, that is looked up.
    """
    figure, see = page.locator("figure"), page.get_by_text(kit.SEE, exact=True)
    figure.or_(see).first.wait_for()
    if not figure.count():
        see.first.click()
    figure.first.wait_for()
    slider = page.locator("[role=slider]").first
    slider.wait_for()
    before = picture_texts(page)
    at_its_start = slider.get_attribute("aria-valuenow") == slider.get_attribute("aria-valuemin")
    slider.focus()
    page.keyboard.press("ArrowRight" if at_its_start else "ArrowLeft")
    wait_for_change(page, before)


def wait_for_change(page, before: list[str]) -> None:
    for _ in range(SECONDS // 100):
        if picture_texts(page) != before:
            return
        page.wait_for_timeout(100)
    raise AssertionError("no picture answered the slider")


def write(page, old: str, new: str) -> None:
    """Replace the line of an exercise that holds `old`, and run the cell."""
    line = page.locator(".cm-line", has_text=old).first
    line.scroll_into_view_if_needed()
    line.click()
    page.keyboard.press("End")
    page.keyboard.press("Shift+Home")
    page.keyboard.insert_text(new)
    page.keyboard.press("Control+Enter")


def test_a_learner_goes_through_a_whole_lesson(browser, folder):
    with served(FULL_PATH, folder) as address, page_at(browser, address) as page:
        move_first_slider(page)
        assert page.get_by_text("not started").count() == 0  # the gate is closed
        assert not page.get_by_text("Ancestor stopped").filter(visible=True).count()
        page.get_by_text("1, 1, 1", exact=True).last.click()
        page.get_by_text("Not quite").last.wait_for()
        page.get_by_text("not started").first.wait_for()
        front = "return grad.sum(axis=tuple(range(grad.ndim - len(shape))))"
        write(page, "raise kit.Todo", front)
        page.get_by_text("are still stretched").last.wait_for()
        write(page, front, "return tk.backend.sum_to(grad, shape)")
        page.get_by_text("6 cases pass").last.wait_for()
        page.get_by_text("The engine undoes broadcasts once").last.wait_for()  # the gate has opened
        write(
            page, "raise kit.Todo", "return tk.backend.sum_to(grad * y, x.shape), tk.backend.sum_to(grad * x, y.shape)"
        )
        page.get_by_text("4 cases pass").last.wait_for()
        page.get_by_text("a broadcast is undone by a sum").last.wait_for()
        (copy,) = folder.glob("l*.py")
        for _ in range(SECONDS // 100):
            if "grad * x, y.shape" in copy.read_text().split("def check_2")[0]:
                break
            page.wait_for_timeout(100)
    check_in_the_terminal(FULL_PATH, folder)


def check_in_the_terminal(number: int, folder: Path) -> None:
    command = [sys.executable, "-m", "tinykron", "lesson", "check", str(number), "--folder", str(folder)]
    checked = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert checked.returncode == 0, checked.stdout + checked.stderr


def rewrite(page, name: str, code: str) -> None:
    """Replace an exercise, and run its cell."""
    page.locator(".cm-content", has_text=f"def {name}(").first.click()
    page.keyboard.press("Control+a")
    page.keyboard.insert_text(code)
    page.keyboard.press("Control+Enter")


@pytest.mark.parametrize("number", FULL_PATHS)
def test_a_learner_goes_through_a_lesson_of_each_sitting(browser, folder, number):
    written = find(number).source.read_text(encoding="utf-8")
    answers = [dedent(found).strip() for found in re.findall(r'solution="""\n(.*?)"""', written, re.DOTALL)]
    guesses, solved, guessed = written.count("= kit.predict("), 0, 0
    assert guesses and answers
    with served(number, folder) as address, page_at(browser, address) as page:
        move_first_slider(page)
        see, passed = page.get_by_text(kit.SEE, exact=True), page.get_by_text(re.compile("cases pass|it passes"))
        while solved < len(answers) or guessed < guesses:
            page.wait_for_timeout(500)
            if see.count() > guessed:
                see.nth(guessed).click()
                guessed += 1
            elif solved < len(answers):
                name = re.match(r"def (\w+)", answers[solved])[1]
                rewrite(page, name, f"def {name}(*given):\n    return None")
                page.get_by_text("missing?").last.wait_for()
                rewrite(page, name, answers[solved])
                passed.nth(solved).wait_for()
                solved += 1
        page.get_by_text("Done.").last.wait_for()
        assert page.get_by_text("Traceback").count() == 0
        (copy,) = folder.glob("l*.py")
        for _ in range(SECONDS // 100):
            if "kit.Todo" not in copy.read_text(encoding="utf-8"):
                break
            page.wait_for_timeout(100)
    check_in_the_terminal(number, folder)


@pytest.mark.parametrize(
    "number", [lesson.number for lesson in lessons() if lesson.number not in (FULL_PATH, *FULL_PATHS)]
)
def test_a_lesson_opens_and_answers_its_first_slider(browser, folder, number):
    with served(number, folder) as address, page_at(browser, address) as page:
        move_first_slider(page)
        gate = re.compile("The lesson is done when|next step|last step|comes first")
        page.get_by_text(gate).filter(visible=True).first.wait_for()
        assert page.get_by_text("Traceback").count() == 0


def test_exported_pages_work_from_the_disk(browser, tmp_path):
    from tinykron.learn import pages

    for path in pages.export(tmp_path)[1:]:
        with page_at(browser, path.as_uri()) as page:
            slider = page.locator("input[data-moves]:not([data-choice])").first
            visible = "figure:visible"
            before = page.locator(visible).evaluate_all("found => found.map(one => one.outerHTML)")
            assert before, path
            slider.focus()
            page.keyboard.press("ArrowLeft" if slider.input_value() != "0" else "ArrowRight")
            assert page.locator(visible).evaluate_all("found => found.map(one => one.outerHTML)") != before, path
