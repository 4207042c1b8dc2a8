from __future__ import annotations

from tests.lesson_answers import Answers, Wrong

ANSWERS = Answers(
    wrong=[
        Wrong("share", lambda m, n, p, q: m * n * p * q / (m * n + p * q), "other way round"),
        Wrong("share", lambda m, n, p, q: (m * n + p * q) / ((m + p) * (n + q)), "*times* p"),
        Wrong("share", lambda m, n, p, q: (m + n + p + q) / (m * n * p * q), "rows times columns"),
        Wrong("share", lambda m, n, p, q: 2 / (m * n), "m, n, p, q = (2, 3, 4, 5)"),
        Wrong("share", lambda m, n, p, q: 1.0, "expected"),
        Wrong("share", lambda m, n, p, q: None, "return", "todo"),
        Wrong("share", lambda m, n, p, q: m / 0, "ZeroDivisionError", "error"),
    ],
    widgets={"side": (1, 12), "guess_2": ("2 in 64", "1 in 2", None)},
    pictures=4,
)
