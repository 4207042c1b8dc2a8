"""Pictures for the lessons: small, drawn in milliseconds, readable on light and dark pages, described in words.

An array is a PNG with one pixel for each entry, or a table of numbers where it is small; curves, bars and graphs are
SVG. All return HTML text; `kit` shows it. Arrays of every device are taken, and every picture says in its alternative
text what it shows: for a screen reader, and for the tests.
"""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from tinykron.backend import to_host
from tinykron.errors import ShapeError
from tinykron.tensor import Tensor

COLOURS = ("#2f81c7", "#d1602a", "#3a9a4a", "#a05fc0", "#b08a00", "#c7457a")  # each readable on white and on black
NEGATIVE, POSITIVE = (47, 129, 199), (209, 96, 42)  # blue and orange: told apart by every kind of colour vision
TABLE_ENTRIES = 144  # the largest array that is shown as numbers


def host(value: Any) -> np.ndarray:
    """Return a Tensor, an array of any device, a number or a list of numbers as a NumPy array."""
    if isinstance(value, Tensor):
        return value.numpy()
    return np.asarray(value) if isinstance(value, (bool, int, float, list, tuple, np.generic)) else to_host(value)


def _matrix(array: Any, title: str) -> np.ndarray:
    values = np.atleast_2d(host(array)).astype(float)
    if values.ndim > 2 or not values.size:
        raise ShapeError(f"picture {title!r}: expected a vector or a matrix with entries, found shape {values.shape}")
    return values


def _shape(array: Any) -> str:
    return " by ".join(str(size) for size in host(array).shape) or "one number"


def _described(array: Any, values: np.ndarray, title: str) -> str:
    return f"{title}: {_shape(array)}, from {values.min():.3g} to {values.max():.3g}"


def figure(picture: str, caption: str) -> str:
    """Return a picture with its caption below."""
    below = f'<figcaption style="font-size:.85em">{caption}</figcaption>'
    return f'<figure style="margin:4px 12px 4px 0;display:inline-block">{picture}{below}</figure>'


def _png(values: np.ndarray, palette: bytes) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows, columns = values.shape
    raw = b"".join(b"\0" + row.tobytes() for row in values)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", columns, rows, 8, 3, 0, 0, 0))
    data = chunk(b"PLTE", palette) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + data


def _palette() -> bytes:
    """Return 256 colours: blue at 0, white in the middle, orange at 255."""
    strength = np.linspace(-1, 1, 256)[:, None]
    end = np.where(strength < 0, np.array(NEGATIVE), np.array(POSITIVE))
    return (255 + (end - 255) * np.abs(strength)).round().astype(np.uint8).tobytes()


def heat(array: Any, title: str = "", size: int = 190, top: float | None = None) -> str:
    """Draw a vector or a matrix, one pixel for each entry: orange above zero, blue below, white at zero.

    size  pixels of the longer side
    top   the size of a number that has the full colour (default: the largest here); one `top` makes pictures comparable
    """
    values = _matrix(array, title)
    finite = np.nan_to_num(values, nan=0.0)
    full = top or max(float(np.abs(finite).max()), 1e-12)
    levels = ((np.clip(finite / full, -1, 1) + 1) * 127.5).round().astype(np.uint8)
    rows, columns = values.shape
    longest = max(rows, columns)
    width, height = max(round(size * columns / longest), 6), max(round(size * rows / longest), 6)
    source = base64.b64encode(_png(levels, _palette())).decode()
    alt = escape(_described(array, values, title), quote=True)
    style = (
        f"width:{width}px;height:{height}px;max-width:none;image-rendering:pixelated;border:1px solid #8888;margin:0"
    )
    caption = f"{escape(title)} <small>{_shape(array)}</small>"
    return figure(f'<img alt="{alt}" style="{style}" src="data:image/png;base64,{source}">', caption)


def table(array: Any, title: str = "", digits: int = 2, top: float | None = None, lit: Any = None) -> str:
    """Show a small vector or matrix as numbers, each on its colour; a large one as `heat`.

    digits  behind the point
    top     as in `heat`
    lit     True where an entry gets a frame: a mask of the array's shape, or the index of one entry
    """
    values = _matrix(array, title)
    if values.size > TABLE_ENTRIES:
        return heat(array, title, top=top)
    full = top or max(float(np.abs(np.nan_to_num(values)).max()), 1e-12)
    framed = np.zeros(host(array).shape, bool)
    if lit is not None:
        framed[host(lit) if getattr(lit, "dtype", None) is not None else lit] = True
    framed = np.atleast_2d(framed)
    rows = []
    for row, frames in zip(values, framed, strict=True):
        cells = []
        for value, frame in zip(row, frames, strict=True):
            red, green, blue = POSITIVE if value > 0 else NEGATIVE
            alpha = 0.0 if np.isnan(value) else 0.5 * min(abs(value) / full, 1.0)
            edge = "2px solid currentColor" if frame else "1px solid #8885"
            text = f"{value:.{digits}f}" if abs(value) < 1e5 else f"{value:.1e}"
            text = text.lstrip("-") if not text.strip("-0.") else text  # no minus before nothing
            style = f"background:rgba({red},{green},{blue},{alpha:.2f});border:{edge};padding:2px 7px;text-align:right"
            cells.append(f'<td style="{style}">{text}</td>')
        rows.append(f"<tr>{''.join(cells)}</tr>")
    places = [f"({row}, {column})" for row, column in np.argwhere(framed)]
    lit_places = "" if not places else "; lit: " + (", ".join(places) if len(places) < 9 else f"{len(places)} entries")
    label = escape(_described(array, values, title) + lit_places, quote=True)
    style = "border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.9em;margin:0;width:auto"
    body = f'<table role="img" aria-label="{label}" style="{style}">{"".join(rows)}</table>'
    return figure(body, f"{escape(title)} <small>{_shape(array)}</small>")


# Curves, bars, graphs ------------------------------------------------------------------------------------------------


def _text(x: float, y: float, text: str, anchor: str = "start", colour: str = "currentColor") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="11" text-anchor="{anchor}" fill="{colour}">{escape(text)}</text>'


def _svg(width: float, height: float, alt: str, body: str, caption: str) -> str:
    label = escape(alt, quote=True)
    tag = f'<svg role="img" aria-label="{label}" width="{width:.0f}" height="{height:.0f}" style="max-width:none">'
    return figure(f"{tag}{body}</svg>", caption)


def _scale(values: np.ndarray, log: bool) -> np.ndarray:
    return np.log10(np.maximum(values, 1e-30)) if log else values


def lines(
    series: Mapping[str, Any],
    title: str = "",
    x: Any = None,
    x_label: str = "",
    y_label: str = "",
    log_x: bool = False,
    log_y: bool = False,
    mark: float | None = None,
    band: str = "",
    low: float | None = None,
    size: tuple[int, int] = (340, 200),
) -> str:
    """Draw curves over one axis.

    series  name -> values (n,)
    x       where they are (n,); default 0, 1, 2, ...
    mark    a place on the x axis for a vertical line: where a slider stands
    band    a name in `series`: drawn wide and pale, so that a curve that lies on it stays in sight
    low     where the upright axis begins, unless a curve goes lower: so that one that hardly falls looks so
    log_x, log_y  logarithmic axes, which the caption says; what is not positive is drawn at the lower edge
    """
    width, height = size
    curves = {name: host(values).astype(float).reshape(-1) for name, values in series.items()}
    legend: list[list[tuple[float, str]]] = [[]]  # rows of (place, name)
    across = 58.0
    for name in curves:
        if across + 6.0 * len(name) > width and legend[-1]:
            legend, across = [*legend, []], 58.0
        legend[-1].append((across, name))
        across += 6.0 * len(name) + 14
    left, right, top, bottom = 58, width - 8, 8, height - 34
    height += 14 * (len(legend) - 1)
    lengths = {len(values) for values in curves.values()}
    if len(lengths) != 1 or 0 in lengths:
        raise ShapeError(f"picture {title!r}: expected curves of one length, found {sorted(lengths)}")
    if band and band not in curves:
        raise ShapeError(
            f"picture {title!r}: found no curve {band!r} to draw wide, expected one of {', '.join(curves)}"
        )
    places = np.arange(lengths.pop()) if x is None else host(x).astype(float).reshape(-1)
    shown = np.concatenate([values[np.isfinite(values) & ((values > 0) | (not log_y))] for values in curves.values()])
    least, high = (float(shown.min()), float(shown.max())) if shown.size else (0.0, 1.0)
    low = least if low is None else min(low, least)
    low_y, high_y = (float(_scale(np.array(end), log_y)) for end in (low, high))
    first, last = float(places[0]), float(places[-1])
    low_x, high_x = (float(_scale(np.array(end), log_x)) for end in (first, last))

    def at(px: np.ndarray, py: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        across = (_scale(px, log_x) - low_x) / ((high_x - low_x) or 1.0)
        up = (np.clip(_scale(py, log_y), low_y, high_y) - low_y) / ((high_y - low_y) or 1.0)
        return left + across * (right - left), bottom - up * (bottom - top)

    body = [f'<path d="M{left} {top}V{bottom}H{right}" fill="none" stroke="currentColor" stroke-opacity=".5"/>']
    body += [_text(left - 4, top + 9, _figure(high), "end"), _text(left - 4, bottom, _figure(low), "end")]
    body += [_text(left, bottom + 13, _figure(first)), _text(right, bottom + 13, _figure(last), "end")]
    body.append(_text((left + right) / 2, bottom + 13, x_label, "middle"))
    if y_label:
        middle = (top + bottom) / 2
        turned = _text(14, middle, y_label, "middle").replace("<text", f'<text transform="rotate(-90 14 {middle:.1f})"')
        body.append(turned)
    if mark is not None:
        place = float(at(np.array([mark], float), np.array([low]))[0][0])
        body.append(f'<path d="M{place:.1f} {top}V{bottom}" stroke="currentColor" stroke-dasharray="3 3"/>')
    for number, (name, values) in enumerate(curves.items()):
        colour = COLOURS[number % len(COLOURS)]
        keep = np.isfinite(values)
        points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(*at(places[keep], values[keep]), strict=True))
        line = 'stroke-width="9" stroke-opacity=".35"' if name == band else 'stroke-width="2"'
        body.append(f'<polyline points="{points}" fill="none" stroke="{colour}" {line}/>')
        level, start = next((level, at) for level, row in enumerate(legend) for at, key in row if key == name)
        body.append(_text(start, bottom + 29 + 14 * level, name, colour=colour))
    says = [f"{name} from {values[0]:.3g} to {values[-1]:.3g}" for name, values in curves.items()]
    bent = [name for name, is_log in (("across", log_x), ("upright", log_y)) if is_log]
    note = f" <small>logarithmic: {' and '.join(bent)}</small>" if bent else ""
    return _svg(width, height, f"{title}: {'; '.join(says)}", "".join(body), escape(title) + note)


def _figure(number: float, digits: int = 3) -> str:
    """Write a number beside a picture: whole and large ones in full, others to some digits."""
    if 1e4 <= abs(number) < 1e8:
        return f"{number:,.0f}"
    return f"{number:.0f}" if number.is_integer() and abs(number) < 1e8 else f"{number:.{digits}g}"


def bars(values: Mapping[str, Any], title: str = "", width: int = 340) -> str:
    """Draw named numbers as bars from zero, one below the other, each with its number."""
    numbers = {name: float(host(value)) for name, value in values.items()}
    if not numbers:
        raise ShapeError(f"picture {title!r}: expected at least one bar")
    finite = [value for value in numbers.values() if np.isfinite(value)]
    low, high = min(0.0, *finite, 0.0), max(0.0, *finite, 0.0)
    left = 12 + 6.6 * max(len(name) for name in numbers)
    written = {name: _figure(value, digits=4) for name, value in numbers.items()}
    room = width - left - 6 - 6.6 * max(8, *map(len, written.values()))
    unit = room / ((high - low) or 1.0)
    body = []
    for number, (name, value) in enumerate(numbers.items()):
        y = 20 * number + 4
        size = value if np.isfinite(value) else 0.0
        start, length = left + (min(size, 0.0) - low) * unit, abs(size) * unit
        colour = COLOURS[number % len(COLOURS)]
        body.append(_text(left - 6, y + 12, name, "end"))
        body.append(f'<rect x="{start:.1f}" y="{y}" width="{length:.1f}" height="15" fill="{colour}"/>')
        body.append(_text(start + length + 4, y + 12, written[name]))
    says = ", ".join(f"{name} {number}" for name, number in written.items())
    return _svg(width, 20 * len(numbers) + 8, f"{title}: {says}", "".join(body), escape(title))


def tape(tensor: Tensor, names: Mapping[str, Tensor]) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """Return what a tensor remembers, as `graph` takes it: (nodes in the order of the forward pass, edges).

    names  what to call the leaves, by name; a leaf's box shows its value too, where that is one number
    """
    called = {id(leaf): name for name, leaf in names.items()}
    nodes: dict[str, str] = {}
    edges: list[tuple[str, str]] = []

    def visit(source: Any) -> str:
        key = str(id(source))
        if key in nodes:
            return key
        if isinstance(source, Tensor):
            name = called.get(id(source), "leaf")
            nodes[key] = f"{name}|{source.item():.4g}" if source.size == 1 else f"{name}|{_shape(source)}"
            return key
        behind = [
            parent if isinstance(parent, Tensor) else parent[0] for parent in source.parents if parent is not None
        ]
        before = [visit(parent) for parent in behind]
        nodes[key] = source.name
        edges.extend((parent, key) for parent in before)
        return key

    visit(tensor if tensor.node is None else tensor.node)
    short = {key: f"{text.split('|')[0]}{number}" for number, (key, text) in enumerate(nodes.items())}
    return {short[key]: text for key, text in nodes.items()}, [(short[a], short[b]) for a, b in edges]


def graph(
    nodes: Mapping[str, str], edges: Sequence[tuple[str, str]], title: str = "", lit: Sequence[str] = (), note: str = ""
) -> str:
    """Draw a graph from left to right, each node behind all that lead to it.

    nodes  key -> what is written in its box; "|" begins a second line
    edges  (from, to) of keys; a repeated edge is drawn once, with its number
    lit    the keys of nodes that are filled
    """
    depth = dict.fromkeys(nodes, 0)
    for _ in nodes:  # a graph without cycles settles in as many rounds as it is deep
        for source, target in edges:
            depth[target] = max(depth[target], depth[source] + 1)
    columns: dict[int, list[str]] = {}
    for key, column in depth.items():
        columns.setdefault(column, []).append(key)
    wide = 24 + 6.8 * max((len(line) for text in nodes.values() for line in text.split("|")), default=1)
    step, row = wide + 34, 50
    tallest = max(len(keys) for keys in columns.values())
    top = 36 if any(depth[b] - depth[a] > 1 for a, b in edges) else 6  # an edge over a column goes above its boxes
    place = {
        key: (6 + column * step, top + row * (i + (tallest - len(keys)) / 2))
        for column, keys in columns.items()
        for i, key in enumerate(keys)
    }
    body = []
    for source, target in dict.fromkeys(edges):
        (x1, y1), (x2, y2) = place[source], place[target]
        x1, y1, y2 = x1 + wide, y1 + 18, y2 + 18
        middle = (x1 + x2) / 2
        path = f"M{x1:.0f} {y1:.0f}C{middle:.0f} {y1:.0f} {middle:.0f} {y2:.0f} {x2:.0f} {y2:.0f}"
        if depth[target] - depth[source] > 1:
            over = min(y1, y2) - 62
            path = f"M{x1:.0f} {y1:.0f}C{x1 + 30:.0f} {over:.0f} {x2 - 30:.0f} {over:.0f} {x2:.0f} {y2:.0f}"
        body.append(f'<path d="{path}" fill="none" stroke="currentColor" stroke-opacity=".6"/>')
        if (count := list(edges).count((source, target))) > 1:
            body.append(_text(middle, (y1 + y2) / 2 - 4, f"x{count}", "middle"))
    for key, text in nodes.items():
        x, y = place[key]
        fill = f'fill="{COLOURS[1]}" fill-opacity=".45"' if key in lit else 'fill="currentColor" fill-opacity=".06"'
        body.append(
            f'<rect x="{x:.0f}" y="{y:.0f}" width="{wide:.0f}" height="37" rx="6" {fill} stroke="currentColor"/>'
        )
        parts = text.split("|")
        for i, part in enumerate(parts):
            body.append(_text(x + wide / 2, y + (23 if len(parts) == 1 else 15 + 14 * i), part, "middle"))
    says = ", ".join(text.replace("|", " ") for text in nodes.values())
    alt = f"{title}: {says}. {note or 'lit: ' + (', '.join(nodes[key].replace('|', ' ') for key in lit) or 'none')}"
    return _svg(step * len(columns), top + row * tallest - 2, alt, "".join(body), escape(title))
