"""Lessons as pages: complete, offline, with every picture, and sliders that show what was computed."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import numpy as np
import pytest

pytest.importorskip("marimo", reason="the extra `lessons` is not installed")

from tinykron.errors import TinykronError
from tinykron.learn import copies
from tinykron.learn import page as learn_page
from tinykron.learn import pages as learn_pages

VOID = {"br", "img", "input", "meta", "hr", "li", "path", "html"}


class Page(HTMLParser):
    """Collects what a page would fetch, its tags, and those that are not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.tags: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.fetched += [value for name, value in attributes if name in ("src", "href") and tag != "a"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    return learn_pages.export(folder, [0, 3])


def test_an_index_links_every_page(pages):
    index, *rest = pages
    assert index.name == "index.html" and [path.name[:3] for path in rest] == ["l00", "l03"]
    links = re.findall(r'href="([^"]+)"', index.read_text())
    assert links == [path.name for path in rest]
    assert not [path for path in index.parent.iterdir() if path not in pages]  # nothing half-written


def test_a_page_fetches_nothing_and_needs_no_marimo(pages):
    for path in pages:
        page = Page(path.read_text())
        assert not page.open
        assert all(source.startswith("data:") for source in page.fetched)
        assert not [tag for tag in page.tags if tag.startswith("marimo")]
        assert "url(" not in path.read_text() and "import " not in learn_page.PAGE


def test_a_page_holds_prose_exercise_hint_solution_and_pictures(pages):
    text = pages[2].read_text()
    assert "A gradient has the shape of its variable" in text and "raise kit.Todo" in text
    assert text.count("<summary>Hint") == text.count("<summary>Solution") == 2 and text.count("<summary>Answer") == 1
    assert "grad.sum(axis=stretched, keepdims=True)" in text
    assert "<figure" in text and '<svg class="tex"' in text
    assert "with app.setup" not in text and "hide_code" not in text and "kit.gate" not in text
    code = re.findall(r'<pre class="code"><code>(.*?)</code>', text, re.DOTALL)
    assert code and all("kit.check" not in one for one in code)


def test_a_slider_has_a_frame_for_each_of_its_values(pages):
    text = pages[1].read_text()
    (count,) = re.findall(r'data-moves="side"', text)
    frames = re.findall(r'data-of="side" data-at="(\d+)"', text)
    values = re.search(r"<span hidden>(.*?)</span>", text)[1].count("<data>")
    assert len(frames) == values == 12
    assert "A ⊗ B: 6 by 6" in text and "A ⊗ B: 72 by 72" in text  # the slider's two ends


def test_a_slider_with_steps_of_its_own_offers_these_alone():
    slider = learn_pages.checks.mo.ui.slider
    assert learn_pages._values(slider(steps=[1, 2, 4, 64], value=4)) == [1, 2, 4, 64]
    assert learn_pages._values(slider(1, 4, value=2)) == [1, 2, 3, 4]
    squares = [number**2 for number in range(40)]
    some = learn_pages._values(slider(steps=squares, value=9))
    assert len(some) == learn_pages.VALUES and {0, 9, 39**2} <= {*some} <= {*squares}


def test_a_lesson_whose_solutions_are_wrong_is_refused(tmp_path):
    source = copies.find(0).source
    broken = tmp_path / source.name
    broken.write_text(source.read_text().replace("return (m * n + p * q) / (m * n * p * q)", "return 1.0"))
    with pytest.raises(TinykronError, match="own solutions"):
        learn_pages.page(broken, "")


@pytest.mark.parametrize("source", [one.source for one in copies.lessons()], ids=lambda path: path.stem[:3])
def test_every_formula_of_a_lesson_is_drawn(source):
    shown = re.findall(r"\$\$(.+?)\$\$|\$([^$\n]+?)\$", source.read_text(encoding="utf-8"), re.DOTALL)
    formulas = [(block or line).replace("\\\\", "\\") for block, line in shown]
    assert [tex for tex in formulas if "<code>" in learn_pages.formula(tex)] == []


def test_formulas_are_drawn_and_said():
    svg = learn_pages.formula(r"\frac{a}{b}")
    assert r'aria-label="\frac{a}{b}"' in svg and svg.count("Z") >= 3
    numbers = np.array(re.search(r' d="([^"]+)"', svg)[1].translate(str.maketrans("MLQCZ", "     ")).split(), float)
    left, top, width, height = map(float, re.search(r'viewBox="([^"]+)"', svg)[1].split())
    x, y = numbers[0::2], numbers[1::2]
    assert left - 1 <= x.min() and x.max() <= left + width + 1 and top - 1 <= y.min() and y.max() <= top + height + 1
    assert "<code>" in learn_pages.formula(r"\begin{pmatrix}a\end{pmatrix}")
    assert learn_pages.formulas('<marimo-tex class="arithmatex">||(a &lt; b||)</marimo-tex>').startswith("<svg")
