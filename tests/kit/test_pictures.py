"""The lessons' pictures: what is drawn and described is the array, on every device."""

from __future__ import annotations

import base64
import re
import struct
import zlib

import numpy as np
import pytest

from tests.helpers import leaf
from tinykron.backend import to_device
from tinykron.errors import ShapeError
from tinykron.kit import pictures as pictures


def decoded(html: str) -> np.ndarray:
    """Return the pixels (rows, columns, 3) of the PNG in a picture, read by the PNG specification."""
    data = base64.b64decode(re.search(r"base64,([^\"]+)", html)[1])
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, at = {}, 8
    while at < len(data):
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        body = data[at + 8 : at + 8 + length]
        assert struct.unpack(">I", data[at + 8 + length : at + 12 + length])[0] == zlib.crc32(kind + body)
        chunks[kind] = body
        at += 12 + length
    columns, rows = struct.unpack(">II", chunks[b"IHDR"][:8])
    raw = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(rows, columns + 1)
    assert not raw[:, 0].any()  # no row is filtered
    return np.frombuffer(chunks[b"PLTE"], np.uint8).reshape(-1, 3)[raw[:, 1:]]


def test_a_pixel_for_each_entry_orange_above_zero_blue_below(device):
    array = to_device(np.array([[1.0, 0.0, -1.0], [0.5, -0.5, 0.0]], np.float32))
    pixels = decoded(pictures.heat(array, "x")).astype(int)
    assert pixels.shape == (2, 3, 3)
    red_over_blue = pixels[..., 0] - pixels[..., 2]
    assert (np.sign(red_over_blue) * (np.abs(red_over_blue) > 3) == np.sign([[1, 0, -1], [0.5, -0.5, 0]])).all()
    assert pixels[0, 1].min() > 250  # zero is white
    assert red_over_blue[0, 0] > red_over_blue[1, 0] > 0 > red_over_blue[1, 1] > red_over_blue[0, 2]


def test_every_picture_says_what_it_shows(device):
    array = to_device(np.array([[1.5, -2.0], [0.25, 8.0]], np.float32))
    for draw in (pictures.heat, pictures.table):
        assert "W: 2 by 2, from -2 to 8" in draw(array, "W")
    assert "loss: ours from 1 to 0.25" in pictures.lines({"ours": [1.0, 0.25]}, "loss")
    assert "sizes: a 3, b -1.5" in pictures.bars({"a": 3, "b": -1.5}, "sizes")
    assert "tape: x, exp. lit: exp" in pictures.graph({"0": "x", "1": "exp"}, [("0", "1")], "tape", lit=["1"])


def test_a_table_shows_the_numbers_and_a_large_one_is_a_heat_map():
    assert re.findall(r">(-?\d+\.\d+)</td>", pictures.table([[1.0, -2.5]], digits=1)) == ["1.0", "-2.5"]
    assert pictures.table(np.ones((3, 2)), lit=(1, 0)).count("2px solid") == 1
    assert '; lit: (1, 0)"' in pictures.table(np.ones((3, 2)), lit=(1, 0))
    assert '; lit: 12 entries"' in pictures.table(np.ones((3, 4)), lit=...)
    assert pictures.table(np.ones((3, 2)), lit=np.ones((3, 2), bool)).count("2px solid") == 6
    assert "<img" in pictures.table(np.ones((100, 100)))


def test_a_leaf_a_vector_and_one_number_are_taken(device):
    assert "3, from" in pictures.heat(leaf([1, 2, 3]))
    assert "one number" in pictures.table(3.5)


def test_constant_nan_and_infinite_entries_are_drawn():
    for values in (np.zeros((2, 2)), np.full((2, 2), np.nan), np.array([[np.inf, 1.0]])):
        with np.errstate(all="raise"):
            assert "data:image/png" in pictures.heat(np.nan_to_num(values, posinf=1e30))
        assert pictures.table(values).count("<td") == values.size
    for drawn in (
        pictures.lines({"a": [1.0, np.nan, 2.0]}, log_y=True),
        pictures.lines({"a": [0.0, 0.0]}, log_y=True, mark=1),
        pictures.lines({"a": [7.0]}, mark=0),
    ):
        places = re.findall(r' (?:points|x|y|x1|y1|x2|y2|d)="([^"]*)"', drawn)
        assert places and not any("nan" in place or "inf" in place for place in places)


def test_curves_rise_where_values_rise():
    points = re.search(r'points="([^"]+)"', pictures.lines({"a": [1, 2, 4]}, x=[1, 10, 100], log_x=True, log_y=True))[1]
    (x0, y0), (x1, y1), (x2, y2) = (map(float, pair.split(",")) for pair in points.split())
    assert y0 > y1 > y2  # SVG counts downward
    assert abs((x1 - x0) - (x2 - x1)) < 0.2 and abs((y1 - y0) - (y2 - y1)) < 0.2


def test_names_are_escaped():
    for html in (pictures.heat([1.0], '<b>&"'), pictures.bars({"<b>": 1}), pictures.graph({"0": "<b>"}, [])):
        assert "<b>" not in html


@pytest.mark.parametrize(
    "draw",
    [
        lambda: pictures.heat(np.ones((2, 2, 2)), "cube"),
        lambda: pictures.table(np.ones((0, 2)), "cube"),
        lambda: pictures.lines({"a": [1, 2], "b": [1]}, "cube"),
        lambda: pictures.lines({}, "cube"),
        lambda: pictures.bars({}, "cube"),
    ],
)
def test_what_has_no_picture_is_refused_by_its_title(draw):
    with pytest.raises(ShapeError, match="cube"):
        draw()


def test_a_tape_is_what_a_tensor_remembers(device):
    x, a = leaf(0.5), leaf(2.0)
    nodes, edges = pictures.tape((x * x + a * x).tanh(), {"x": x, "a": a})
    texts = list(nodes.values())
    assert sorted(texts) == ["Add", "Multiply", "Multiply", "Tanh", "a|2", "x|0.5"] and texts[-1] == "Tanh"
    named = sorted((nodes[a].split("|")[0], nodes[b]) for a, b in edges)
    assert named == sorted(
        [("Add", "Tanh"), ("Multiply", "Add"), ("Multiply", "Add"), ("a", "Multiply")] + 3 * [("x", "Multiply")]
    )
    order = list(nodes)
    assert all(order.index(source) < order.index(target) for source, target in edges)
    assert pictures.graph(nodes, edges).count("<rect") == 6 and ">x2</text>" in pictures.graph(nodes, edges)


def test_a_long_legend_takes_more_rows_and_stays_inside():
    names = [f"a rather long name, number {number}" for number in range(4)]
    drawn = pictures.lines({name: [1, 2] for name in names})
    height = int(re.search(r'height="(\d+)"', drawn)[1])
    places = re.findall(r'<text x="([\d.]+)" y="([\d.]+)"[^>]*>a rather', drawn)
    assert len({y for _, y in places}) == 4 and all(float(y) < height for _, y in places)


def test_a_band_is_wide_and_pale_and_the_other_curves_are_not():
    picture = pictures.lines({"front": [1, 2, 3], "exit": [1, 2, 3]}, "losses", band="front")
    assert re.findall(r'stroke-width="(\d)"(?: stroke-opacity="([.\d]+)")?/', picture) == [("9", ".35"), ("2", "")]
    with pytest.raises(ShapeError, match="losses.*no curve 'none' to draw wide, expected one of front"):
        pictures.lines({"front": [1, 2]}, "losses", band="none")


def test_an_axis_begins_where_it_is_asked_to_unless_a_curve_goes_lower():
    def ends(**options):
        return re.findall(r'text-anchor="end"[^>]*>([^<]+)<', pictures.lines({"loss": [4.0, 3.0]}, **options))[:2]

    assert ends() == ["4", "3"] and ends(low=0.0) == ["4", "0"] and ends(low=3.5) == ["4", "3"]


@pytest.mark.parametrize(
    ("bent", "said"),
    [
        ({}, ""),
        ({"log_x": True}, "across"),
        ({"log_y": True}, "upright"),
        ({"log_x": True, "log_y": True}, "across and upright"),
    ],
)
def test_a_caption_says_which_axis_is_logarithmic(bent, said):
    drawn = pictures.lines({"loss": [4.0, 3.0]}, "losses", x=[1.0, 2.0], **bent)
    assert ("logarithmic: " + said + "<" in drawn) if said else ("logarithmic" not in drawn)


def test_a_long_number_beside_a_bar_stays_inside():
    drawn = pictures.bars({"factors": 9216, "dense": 524_288_000.0 / 8}, "numbers")
    width = int(re.search(r'<svg[^>]* width="(\d+)"', drawn)[1])
    place = float(re.search(r'<text x="([\d.]+)"[^>]*>65,536,000<', drawn)[1])
    assert place + 6.6 * len("65,536,000") <= width


@pytest.mark.parametrize(
    ("number", "written"),
    [
        (32768.0, "32,768"),
        (768.0, "768"),
        (0.0, "0"),
        (0.12345, "0.123"),
        (1e6, "1,000,000"),
        (1e12, "1e+12"),
        (float("nan"), "nan"),
        (float("inf"), "inf"),
    ],
)
def test_an_axis_writes_whole_numbers_in_full(number, written):
    assert pictures._figure(number) == written
