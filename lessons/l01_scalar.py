import marimo

__generated_with = "0.25.2"
app = marimo.App(width="medium", app_title="1 A scalar that remembers")

with app.setup(hide_code=True):
    import math

    import marimo as mo
    import numpy as np

    import tinykron as tk
    from tinykron import kit

    LESSON = 1


@app.cell(hide_code=True)
def title():
    mo.md(r"""
    # 1 · A scalar that remembers

    **You build** the slope of a chain by hand, and the backward pass of an op, which then runs in the real engine.

    **You see** what a tensor remembers.

    **You need** school calculus: a derivative is a slope.
    """)
    return


@app.cell(hide_code=True)
def step_1():
    mo.md(r"""
    ## 1. A slope says what a small step does

    Training asks one question over and over: if I raise this number a little, does the loss rise or fall, and how fast?
    The answer is a slope. Drag $x$ along the curve; the short line has the slope that tinykron found, and the bars
    compare it with a step by hand.
    """)
    return


@app.function
def curve(x):
    return (x * x).tanh()


@app.cell(hide_code=True)
def slide_1():
    place = mo.ui.slider(-2.0, 2.0, 0.1, value=0.6, label="x", show_value=True)
    place
    return (place,)


@app.cell(hide_code=True)
def see_1(place):
    _x = tk.Tensor(place.value, requires_grad=True)
    _y = curve(_x)
    _y.backward()
    _slope, _height = float(_x.grad), _y.item()
    _grid = np.linspace(-2, 2, 161, dtype=np.float32)
    _line = np.where(abs(_grid - place.value) < 0.4, _height + _slope * (_grid - place.value), np.nan)
    _step = 0.01
    _rise = (math.tanh((place.value + _step) ** 2) - math.tanh(place.value**2)) / _step
    kit.row(
        kit.lines(
            {"tanh(x * x)": curve(tk.Tensor(_grid)), "its slope at x": _line},
            "a curve and its slope",
            x=_grid,
            x_label="x",
            mark=place.value,
        ),
        kit.bars({"a step by hand": _rise, "x.grad": _slope}, "rise per step"),
    )
    return


@app.cell(hide_code=True)
def step_2():
    mo.md(r"""
    ## 2. A tensor remembers where it came from

    How did tinykron know? A number that is computed from a tensor is a tensor again, and keeps a note: which operation
    made it, from what. The notes form a graph, written while your code runs.
    """)
    return


@app.cell
def example_2():
    x = tk.Tensor(0.6, requires_grad=True)  # a leaf: it was given, not computed
    y = (x * x).tanh()
    y
    return x, y


@app.cell(hide_code=True)
def predict_2():
    options_2 = {
        "the operation tanh, and what that got": """`y.node` is the operation; `y.node.parents` lead on to the product,
            and that to `x`.""",
        "the text of the formula": """Python throws the text away. Only operations that really ran are noted, loops and
            all.""",
        "nothing: only x does": """a leaf knows nothing of what was made of it. The notes point backward, from a result
            to its inputs.""",
    }
    guess_2 = kit.predict("What does `y` remember?", options_2)
    guess_2
    return guess_2, options_2


@app.cell(hide_code=True)
def reveal_2(guess_2, options_2):
    step_2_done = kit.reveal(guess_2, options_2)
    step_2_done
    return (step_2_done,)


@app.cell(hide_code=True)
def see_2(step_2_done, x, y):
    step_2_done
    kit.graph(*kit.tape(y, {"x": x}), title="what y remembers: read it from right to left")
    return


@app.cell(hide_code=True)
def step_3(step_2_done):
    step_2_done
    mo.md(r"""
    ## 3. Along a chain, slopes multiply

    Raise $x$ by a small step $h$. The square rises by its own slope times $h$; the tanh rises by *its* slope times
    that. Each operation needs to know one thing only, its own slope **at the number it was given**.

    The slope of $u^2$ is $2u$. The slope of $\tanh u$ is $1-\tanh^2 u$.

    ### Exercise 1
    """)
    return


@app.function
# EXERCISE 1. y = tanh(x * x) for a plain number x. Return three slopes: of the square where
# it stands, of the tanh where it stands, and of y with respect to x.
def slopes(x):
    raise kit.Todo


@app.cell(hide_code=True)
def check_1(step_2_done):
    step_2_done

    def _slope(_f, _at):
        _h = 1e-5
        return (_f(_at + _h) - _f(_at - _h)) / (2 * _h)

    _cases = [
        (
            f"x = {_x}",
            (_x,),
            (
                _slope(lambda _u: _u * _u, _x),
                _slope(math.tanh, _x * _x),
                _slope(lambda _u: math.tanh(_u * _u), _x),
            ),
        )
        for _x in (0.6, -1.1, 0.0, 1.5)
    ]

    def _bend(_u):
        return 1 - math.tanh(_u) ** 2

    result_1 = kit.check(
        "slopes",
        slopes,
        _cases,
        tolerance=1e-6,
        mistakes=[
            (
                "The tanh was given the square of x, not x: that is where its slope counts.",
                lambda _x: (2 * _x, _bend(_x), 2 * _x * _bend(_x)),
            ),
            (
                "One slope of the chain is right after the other; together they multiply.",
                lambda _x: (2 * _x, _bend(_x * _x), 2 * _x + _bend(_x * _x)),
            ),
            (
                "The slope of tanh is 1 - tanh², and the tanh of u is not u.",
                lambda _x: (2 * _x, 1 - _x**4, 2 * _x * (1 - _x**4)),
            ),
        ],
    )
    result_1
    return (result_1,)


@app.cell(hide_code=True)
def help_1(result_1):
    help_for_1 = kit.help(
        result_1,
        hint="""
        Write the chain down with a name for what is in the middle: `u = x * x`, `y = tanh(u)`. Which number goes into
        each slope?
        """,
        solution="""
        def slopes(x):
            u = x * x
            square, bend = 2 * x, 1 - math.tanh(u) ** 2
            return square, bend, square * bend
        """,
    )
    help_for_1
    return


@app.cell(hide_code=True)
def step_4(result_1):
    kit.gate(result_1, "Exercise 1 opens the next step.")
    mo.md(r"""
    ## 4. An operation is a forward and a backward

    So an operation of the engine is two functions, one under the other: `forward` computes, and saves what the slope
    will need; `backward` gets the slope that arrives from behind, **grad**, and hands it on, times its own. This is all
    of `Tanh` in `tinykron/ops.py`:

    ```python
    class Tanh(Function):
        def forward(self, xp, x):
            self.saved = out = xp.tanh(x)
            return out

        def backward(self, xp, grad):
            return grad * (1.0 - self.saved * self.saved)
    ```

    ### Exercise 2: the backward of a sigmoid

    $s(x)=1/(1+e^{-x})$ has a slope that needs nothing but its own value: $s'(x)=s(x)\,(1-s(x))$.
    """)
    return


@app.function
# EXERCISE 2. `grad` is the slope that arrives, `out` what the forward computed: s(x). Return
# the slope to hand on.
def sigmoid_backward(grad, out):
    raise kit.Todo


@app.cell(hide_code=True)
def check_2(result_1):
    kit.gate(result_1, "Exercise 1 comes first.")

    def _sigmoid(_x):
        return 1 / (1 + math.exp(-_x))

    _h = 1e-5
    _cases = [
        (
            f"x = {_x}, grad = {_grad}",
            (_grad, _sigmoid(_x)),
            _grad * (_sigmoid(_x + _h) - _sigmoid(_x - _h)) / (2 * _h),
        )
        for _x, _grad in [(0.0, 1.0), (1.3, 1.0), (-2.0, -3.0), (0.5, 0.0)]
    ]
    result_2 = kit.check(
        "sigmoid_backward",
        sigmoid_backward,
        _cases,
        tolerance=1e-6,
        mistakes=[
            ("The slope that arrives is lost: multiply by grad.", lambda _grad, _out: _out * (1 - _out)),
            ("Along a chain, slopes multiply; that adds grad.", lambda _grad, _out: _grad + _out * (1 - _out)),
            ("That is the slope of tanh.", lambda _grad, _out: _grad * (1 - _out * _out)),
            (
                "`out` is already s(x); the sigmoid was taken twice.",
                lambda _grad, _out: _grad * _sigmoid(_out) * (1 - _sigmoid(_out)),
            ),
        ],
    )
    result_2
    return (result_2,)


@app.cell(hide_code=True)
def help_2(result_2):
    help_for_2 = kit.help(
        result_2,
        hint="Look at the last line of `Tanh`. Which factor of it belongs to tanh, and which to every operation?",
        solution="""
        def sigmoid_backward(grad, out):
            return grad * out * (1 - out)
        """,
    )
    help_for_2
    return


@app.cell(hide_code=True)
def step_5(result_2):
    kit.gate(result_2, "Exercise 2 opens the last step.")
    mo.md(r"""
    ## 5. Your backward in the real engine

    Below, `Sigmoid` is a `Function` like all others, and its backward calls yours. The engine did the rest of the
    chain, for 161 numbers at once: `Sigmoid()(x * x * x - x) * 2.0`.
    """)
    return


@app.cell(hide_code=True)
def see_5(result_2):
    class _Sigmoid(tk.tensor.Function):
        def forward(self, xp, x):
            self.saved = _out = 1.0 / (1.0 + xp.exp(-x))
            return _out

        def backward(self, xp, grad):
            return sigmoid_backward(grad, self.saved)

    _grid = np.linspace(-2, 2, 161, dtype=np.float32)
    _x = tk.Tensor(_grid, requires_grad=True)
    _y = _Sigmoid()(_x * _x * _x - _x) * 2.0
    if result_2:
        _y.sum().backward()
    kit.lines(
        {"y": _y, "x.grad": _x.grad}, "a chain with your sigmoid in it", x=_grid, x_label="x"
    ) if result_2 else None
    return


@app.cell(hide_code=True)
def finish(result_1, result_2):
    lesson_done = kit.finish(
        result_1,
        result_2,
        text="""
        **Done.** A tensor remembers which operation made it and from what; each operation knows its own slope; along a
        chain, slopes multiply. But what if a number is used twice? Next: `tinykron lesson 2`.
        """,
    )
    lesson_done
    return


if __name__ == "__main__":
    app.run()
