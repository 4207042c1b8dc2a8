import marimo

__generated_with = "0.25.2"
app = marimo.App(width="medium", app_title="5 Trust, but differentiate")

with app.setup(hide_code=True):
    import marimo as mo
    import numpy as np

    import tinykron as tk
    from tinykron import kit

    LESSON = 2


@app.cell(hide_code=True)
def title():
    mo.md(r"""
    # 5 · Trust, but differentiate

    **You build** a gradient checker, and find the planted bugs with it.

    **You see** why a smaller step is not a better one.

    **You need** lesson 4. A wrong gradient raises no error: the model just learns worse, and nobody knows why.
    """)
    return


@app.cell(hide_code=True)
def step_1():
    mo.md(r"""
    ## 1. A slope from two values

    Take $f$ a little to the right and a little to the left, and divide by the distance:

    $$f'(x)\approx\frac{f(x+h)-f(x-h)}{2h}$$

    It needs nothing but $f$. How small should $h$ be? The curves show the error for $f(x)=e^x$ near 1, at every step
    size, both axes in powers of ten. Move the mark from right to left.
    """)
    return


@app.cell(hide_code=True)
def slide_1():
    power = mo.ui.slider(-12.0, -1.0, 0.5, value=-3.0, label="log10 of h", show_value=True)
    power
    return (power,)


@app.cell(hide_code=True)
def see_1(power):
    _steps = 10 ** np.linspace(-12, -1, 89)

    def _errors(_dtype, _right, _left):
        _x, _found = _dtype(1.1), []
        for _h in _steps:
            _a, _b = _dtype(_x + _dtype(_right * _h)), _dtype(_x - _dtype(_left * _h))
            _slope = float(_dtype(np.exp(_a) - np.exp(_b))) / ((_right + _left) * _h)
            _found.append(abs(_slope - np.exp(1.1)) / np.exp(1.1) + 1e-13)
        return np.array(_found)

    _curves = {
        "one side, float64": _errors(np.float64, 1, 0),
        "two sides, float64": _errors(np.float64, 1, 1),
        "two sides, float32": _errors(np.float32, 1, 1),
    }
    _at = int(np.argmin(abs(_steps - 10**power.value)))
    kit.row(
        kit.lines(
            _curves, "relative error of the slope", x=_steps, x_label="h", log_x=True, log_y=True, mark=_steps[_at]
        ),
        kit.bars(
            {_name: max(0.0, -np.log10(_error[_at])) for _name, _error in _curves.items()}, "right digits at this h"
        ),
    )
    return


@app.cell(hide_code=True)
def predict_1():
    options_1 = {
        "f(x + h) and f(x - h) become too alike": """their first digits are the same, and the difference keeps only the
            others: few, and rounded. That rounding is then divided by a tiny h.""",
        "the formula needs more terms": "they would help on the right, where h is large. Smaller is better there, too.",
        "h itself becomes 0": "not for long: floats reach down to 1e-38 in float32, and the curves turn long before.",
    }
    guess_1 = kit.predict("Why does the error grow again on the left?", options_1)
    guess_1
    return guess_1, options_1


@app.cell(hide_code=True)
def reveal_1(guess_1, options_1):
    step_1_done = kit.reveal(guess_1, options_1)
    step_1_done
    return (step_1_done,)


@app.cell(hide_code=True)
def step_2(step_1_done):
    step_1_done
    mo.md(r"""
    ## 2. For an array, one entry at a time

    The curve of two sides in float64 is lowest at a step of about $10^{-5}$: ten right digits and more. An array has a
    slope for each of its entries: move that entry alone, both ways, and leave the array as you found it.

    ### Exercise 1: the numeric gradient
    """)
    return


@app.function
# EXERCISE 1. `f` takes a float64 array of the shape of x and returns a number. Return an
# array of the shape of x: the slope of f for each entry, by central differences.
# np.ndindex(x.shape) gives every index. Do not change x.
def numeric_gradient(f, x, step=1e-5):
    raise kit.Todo


@app.cell(hide_code=True)
def check_1(step_1_done):
    step_1_done
    _draws = np.random.default_rng(0)
    _w, _m = _draws.normal(size=(2, 3)), _draws.normal(size=(4, 4))
    _x2, _x4 = _draws.normal(size=(2, 3)), _draws.normal(size=4)
    _cases = [
        ("sum of w exp(3 x), x (2, 3)", (lambda _x: (_w * np.exp(3 * _x)).sum(), _x2), 3 * _w * np.exp(3 * _x2)),
        ("x m x, x (4,)", (lambda _x: _x @ _m @ _x, _x4), (_m + _m.T) @ _x4),
        ("1 / x, one number", (lambda _x: float(1 / _x), np.array(0.5)), np.array(-4.0)),
        ("x squared, x (1, 2)", (lambda _x: (_x**2).sum(), np.array([[3.0, -1.0]])), np.array([[6.0, -2.0]])),
    ]

    def _each(_slope):
        def _gradient(_f, _x):
            _found = np.zeros(_x.shape)
            for _place in np.ndindex(_x.shape):
                _unit = np.zeros(_x.shape)
                _unit[_place] = 1e-5
                _found[_place] = _slope(_f, _x, _unit) / 1e-5
            return _found

        return _gradient

    _one_side = "That looks to one side only, and is wrong by about h times the bend of f. Two sides cancel it."
    _all_at_once = "All entries were moved at once. That is one slope, in one direction; x has more."
    result_1 = kit.check(
        "numeric_gradient",
        numeric_gradient,
        _cases,
        tolerance=2e-6,
        mistakes=[
            (_one_side, _each(lambda _f, _x, _unit: _f(_x + _unit) - _f(_x))),
            (
                "The two points are 2 h apart: divide by that.",
                _each(lambda _f, _x, _unit: _f(_x + _unit) - _f(_x - _unit)),
            ),
            ("The sign is turned round.", _each(lambda _f, _x, _unit: (_f(_x - _unit) - _f(_x + _unit)) / 2)),
            (_all_at_once, lambda _f, _x: np.float64((_f(_x + 1e-5) - _f(_x - 1e-5)) / 2e-5)),
        ],
    )
    result_1
    return (result_1,)


@app.cell(hide_code=True)
def help_1(result_1):
    help_for_1 = kit.help(
        result_1,
        hint="For one index: `moved = np.zeros_like(x); moved[index] = step`. What are the two points?",
        solution="""
        def numeric_gradient(f, x, step=1e-5):
            found = np.zeros_like(x)
            for index in np.ndindex(x.shape):
                moved = np.zeros_like(x)
                moved[index] = step
                found[index] = (f(x + moved) - f(x - moved)) / (2 * step)
            return found
        """,
    )
    help_for_1
    return


@app.cell(hide_code=True)
def step_3(result_1):
    kit.gate(result_1, "Exercise 1 opens the next step.")
    mo.md(r"""
    ## 3. A check can be blind

    An op returns an array, the checker needs a number. Summing the result is the obvious way, and a trap: a sum weighs
    every entry alike, so a backward that mixes up entries looks right. **Weigh them at random**: $f(x)=\sum
    w\cdot\mathrm{op}(x)$, and the gradient that arrives is $w$, of the shape of the output. The place counts, too: at
    $x=1$, where $3x$ and $3x^2$ are the same, a wrong cube looks right.

    Some of the six backward passes below are wrong; one of them is such that a sum does not see it. Choose an op, and
    compare the difference that a sum sees with the one that random weights see.
    """)
    return


@app.cell
def example_3():
    def softmax(x):
        return np.exp(x) / np.exp(x).sum(axis=1, keepdims=True)

    # name: (forward of x, backward of the gradient that arrives, x, and the output)
    suspects = {
        "exp": (np.exp, lambda grad, x, out: grad * out),
        "tanh": (np.tanh, lambda grad, x, out: grad * (1 - out)),
        "cube": (lambda x: x**3, lambda grad, x, out: grad * 3 * x),
        "transpose": (lambda x: x.T, lambda grad, x, out: grad.reshape(x.shape)),
        "softmax": (softmax, lambda grad, x, out: out * (grad - (grad * out).sum(axis=1, keepdims=True))),
        "mean": (lambda x: x.mean(axis=0), lambda grad, x, out: np.broadcast_to(grad, x.shape)),
    }
    return (suspects,)


@app.function(hide_code=True)
def reference(f, x):
    slopes = np.zeros(x.shape)
    for place, _ in np.ndenumerate(x):
        unit = np.zeros(x.shape)
        unit[place] = 1e-5
        slopes[place] = (f(x + unit) - f(x - unit)) / 2e-5
    return slopes


@app.cell(hide_code=True)
def slide_3(result_1, suspects):
    kit.gate(result_1)
    suspect = mo.ui.slider(0, len(suspects) - 1, value=3, label="which op", show_value=True)
    suspect
    return (suspect,)


@app.cell(hide_code=True)
def see_3(suspect, suspects):
    _name = list(suspects)[suspect.value]
    _forward, _backward = suspects[_name]
    _draws = np.random.default_rng(3)
    _x = _draws.normal(size=(3, 2))
    _out = _forward(_x)

    def _numeric(_weights):
        return reference(lambda _at: (_weights * _forward(_at)).sum(), _x)

    def _difference(_weights):
        return _backward(_weights, _x, _out) - _numeric(_weights)

    _ones, _drawn = np.ones(_out.shape), _draws.uniform(0.5, 1.5, _out.shape)
    kit.row(
        kit.table(_backward(_drawn, _x, _out), f"{_name}: its backward, of random weights", top=3),
        kit.table(_numeric(_drawn), "the numeric gradient", top=3),
        kit.table(_difference(_ones), "difference, seen by a sum", digits=3, top=1),
        kit.table(_difference(_drawn), "difference, seen by random weights", digits=3, top=1),
    )
    return


@app.cell(hide_code=True)
def ask_2(result_1):
    kit.gate(result_1, "Exercise 1 comes first.")
    mo.md(r"""
    ### Exercise 2: find the planted bugs

    Now without looking. Your function gets ops it has never seen, and a numeric gradient that works:
    `gradient(f, x)`. Draw weights of the shape of the *output*, which need not be that of `x`.
    """)
    return


@app.function
# EXERCISE 2. `ops` maps a name to (forward, backward, x): out = forward(x), and
# backward(grad, x, out) is its gradient. Return a list of the names whose backward is wrong.
# Draw weights at random; compare to about 1e-5.
def find_bugs(ops, gradient):
    raise kit.Todo


@app.cell(hide_code=True)
def check_2(result_1, suspects):
    kit.gate(result_1, "Exercise 1 comes first.")

    _draws = np.random.default_rng(8)
    _x = _draws.normal(size=(3, 2))
    _positive = abs(_x) + 0.5
    _first = {_name: (*_pair, _x) for _name, _pair in suspects.items()}
    _second = {
        "sqrt": (np.sqrt, lambda grad, x, out: grad * 0.5 * out, _positive),
        "reversed rows": (lambda x: x[::-1], lambda grad, x, out: grad, _x),
        "running sum": (
            lambda x: np.cumsum(x, axis=0),
            lambda grad, x, out: np.cumsum(grad[::-1], axis=0)[::-1],
            _x,
        ),
        "norm": (lambda x: np.sqrt((x * x).sum()), lambda grad, x, out: grad * x / out, _x),
        "clip": (lambda x: np.clip(x, -0.3, 0.3), lambda grad, x, out: grad, _x),
    }
    _fine = "all bugs found, nothing blamed that is right"

    def _judge(_named, _ops, _gradient):
        _named, _wrong = set(_named), {"tanh", "cube", "transpose", "mean", "sqrt", "reversed rows", "clip"} & set(_ops)
        _faults = [f"missed {_name}" for _name in sorted(_wrong - _named)]
        _faults += [f"blamed {_name}" for _name in sorted(_named - _wrong)]
        return ", ".join(_faults) or _fine

    def _with(_weights, _start):
        def _find(_ops, _gradient):
            _named = []
            for _name, (_forward, _backward, _at) in _ops.items():
                _at = _start(_at)
                _out = _forward(_at)
                _w = _weights(np.shape(_out))
                _numeric = _gradient(lambda _x, _w=_w, _forward=_forward: (_w * _forward(_x)).sum(), _at)
                if not np.allclose(_backward(_w, _at, _out), _numeric, atol=1e-5):
                    _named.append(_name)
            return _named

        return _find

    _sum_only = "A plain sum weighs all entries alike and cannot see entries that are mixed up."
    _at_one = "At x = 1 everywhere, many wrong formulas are right: check where nothing is special."
    result_2 = kit.check(
        "find_bugs",
        find_bugs,
        [
            ("six ops", (_first, reference), _fine),
            ("five more", (_second, reference), _fine),
        ],
        mistakes=[
            (_sum_only, _with(np.ones, lambda _x: _x)),
            (_at_one, _with(lambda _s: np.random.default_rng(0).uniform(0.5, 1.5, _s), np.ones_like)),
        ],
        judge=_judge,
    )
    result_2
    return (result_2,)


@app.cell(hide_code=True)
def help_2(result_2):
    help_for_2 = kit.help(
        result_2,
        hint="The number to differentiate is `(weights * forward(x)).sum()`. Which gradient arrives at the op then?",
        solution="""
        def find_bugs(ops, gradient):
            draws, wrong = np.random.default_rng(0), []
            for name, (forward, backward, x) in ops.items():
                out = forward(x)
                weights = draws.uniform(0.5, 1.5, out.shape)

                def weighed(x, forward=forward, weights=weights):
                    return (weights * forward(x)).sum()

                if not np.allclose(backward(weights, x, out), gradient(weighed, x), atol=1e-5):
                    wrong.append(name)
            return wrong
        """,
    )
    help_for_2
    return


@app.cell(hide_code=True)
def step_4(result_2):
    kit.gate(result_2, "Exercise 2 opens the last step.")
    mo.md(r"""
    ## 4. The checker of the library

    `tk.gradcheck.gradcheck` does what yours does, with one step into the complex plane in place of two real ones. For
    $f(x+ih)=f(x)+ih f'(x)+\dots$ the slope is the imaginary part divided by $h$; the rest of it is of order $h^2$.
    There is no subtraction, so nothing cancels, and $h$ may be as small as one likes. Every op of tinykron is held to
    this, on every test run.
    """)
    return


@app.cell
def example_4(result_2):
    kit.gate(result_2)
    found = tk.gradcheck.gradcheck(tk.fused.softmax, tk.Tensor([[0.3, -1.2, 0.5], [2.0, 0.1, -0.4]]))
    mo.md(f"The worst entry: {found}.")
    return


@app.cell(hide_code=True)
def finish(result_1, result_2):
    lesson_done = kit.finish(
        result_1,
        result_2,
        text="""
        **Done.** A gradient is checked by differences, at a point where nothing is special, weighed at random. Read
        `tinykron/gradcheck.py`. With ops that can be trusted, something can be trained. Next: `tinykron lesson 6`.
        """,
    )
    lesson_done
    return


if __name__ == "__main__":
    app.run()
