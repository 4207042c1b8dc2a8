import marimo

__generated_with = "0.25.2"
app = marimo.App(
    width="medium",
    app_title="3 A gradient has the shape of its variable",
)

with app.setup(hide_code=True):
    import marimo as mo
    import numpy as np

    import tinykron as tk
    from tinykron import kit

    LESSON = 2  # the version of this lesson
    xp = kit.array_module()


@app.cell(hide_code=True)
def title():
    mo.md(r"""
    # 3 · A gradient has the shape of its variable

    **You build** the function that undoes a broadcast, and the backward pass of a product of arrays.

    **You see** where each number of a gradient comes from.

    **You need** lessons 1 and 2: what a gradient is, and that contributions add up.
    """)
    return


@app.cell(hide_code=True)
def step_1():
    mo.md(r"""
    ## 1. An array is many variables

    A loss is one number. An array $x$ of six numbers is six variables, so the loss has six derivatives, one beside
    each number: `x.grad` has the shape of `x`. Entry $(i, j)$ answers one question: *how fast does the loss
    rise if I raise $x_{ij}$ alone?*

    Move the slider to choose an entry of $x$, counted row by row. It is raised by 0.01, by hand, and the loss is
    computed again. The two numbers on the right agree the better, the smaller the step (lesson 5 chooses it).
    """)
    return


@app.function
def loss_of(values):
    x = tk.Tensor(values, requires_grad=True)
    weights = tk.Tensor([[1.0, -2.0, 3.0], [0.5, 2.0, -1.0]])
    return x, (x.tanh() * weights).sum()


@app.cell(hide_code=True)
def slide_1():
    entry = mo.ui.slider(0, 5, value=2, label="which entry of x, from 0 to 5", show_value=True)
    entry
    return (entry,)


@app.cell(hide_code=True)
def see_1(entry):
    _start = np.array([[0.3, -1.2, 0.6], [1.5, -0.4, 0.1]], np.float32)
    _x, _before = loss_of(_start)
    _before.backward()
    _place = np.unravel_index(entry.value, _start.shape)
    _step = 0.01
    _raised = _start.copy()
    _raised[_place] += _step
    _after = loss_of(_raised)[1]
    _rise = {
        "rise of the loss / step": (_after.item() - _before.item()) / _step,
        "x.grad says": _x.grad[_place],
    }
    kit.row(
        kit.table(_x, "x", lit=_place),
        kit.table(_x.grad, "x.grad", lit=_place),
        kit.bars(_rise, "the framed entry raised by hand, and its gradient"),
    )
    return


@app.cell(hide_code=True)
def step_2():
    mo.md(r"""
    ## 2. A broadcast is a variable used many times

    `x + b` with `x` of shape `(n, 3)` and `b` of shape `(3,)` adds the same three numbers to every row. NumPy copies
    nothing, but each number of `b` takes part in `n` sums.
    """)
    return


@app.cell(hide_code=True)
def predict_2():
    options_2 = {
        "4, 4, 4": "`b` has three numbers, and each takes part in four sums: raise one of them, and four entries rise.",
        "1, 1, 1": "that is what one row sends back. There are four, and each uses `b`.",
        "twelve ones": "that is the shape of `x + b`. But `b` has three numbers to take a step with, not twelve.",
    }
    guess_2 = kit.predict(
        "`x` is `(4, 3)`, `b` is `(3,)`, and the loss is the sum of all entries of `x + b`. What is `b.grad`?",
        options_2,
    )
    guess_2
    return guess_2, options_2


@app.cell(hide_code=True)
def reveal_2(guess_2, options_2):
    step_2_done = kit.reveal(guess_2, options_2)
    step_2_done
    return (step_2_done,)


@app.cell(hide_code=True)
def step_3(step_2_done):
    step_2_done
    mo.md(r"""
    ## 3. Used many times forward, summed backward

    The gradient arrives in the shape of the *result*, `(n, 3)`. Lesson 2 said: a variable that is used many times gets
    the sum of what its uses send back. So the engine sums away every axis that the broadcast made.

    Behind `b` come the gradient that arrives at the sum, and what each variable keeps of it. Add rows to `x`, one by
    one: each adds to `b.grad` what it sends back.
    """)
    return


@app.cell(hide_code=True)
def slide_3(step_2_done):
    step_2_done
    rows = mo.ui.slider(1, 8, value=4, label="rows of x", show_value=True)
    rows
    return (rows,)


@app.cell(hide_code=True)
def see_3(rows):
    _draws = np.random.default_rng(1)
    _x, _b, _arriving = (
        tk.Tensor(_draws.normal(size=_shape).astype(np.float32), requires_grad=True)
        for _shape in ((8, 3), (3,), (8, 3))
    )
    _x, _arriving = (tk.Tensor(_all.numpy()[: rows.value], requires_grad=True) for _all in (_x, _arriving))
    (_x + _b).backward(_arriving.detach())
    _top = 4.0
    kit.row(
        kit.table(_b, "b", top=_top),
        kit.table(_arriving, "the gradient that arrives at x + b", top=_top),
        kit.table(_x.grad, "x.grad", top=_top),
        kit.table(_b.grad, "b.grad: the columns summed", top=_top),
    )
    return


@app.cell(hide_code=True)
def ask_1(step_2_done):
    step_2_done
    mo.md(r"""
    ### Exercise 1: undo a broadcast

    A broadcast does two things, and both must be undone: it adds axes **in front**, as from `(3,)` to `(4, 3)`, and it
    stretches axes **of size 1**, as from `(4, 1)` to `(4, 3)`.
    """)
    return


@app.function
# EXERCISE 1. Return `grad` summed down to `shape`, which NumPy would broadcast to grad.shape.
# An axis that the broadcast did not make is left alone. `grad.sum(axis=..., keepdims=True)`
# keeps the axes it sums.
def undo_broadcast(grad, shape):
    raise kit.Todo


@app.cell(hide_code=True)
def check_1(step_2_done):
    step_2_done

    def _by_hand(_grad, _shape):
        """Walk through every entry, and add it to the number that it was copied from."""
        _from = np.broadcast_to(np.arange(max(int(np.prod(_shape)), 1)).reshape(_shape), _grad.shape)
        _total = np.zeros(max(int(np.prod(_shape)), 1), np.float32)
        for _place, _value in np.ndenumerate(_grad):
            _total[_from[_place]] += _value
        return _total.reshape(_shape)

    _draws = np.random.default_rng(0)
    _cases = []
    for _wide, _shape in [
        ((4, 3), (3,)),
        ((4, 3), (4, 1)),
        ((4, 3), (4, 3)),
        ((2, 4, 3), (1, 3)),
        ((2, 4, 3), (2, 1, 1)),
        ((2, 3), ()),
    ]:
        _grad = _draws.normal(size=_wide).astype(np.float32)
        _cases.append((f"from {_wide} to {_shape}", (xp.asarray(_grad), _shape), xp.asarray(_by_hand(_grad, _shape))))

    def _front_only(_grad, _shape):
        return _grad.sum(axis=tuple(range(_grad.ndim - len(_shape))))

    def _averaged(_grad, _shape):
        _share = max(int(np.prod(_shape)), 1) / _grad.size
        return tk.backend.sum_to(_grad, _shape) * _share

    def _first_copy(_grad, _shape):
        _kept = _grad[(0,) * (_grad.ndim - len(_shape))]
        return _kept[tuple(slice(0, 1) if _size == 1 else slice(None) for _size in _shape)]

    result_1 = kit.check(
        "undo_broadcast",
        undo_broadcast,
        _cases,
        mistakes=[
            ("The axes in front are summed, those of size 1 are still stretched.", _front_only),
            ("That is the mean. Uses add up: nothing is divided.", _averaged),
            ("That is the gradient of one copy; the others are lost.", _first_copy),
            ("Everything is summed, also axes that the variable has.", lambda _grad, _shape: _grad.sum()),
        ],
    )
    result_1
    return (result_1,)


@app.cell(hide_code=True)
def help_1(result_1):
    help_for_1 = kit.help(
        result_1,
        hint="""
        How many axes does `grad` have in front that `shape` lacks? Sum those first. Then compare the two shapes, axis
        by axis: where is one of them 1 and the other not?
        """,
        solution="""
    def undo_broadcast(grad, shape):
        extra = grad.ndim - len(shape)
        grad = grad.sum(axis=tuple(range(extra)))
        stretched = tuple(axis for axis, size in enumerate(shape) if size == 1)
        return grad.sum(axis=stretched, keepdims=True)
    """,
    )
    help_for_1
    return


@app.cell(hide_code=True)
def step_4(result_1):
    kit.gate(result_1, "Exercise 1 opens the next step.")
    mo.md(r"""
    ## 4. The engine undoes broadcasts once, for every op

    `tinykron/tensor.py` calls your function (there it is `backend.sum_to`) on whatever a backward returns. That is why
    `Multiply.backward` in `tinykron/ops.py` is one line, and knows nothing of shapes. Here you do both steps yourself.

    ### Exercise 2: the backward of `x * y`

    $\partial(xy)/\partial x = y$: the gradient that arrives, times the *other* factor; then brought to the variable's
    own shape.
    """)
    return


@app.function
# EXERCISE 2. out = x * y, arrays, broadcast. `grad` has the shape of out. Return (gradient of
# x, gradient of y). Use the library's undo_broadcast: tk.backend.sum_to(array, shape).
def multiply_backward(grad, x, y):
    raise kit.Todo


@app.cell(hide_code=True)
def check_2(result_1):
    kit.gate(result_1, "Exercise 1 comes first.")

    def _by_differences(_grad, _x, _y):
        """Raise each number of x, then of y, by a little, and see how sum(grad * x * y) moves."""
        _found = []
        for _which in (0, 1):
            _slopes = np.zeros((_x, _y)[_which].shape)
            for _place in np.ndindex(*_slopes.shape):
                _moved = [_x.astype(np.float64), _y.astype(np.float64)]
                _sums = []
                for _step in (0.5, -0.5):
                    _stepped = [_array.copy() for _array in _moved]
                    _stepped[_which][_place] += _step
                    _sums.append((_grad * _stepped[0] * _stepped[1]).sum())
                _slopes[_place] = _sums[0] - _sums[1]
            _found.append(xp.asarray(_slopes.astype(np.float32)))
        return tuple(_found)

    _draws = np.random.default_rng(5)
    _cases = []
    for _a, _b in [((4, 3), (4, 3)), ((4, 3), (3,)), ((4, 1), (1, 3)), ((2, 1, 3), (4, 1))]:
        _x, _y, _grad = (
            _draws.normal(size=_shape).astype(np.float32) for _shape in (_a, _b, np.broadcast_shapes(_a, _b))
        )
        _given = tuple(xp.asarray(_array) for _array in (_grad, _x, _y))
        _cases.append((f"x {_a}, y {_b}", _given, _by_differences(_grad, _x, _y)))
    _sum_to = tk.backend.sum_to
    result_2 = kit.check(
        "multiply_backward",
        multiply_backward,
        _cases,
        mistakes=[
            (
                "The factors are exchanged: what x is multiplied by is y.",
                lambda _g, _x, _y: (_sum_to(_g * _x, _x.shape), _sum_to(_g * _y, _y.shape)),
            ),
            (
                "That has the shape of the product: bring each gradient to the shape of its variable.",
                lambda _g, _x, _y: (_g * _y, _g * _x),
            ),
            (
                "The gradient that arrives is missing: the loss may depend on the product in any way.",
                lambda _g, _x, _y: (_sum_to(_y + 0 * _g, _x.shape), _sum_to(_x + 0 * _g, _y.shape)),
            ),
            ("That is the derivative of x + y.", lambda _g, _x, _y: (_sum_to(_g, _x.shape), _sum_to(_g, _y.shape))),
        ],
    )
    result_2
    return (result_2,)


@app.cell(hide_code=True)
def help_2(result_2):
    help_for_2 = kit.help(
        result_2,
        hint="Write both products in the shape of the result first. Which shape must each of them have in the end?",
        solution="""
    def multiply_backward(grad, x, y):
        return tk.backend.sum_to(grad * y, x.shape), tk.backend.sum_to(grad * x, y.shape)
    """,
    )
    help_for_2
    return


@app.cell(hide_code=True)
def finish(result_1, result_2):
    lesson_done = kit.finish(
        result_1,
        result_2,
        text="""
        **Done.** A gradient has the shape of its variable; a broadcast is undone by a sum. Read `Add`, `Multiply` and
        `Divide` in `tinykron/ops.py`: you can write all of them now. Next: `tinykron lesson 4`.
        """,
    )
    lesson_done
    return


if __name__ == "__main__":
    app.run()
