"""The kit of the lessons: a check accepts what is right, and says of each wrong answer what is wrong with it."""

from __future__ import annotations

import types

import numpy as np
import pytest

pytest.importorskip("marimo", reason="the extra `lessons` is not installed")
from marimo._runtime.control_flow import MarimoStopError

from tests.helpers import leaf
from tinykron import backend, kit
from tinykron.backend import to_device
from tinykron.kit import checks
from tinykron.tensor import Tensor

MATRIX = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], np.float32)


def transposed(answer, mistakes=()):
    """Check an answer to: transpose this matrix."""
    given = to_device(MATRIX.copy())
    return kit.check("transpose", answer, [("two rows", (given,), to_device(MATRIX.T.copy()))], mistakes)


def unwritten(x):
    raise kit.Todo


def unwritten_too(x):
    raise NotImplementedError


def in_place(x):
    x *= 2.0
    return x.T


def nan(x):
    return x.T * float("nan")


@pytest.mark.parametrize(
    ("answer", "state", "words"),
    [
        (lambda x: x.T, "ok", ["passes"]),
        (lambda x: Tensor(x.T), "ok", []),
        (lambda x: x.T + 1e-6, "ok", []),
        (unwritten, "todo", ["kit.Todo"]),
        (unwritten_too, "todo", []),
        (lambda x: None, "todo", ["two rows", "return"]),
        (lambda x: x @ x, "error", ["two rows", "ValueError", "at `"]),
        (lambda x: x, "no", ["(2, 3)", "(3, 2)"]),
        (lambda x: x.reshape(3, 2), "no", ["(0, 1)", "is `2`", "`4`"]),
        (lambda x: x.T + 1e-2, "no", ["(0, 0)"]),
        (nan, "no", ["nan"]),
        (in_place, "no", ["argument 1", "in place"]),
        (lambda x: [[1.0, 4.0]], "no", ["(1, 2)"]),
        (lambda x: "x.T", "no", ["str", "(3, 2)"]),
        (lambda x: print, "no", ["builtin_function"]),
    ],
)
def test_a_check_says_what_is_wrong(device, answer, state, words):
    found = transposed(answer)
    assert (found.state, bool(found)) == (state, state == "ok"), found
    assert all(word in found.message for word in words), found


def test_a_known_mistake_is_named_be_it_of_shape_or_of_value():
    mistakes = [("Not transposed.", lambda x: x), ("Reshaped.", lambda x: x.reshape(3, 2)), ("Bad.", unwritten)]
    assert "Not transposed." in transposed(lambda x: x.copy(), mistakes).message
    assert "Reshaped." in transposed(lambda x: x.reshape(3, 2), mistakes).message
    assert not any(text in transposed(lambda x: 3 * x.T, mistakes).message for text, _ in mistakes)


def test_an_answer_that_left_the_device_is_refused():
    from tinykron import backend

    with backend.device("fake"):
        assert "expected on" in transposed(lambda x: x.get().T).message


@pytest.mark.parametrize(
    ("answer", "wanted", "right"),
    [
        (True, True, True),
        (np.True_, True, True),
        (1, True, False),
        ("row", "row", True),
        ("column", "row", False),
        (None, None, True),
        (0, None, False),
        ((1.0, "a"), (1.0, "a"), True),
        ((1.0, "b"), (1.0, "a"), False),
        ((1.0,), (1.0, "a"), False),
        (1.0, (1.0, "a"), False),
        ([2, 3], (2, 3), True),
        ((2, 4), (2, 3), False),
        (7, 7, True),
        (7.5, 7, False),
        (np.float32(2.0), 2.0, True),
        ([[6]], 6, False),
        (float("inf"), float("inf"), True),
    ],
)
def test_what_may_be_wanted(answer, wanted, right):
    assert bool(kit.check("f", lambda: answer, [("it", (), wanted)])) is right


def test_the_tolerance_follows_the_dtype_and_the_largest_entry():
    wanted = np.array([1000.0, 0.0], np.float32)
    assert kit.check("f", lambda: wanted + np.float32(0.01), [("it", (), wanted)])
    assert not kit.check("f", lambda: wanted + np.float32(1.0), [("it", (), wanted)])
    assert not kit.check("f", lambda: wanted.astype(float) + 0.01, [("it", (), wanted.astype(float))])
    assert kit.check("f", lambda: wanted + 1.0, [("it", (), wanted)], tolerance=1e-2)


def test_arguments_can_be_made_anew_for_every_call():
    def slope(x):
        (x * x).sum().backward()
        return x.grad

    def doubled(x):
        return 2.0 * slope(x)

    case = ("it", lambda: (leaf([3.0, 4.0]),), np.array([6.0, 8.0], np.float32))
    assert kit.check("slope", slope, [case])
    assert "Twice." in kit.check("slope", doubled, [case], [("Twice.", doubled)]).message


OPTIONS = {"4": "two and two", "5": "one too many"}


def closed(monkeypatch, auto: bool, act) -> bool:
    monkeypatch.setenv("TINYKRON_LESSON_AUTO", "1" if auto else "0")
    try:
        act()
    except MarimoStopError:
        return True
    return False


@pytest.mark.parametrize("auto", [False, True])
def test_gates_are_closed_until_answered_unless_headless(monkeypatch, auto):
    def guess(value):
        return lambda: kit.reveal(types.SimpleNamespace(value=value), OPTIONS)

    right, wrong = checks.Result("f", "ok", ""), checks.Result("f", "no", "")
    assert closed(monkeypatch, auto, guess(None)) is not auto
    assert closed(monkeypatch, auto, lambda: kit.finish(right, wrong, text="")) is not auto
    for passing in (guess("4"), guess("5"), guess(checks.SEE), lambda: kit.finish(right, text="")):
        assert not closed(monkeypatch, auto, passing)


def test_a_reveal_says_why_the_guess_was_wrong():
    said = {value: kit.reveal(types.SimpleNamespace(value=value), OPTIONS).text for value in ("4", "5", checks.SEE)}
    assert all("two and two" in text for text in said.values())
    assert "one too many" in said["5"] and "one too many" not in said["4"] + said[checks.SEE]


def test_a_prediction_offers_a_way_past_and_does_not_give_the_answer_away():
    first = []
    for number in range(20):
        widget = kit.predict("?", {f"right {number}": "", f"wrong {number}": "", f"also wrong {number}": ""})
        assert list(widget.options)[-1] == checks.SEE and widget.value is None
        first.append(next(iter(widget.options)).startswith("right"))
    assert 2 < sum(first) < 18


def test_help_is_folded_and_ends_with_the_check():
    def page(state):
        return kit.help(checks.Result("f", state, ""), "A question.", "\n    def f():\n        pass\n")._mime_()[1]

    assert "Hint" in page("todo") and "Solution" in page("no")
    assert "Hint" not in page("ok") and "Another way" in page("ok")
    assert kit.help(checks.Result("f", "ok", ""), "", "\n    def f():\n        pass\n").solution == "def f():\n    pass"


def test_what_is_made_once_is_made_anew_for_other_arguments_devices_and_code(monkeypatch):
    calls = []

    def make(value):
        calls.append(value)
        return [value]

    first = kit.once(make, 1)
    assert kit.once(make, 1) is first and kit.once(make, 2) == [2] and calls == [1, 2]
    with backend.device("fake"):
        assert kit.once(make, 1) is not first
    monkeypatch.setenv("TINYKRON_LESSON_FAST", "1")
    assert kit.once(make, 1) is not first
    monkeypatch.delenv("TINYKRON_LESSON_FAST")

    def make(value):  # edited by a learner
        return [value + 1]

    assert kit.once(make, 1) == [2]


def test_a_judge_lets_several_answers_be_right_and_names_mistakes_too():
    def judge(answer, numbers):
        return "sorted" if answer == sorted(numbers) or answer == sorted(numbers)[::-1] else "not sorted"

    def check(answer):
        mistakes = [("Nothing was done.", lambda numbers: numbers)]
        return kit.check("sort", answer, [("three", ([2, 3, 1],), "sorted")], mistakes, judge=judge)

    assert check(sorted) and check(lambda numbers: sorted(numbers, reverse=True))
    assert "Nothing was done." in check(lambda numbers: numbers).message
    assert check(unwritten).state == "todo" and check(lambda numbers: None).state == "todo"


def test_a_mistake_that_gives_nan_is_named_and_nan_is_never_right():
    def naive(x):
        return np.exp(x) / np.exp(x).sum()

    def safe(x):
        return naive(x - x.max())

    large = np.array([1000.0, 999.0])
    found = kit.check("softmax", naive, [("large", (large,), safe(large))], [("It overflows.", naive)])
    assert found.state == "no" and "It overflows." in found.message
    assert not kit.check("f", lambda: np.nan, [("it", (), np.array(np.nan))])


def test_what_differs_in_a_tuple_of_numbers_is_counted_from_one():
    assert "value 2 of your answer" in kit.check("f", lambda: (1.0, 2.0), [("it", (), (1.0, 3.0))]).message
    assert "expected 2 values" in kit.check("f", lambda: 1.0, [("it", (), (1.0, 3.0))]).message


def test_the_face_has_what_it_lists_and_nothing_else_of_the_checks():
    assert sorted(kit.__all__) == kit.__all__ and all(hasattr(kit, name) for name in kit.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'SEE'"):
        _ = kit.SEE
