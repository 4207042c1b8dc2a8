"""How long a picture takes to answer a slider, in a real browser: `python -m tests.slider_times [LESSON ...]`.

Every slider of every lesson, with the lesson's own solutions in place and all gates open. A time is from the key press
to the first change in the page's pictures; the median and the longest of `PRESSES`. A measurement, not a test.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
from pathlib import Path
from statistics import median

from tests.learn.test_browser import CHROMIUM, FLAGS, page_at, picture_texts, playwright, served
from tinykron.learn import copies

PRESSES = 5
PATIENCE = 20_000  # milliseconds
WATCH = """() => {
    const pictures = () => [...document.querySelectorAll("figure")].map(one => one.outerHTML).join("");
    const before = pictures(), start = performance.now();
    window.answered = null;
    const observer = new MutationObserver(() => {
        if (pictures() !== before) { window.answered = performance.now() - start; observer.disconnect(); }
    });
    observer.observe(document.body, {subtree: true, childList: true, attributes: true, characterData: true});
}"""


def times(page) -> list[list[float]]:
    """Return, for each slider, milliseconds from key press to picture; none where no picture answered."""
    page.locator("figure").first.wait_for()
    page.get_by_text(re.compile("^Done[.,]")).last.wait_for()
    page.wait_for_timeout(1000)
    found: list[list[float]] = []
    sliders = page.locator("[role=slider]")
    for number in range(sliders.count()):
        slider = sliders.nth(number)
        found.append([])
        for press in range(PRESSES):
            before = picture_texts(page)
            slider.focus()
            ends = [slider.get_attribute(f"aria-value{end}") for end in ("now", "min", "max")]
            back = ends[0] == ends[2] or (press % 2 and ends[0] != ends[1])
            page.evaluate(WATCH)
            page.keyboard.press("ArrowLeft" if back else "ArrowRight")
            try:
                page.wait_for_function("window.answered !== null", timeout=PATIENCE)
            except playwright.TimeoutError:
                break
            found[-1].append(page.evaluate("window.answered"))
            page.wait_for_timeout(700 if picture_texts(page) != before else 300)  # the rest of the page follows
    return found


def main(numbers: list[int]) -> None:
    os.environ["TINYKRON_LESSON_AUTO"] = "1"
    every = [lesson for lesson in copies.lessons() if not numbers or lesson.number in numbers]
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        for lesson in every:
            folder = Path(tempfile.mkdtemp(prefix="tinykron-lessons-", dir=Path.home()))
            try:
                copies.write_solved(lesson.source, folder / lesson.source.name)
                with served(lesson.number, folder) as address, page_at(browser, address) as page:
                    for slider, taken in enumerate(times(page)):
                        said = f"no picture answered within {PATIENCE // 1000} s"
                        if taken:
                            said = f"median {median(taken):.0f} ms, longest {max(taken):.0f} ms of {len(taken)}"
                        print(f"lesson {lesson.number}, slider {slider}: {said}", flush=True)
            finally:
                shutil.rmtree(folder)
        browser.close()


if __name__ == "__main__":
    main([int(number) for number in sys.argv[1:]])
