"""What the lessons are made of: pictures, predictions, checks of what a learner writes, gates between steps.

A lesson imports this file, marimo's `mo.md`, sliders, and tinykron; no lesson touches the rest of marimo. Two settings
of the environment are for the tests and for `tinykron lesson check`: TINYKRON_LESSON_AUTO=1 opens every gate,
TINYKRON_LESSON_FAST=1 asks for the smallest settings (`fast()`).
"""

from __future__ import annotations

import os
import traceback
import zlib
from collections.abc import Callable, Mapping, Sequence
from inspect import cleandoc
from typing import Any

import marimo as mo
import numpy as np

from tinykron import backend
from tinykron.backend import backend_of
from tinykron.errors import TinykronError
from tinykron.kit import pictures
from tinykron.kit.pictures import host
from tinykron.tensor import Tensor

TOLERANCE = {"float16": 1e-2, "float32": 1e-4, "float64": 1e-7}  # of a check, relative to the largest entry expected
SEE = "I'd rather see it"  # the answer to every question: no gate without a way past
KINDS: dict[str, Any] = {"ok": "success", "todo": "neutral", "no": "warn", "error": "danger"}


class Todo(Exception):  # noqa: N818  an exercise reads `raise kit.Todo`
    """Raised by an exercise that nobody has written yet."""


def array_module() -> Any:
    """Return the array module of the default device, NumPy or CuPy: a lesson's `xp`."""
    return backend.get(backend.current_device()).xp


def fast() -> bool:
    """Say whether the smallest settings are asked for: a lesson with training takes fewer steps then."""
    return os.environ.get("TINYKRON_LESSON_FAST") == "1"


_made: dict[Any, Any] = {}


def once(make: Callable[..., Any], *arguments: Any) -> Any:
    """Return make(*arguments), made once for each device as long as the function's code stays the same: for training.

    An export runs a lesson anew for each place of a slider, and the tests do for each wrong answer.
    """
    key = make.__code__, arguments, backend.current_device(), fast()
    if key not in _made:
        _made[key] = make(*arguments)
    return _made[key]


def _auto() -> bool:
    return os.environ.get("TINYKRON_LESSON_AUTO") == "1"


# Pictures -----------------------------------------------------------------------------------------------------------


def _shown(draw: Callable[..., str]) -> Callable[..., mo.Html]:
    def show(*args: Any, **options: Any) -> mo.Html:
        return mo.Html(draw(*args, **options))

    show.__doc__, show.__name__ = draw.__doc__, draw.__name__
    return show


heat, table, lines, bars, graph = (
    _shown(draw) for draw in (pictures.heat, pictures.table, pictures.lines, pictures.bars, pictures.graph)
)


def row(*parts: Any) -> mo.Html:
    """Put pictures beside each other; what does not fit goes below."""
    return mo.hstack(parts, justify="start", align="start", wrap=True)


# Predictions and gates ----------------------------------------------------------------------------------------------


def predict(question: str, options: Mapping[str, str]) -> Any:
    """Ask before showing.

    options  what can be chosen -> why it is right, or why not. The first is right; the page shuffles them.
    Returns a widget for `reveal`.
    """
    shuffled = sorted(options, key=lambda text: zlib.crc32(text.encode()))
    return mo.ui.radio(options=[*shuffled, SEE], label=f"**Predict.** {question}")


class Revealed:
    """The answer to a `predict`."""

    def __init__(self, text: str, kind: str) -> None:
        self.text, self.kind = text, kind

    def _mime_(self) -> tuple[str, str]:
        kind: Any = self.kind
        return mo.callout(mo.md(self.text), kind=kind)._mime_()


def reveal(guess: Any, options: Mapping[str, str]) -> Revealed:
    """Answer a `predict`, and open what is below: closed until something was chosen."""
    right = next(iter(options))
    gate(guess.value is not None, f'Choose an answer above, or "{SEE}": the next step opens.')
    if guess.value == right:
        return Revealed(f"Yes. **{right}**: {options[right]}", "success")
    why = f"Not quite. *{guess.value}*: {options[guess.value]}\n\n" if guess.value in options else ""
    return Revealed(f"{why}**{right}**: {options[right]}", "info")


def gate(open_: Any, message: str = "") -> None:
    """Stop this cell, and all that read from it, with a message; unless `open_` is true."""
    if not _auto():
        mo.stop(not open_, mo.callout(mo.md(message), kind="neutral") if message else None)


class Done:
    """The end of a lesson: true once all its checks are."""

    def __init__(self, done: bool, text: str) -> None:
        self.done, self.text = done, text

    def __bool__(self) -> bool:
        return self.done

    def _mime_(self) -> tuple[str, str]:
        return mo.callout(mo.md(self.text), kind="success")._mime_()


def finish(*results: Result, text: str) -> Done:
    """End a lesson: closed until all checks are green, then `text`: what was learned, and what comes next."""
    done = all(results)
    gate(done, "The lesson is done when every check above is green.")
    return Done(done, text)


# Checks -------------------------------------------------------------------------------------------------------------


class Result:
    """What a check found: `state` is "todo", "error", "no" or "ok"; true if it is "ok"."""

    def __init__(self, name: str, state: str, message: str) -> None:
        self.name, self.state, self.message = name, state, message

    def __bool__(self) -> bool:
        return self.state == "ok"

    def __repr__(self) -> str:
        return f"{self.name}: {self.state}: {self.message}"

    def _mime_(self) -> tuple[str, str]:
        return mo.callout(mo.md(f"**{self.name}**: {self.message}"), kind=KINDS[self.state])._mime_()


class Help:
    """A hint and a solution, folded away; after the check is green, the solution as another way to write it."""

    def __init__(self, result: Result, hint: str, solution: str) -> None:
        self.name, self.result = result.name, result
        self.hint, self.solution = cleandoc(hint), cleandoc(solution)

    def _mime_(self) -> tuple[str, str]:
        code = f"```python\n{self.solution}\n```"
        folds = {"Another way to write it": code} if self.result else {"Hint": self.hint, "Solution": code}
        return mo.accordion(folds)._mime_()


def help(result: Result, hint: str, solution: str) -> Help:
    """Offer help with the exercise that `result` is about.

    hint      a question or a fact, in Markdown, that does not spell the answer
    solution  the whole function, as Python; the tests run it
    """
    return Help(result, hint, solution)


Case = tuple[str, Any, Any]
Mistake = tuple[str, Callable[..., Any]]


def check(
    name: str,
    function: Callable[..., Any],
    cases: Sequence[Case],
    mistakes: Sequence[Mistake] = (),
    tolerance: float | None = None,
    judge: Callable[..., Any] | None = None,
) -> Result:
    """Try a learner's function; stop at the first case that it does not pass.

    name       of the function, as it is written in the lesson
    cases      (label, arguments, wanted). Arguments are a tuple, or a function without arguments that makes a fresh
               tuple for every call: for Tensors, whose `.grad` is filled. What is wanted is a number, an array or a
               Tensor (either may stand for the other), a string, a bool, None, or a tuple or list of these; compute it
               in another way than the solution does
    mistakes   (what it means, a function that makes this mistake): named where the learner's answer equals its answer
    tolerance  relative to the largest wanted entry; default by dtype: 1e-4 for float32, 1e-7 for float64
    judge      judge(answer, *arguments) is compared with what is wanted, in place of the answer: for exercises with
               several right answers. What it raises is the learner's mistake too
    The state is "todo" (not written, or nothing returned), "error" (it raised: which case, what, where), "no" (the
    shape first, a mistake by its name, or the first entry that differs) or "ok".
    """
    for label, arguments, wanted in cases:
        given = _fresh(arguments)
        before = [_copied(value) for value in given]
        try:
            with np.errstate(all="ignore"):  # a NaN is found below, and shown
                answer = function(*given)
                if judge and answer is not None:
                    answer = judge(answer, *given)
        except (Todo, NotImplementedError):
            return Result(name, "todo", "not started: replace `raise kit.Todo`.")
        except Exception as error:  # whatever a learner's code raises
            return Result(name, "error", f"{label}: `{type(error).__name__}: {error}`{_where(error, function)}")
        if answer is None and wanted is not None:
            return Result(name, "todo", f"{label}: your function returns `None`. Is a `return` missing?")
        for number, (value, old) in enumerate(zip(given, before, strict=True), 1):
            if old is not None and not np.array_equal(host(value), old, equal_nan=True):
                return Result(name, "no", f"{label}: argument {number} was changed in place; make a new array instead.")
        fault = _difference(answer, wanted, tolerance)
        if fault:
            for text, wrong in mistakes:
                if _same(wrong, _fresh(arguments), answer, tolerance, judge):
                    return Result(name, "no", f"{label}: {fault}. **{text}**")
            return Result(name, "no", f"{label}: {fault}.")
    return Result(name, "ok", f"{len(cases)} cases pass." if len(cases) > 1 else "it passes.")


def _fresh(arguments: Any) -> tuple[Any, ...]:
    return tuple(arguments() if callable(arguments) else arguments)


def _is_array(value: Any) -> bool:
    return isinstance(value, Tensor) or (hasattr(value, "shape") and hasattr(value, "dtype"))


def _copied(value: Any) -> np.ndarray | None:
    return np.array(host(value)) if _is_array(value) and not isinstance(value, np.generic) else None


def _where(error: Exception, function: Callable[..., Any]) -> str:
    """Return the learner's line that an error came through: not a line of tinykron's or NumPy's."""
    file = getattr(getattr(function, "__code__", None), "co_filename", None)
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    if not frames:
        return ""
    return f", at `{frames[-1].line}`" if frames[-1].line else f", at line {frames[-1].lineno}"


def _same(
    wrong: Callable[..., Any],
    arguments: tuple[Any, ...],
    answer: Any,
    tolerance: float | None,
    judge: Callable[..., Any] | None,
) -> bool:
    """Say whether a known mistake gives the learner's answer."""
    try:
        with np.errstate(all="ignore"):
            mistaken = wrong(*arguments)
            mistaken = judge(mistaken, *arguments) if judge else mistaken
        return not _difference(answer, mistaken, tolerance, nan=True)
    except Exception:  # the mistake has no answer here
        return False


def _difference(answer: Any, wanted: Any, tolerance: float | None, of: str = "your answer", nan: bool = False) -> str:
    """Return what is different, in words; "" if nothing is. NaN is like NaN only where `nan` says so."""
    if isinstance(wanted, (tuple, list)) and not all(isinstance(part, (int, float)) for part in wanted):
        if not isinstance(answer, (tuple, list)):
            return f"{of} is a `{type(answer).__name__}`, expected {len(wanted)} values"
        if len(answer) != len(wanted):
            return f"{of} has {len(answer)} values, expected {len(wanted)}"
        for number, (mine, theirs) in enumerate(zip(answer, wanted, strict=True), 1):
            if fault := _difference(mine, theirs, tolerance, f"value {number} of {of}", nan):
                return fault
        return ""
    if isinstance(wanted, (str, bool, type(None))):
        same = isinstance(answer, (type(wanted), np.bool_)) and answer == wanted
        return "" if same else f"{of} is `{answer!r}`, expected `{wanted!r}`"
    return _array_difference(answer, wanted, tolerance, of, nan)


def _array_difference(answer: Any, wanted: Any, tolerance: float | None, of: str, nan: bool) -> str:
    try:
        mine, theirs = host(answer), host(wanted)
        if mine.dtype.kind not in "biufc":
            raise TinykronError("no numbers")
    except (TinykronError, TypeError, ValueError):
        return f"{of} is a `{type(answer).__name__}`, expected numbers of shape `{np.shape(host(wanted))}`"
    several = isinstance(wanted, (tuple, list))
    if several and mine.ndim == 1 and len(mine) != len(theirs):
        return f"{of} has {len(mine)} values, expected {len(theirs)}"
    if several and mine.ndim == 0:
        return f"{of} is a `{type(answer).__name__}`, expected {len(theirs)} values"
    if mine.shape != theirs.shape:
        return f"the shape of {of} is `{mine.shape}`, expected `{theirs.shape}`"
    if _is_array(wanted) and _is_array(answer):
        home, found = _device(wanted), _device(answer)
        if home != "cpu" and found != home:
            return f'{of} is on "{found}", expected on "{home}"'
    if tolerance is None:
        tolerance = max(TOLERANCE.get(array.dtype.name, 0.0) for array in (mine, theirs))
    finite = np.abs(theirs[np.isfinite(theirs)])
    scale = float(finite.max()) if finite.size and finite.max() > 0 else 1.0
    with np.errstate(all="ignore"):
        close = np.isclose(mine, theirs, rtol=0.0, atol=tolerance * scale, equal_nan=nan)
    if close.all():
        return ""
    place = tuple(int(i) for i in np.argwhere(~close)[0])
    if several:
        of = f"value {place[0] + 1} of {of}"
    elif place:
        of = f"{of} at `{place}`"
    return f"{of} is `{mine[place]:.6g}`, expected `{theirs[place]:.6g}`"


def _device(value: Any) -> str:
    array = value.data if isinstance(value, Tensor) else value
    return "cpu" if isinstance(array, np.generic) else backend_of(array).name
