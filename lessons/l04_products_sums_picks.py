import marimo

__generated_with = "0.25.2"
app = marimo.App(width="medium", app_title="4 Matrix products, sums, picking")

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
    # 4 · Matrix products, sums, picking

    **You build** the backward pass of a matrix product, and of picking rows from a table.

    **You see** which numbers meet in one entry of a gradient.

    **You need** lesson 3: a gradient has the shape of its variable.
    """)
    return


@app.cell(hide_code=True)
def step_1():
    mo.md(r"""
    ## 1. What was summed forward is spread backward

    A sum over an axis sends every number into one total, with slope 1. So backward, the gradient of the total goes to
    every number that went into it. It is lesson 3 the other way round: a broadcast is undone by a sum, a sum by a
    broadcast, once the axis that went is put back with size 1. Choose the axis.
    """)
    return


@app.cell(hide_code=True)
def slide_1():
    axis = mo.ui.slider(0, 1, value=1, label="x.sum(axis = ...)", show_value=True)
    axis
    return (axis,)


@app.cell(hide_code=True)
def see_1(axis):
    _draws = np.random.default_rng(2)
    _x = tk.Tensor(_draws.normal(size=(3, 4)).astype(np.float32), requires_grad=True)
    _total = _x.sum(axis=axis.value)
    _arriving = tk.Tensor(_draws.normal(size=_total.shape).astype(np.float32))
    _total.backward(_arriving)
    _back = _arriving.numpy().reshape((3, 1) if axis.value else (1, 4))
    kit.row(
        kit.table(_x, "x"),
        kit.table(_back, "what arrives at the totals, the axis put back", top=2),
        kit.table(_x.grad, "x.grad", top=2),
    )
    return


@app.cell(hide_code=True)
def step_2():
    mo.md(r"""
    ## 2. A matrix product: let the shapes speak

    $y = x\,w$ with $x$ of shape $(t, k)$ and $w$ of shape $(k, n)$. The number $w_{ij}$ multiplies every number in
    column $i$ of $x$, and each product lands in column $j$ of $y$. So its gradient is a sum over the rows: column $i$
    of $x$ times column $j$ of the gradient that arrives. The number $x_{ti}$ in turn meets row $i$ of $w$, and what
    comes of it lands in row $t$ of $y$. Choose an entry of $w$.
    """)
    return


@app.cell(hide_code=True)
def slide_2():
    weight = mo.ui.slider(0, 5, value=3, label="which entry of w", show_value=True)
    weight
    return (weight,)


@app.cell(hide_code=True)
def see_2(weight):
    _draws = np.random.default_rng(4)
    _x, _w, _arriving = (
        tk.Tensor(_draws.normal(size=_shape).astype(np.float32), requires_grad=True)
        for _shape in ((5, 3), (3, 2), (5, 2))
    )
    (_x @ _w).backward(_arriving.detach())
    _row, _column = divmod(weight.value, 2)
    kit.row(
        kit.table(_x, "x", lit=(slice(None), _row)),
        kit.table(_w, "w", lit=(_row, _column)),
        kit.table(_arriving, "the gradient that arrives at x @ w", lit=(slice(None), _column)),
        kit.table(_w.grad, "w.grad", lit=(_row, _column)),
    )
    return


@app.cell(hide_code=True)
def predict_2():
    options_2 = {
        "x.T @ grad": "it sums over the rows: column i of x times column j of grad, as the frames above show.",
        "x @ grad": "it sums over the columns of x. That many rows grad need not have.",
        "grad @ x.T": "it sums over the columns of both: entry (i, j) would be row i of grad times row j of x.",
    }
    guess_2 = kit.predict("`x`, `w` and `grad` are all (4, 4): every product fits. Which one is `w.grad`?", options_2)
    guess_2
    return guess_2, options_2


@app.cell(hide_code=True)
def reveal_2(guess_2, options_2):
    step_2_done = kit.reveal(guess_2, options_2)
    step_2_done
    return (step_2_done,)


@app.cell(hide_code=True)
def ask_1(step_2_done):
    step_2_done
    mo.md(r"""
    ### Exercise 1: the backward of `x @ w`

    Shapes are a good guide: `w.grad` is $(k, n)$, `x.grad` is $(t, k)$. Until the matrices are square, and every wrong
    product fits. The check knows.
    """)
    return


@app.function
# EXERCISE 1. y = x @ w; `grad` has the shape of y. Return (gradient of x, gradient of w).
def matmul_backward(grad, x, w):
    raise kit.Todo


@app.cell(hide_code=True)
def check_1(step_2_done):
    step_2_done

    def _by_loops(_grad, _x, _w):
        """y_tn is the sum over k of x_tk w_kn: go through all t, k, n."""
        _of_x, _of_w = np.zeros(_x.shape), np.zeros(_w.shape)
        for _t, _k, _n in np.ndindex(*_x.shape, _w.shape[1]):
            _of_x[_t, _k] += _grad[_t, _n] * _w[_k, _n]
            _of_w[_k, _n] += _grad[_t, _n] * _x[_t, _k]
        return tuple(xp.asarray(_array.astype(np.float32)) for _array in (_of_x, _of_w))

    _draws = np.random.default_rng(0)
    _cases = []
    for _t, _k, _n in [(5, 3, 2), (4, 4, 4), (1, 3, 1), (2, 1, 3)]:
        _grad, _x, _w = (_draws.normal(size=_shape).astype(np.float32) for _shape in ((_t, _n), (_t, _k), (_k, _n)))
        _given = tuple(xp.asarray(_array) for _array in (_grad, _x, _w))
        _cases.append((f"x {_x.shape}, w {_w.shape}", _given, _by_loops(_grad, _x, _w)))
    _untransposed = "Here all shapes are alike and nothing complains, but the other factor must be transposed."
    _backwards = "The gradient of w has come out transposed: which factor comes first?"
    _exchanged = "The two gradients are exchanged: x comes first."
    result_1 = kit.check(
        "matmul_backward",
        matmul_backward,
        _cases,
        mistakes=[
            (_untransposed, lambda _grad, _x, _w: (_grad @ _w, _x @ _grad)),
            (_untransposed, lambda _grad, _x, _w: (_grad @ _w, _x.T @ _grad)),
            (_untransposed, lambda _grad, _x, _w: (_grad @ _w.T, _x @ _grad)),
            (_backwards, lambda _grad, _x, _w: (_grad @ _w.T, _grad.T @ _x)),
            (_exchanged, lambda _grad, _x, _w: (_x.T @ _grad, _grad @ _w.T)),
        ],
    )
    result_1
    return (result_1,)


@app.cell(hide_code=True)
def help_1(result_1):
    help_for_1 = kit.help(
        result_1,
        hint="""
        You have seen `w.grad` above. For `x.grad`: the number $x_{ti}$ meets row $i$ of $w$, and lands in row $t$ of
        $y$. Which product sums over the columns?
        """,
        solution="""
        def matmul_backward(grad, x, w):
            return grad @ w.T, x.T @ grad
        """,
    )
    help_for_1
    return


@app.cell(hide_code=True)
def step_3(result_1):
    kit.gate(result_1, "Exercise 1 opens the next step.")
    mo.md(r"""
    ## 3. Picking: what was taken is given back

    A language model begins by picking: its text is a list of numbers, the *tokens*, and token 7 takes row 7 of a table.
    `table[ids]` copies numbers, and a copy has slope 1: the gradient of each picked row goes back to where it was
    taken. Rows that nobody picked get nothing. A row that was picked often gets the sum.

    The slider changes how many of the five ids are 2. In the table's gradient, rows that were picked are framed.
    """)
    return


@app.cell(hide_code=True)
def slide_3(result_1):
    kit.gate(result_1)
    twos = mo.ui.slider(0, 5, value=3, label="how many ids are 2", show_value=True)
    twos
    return (twos,)


@app.cell(hide_code=True)
def see_3(twos):
    _ids = np.array([2] * twos.value + [0, 3, 3, 0, 1][twos.value :])
    _draws = np.random.default_rng(6)
    _table = tk.Tensor(_draws.normal(size=(4, 3)).astype(np.float32), requires_grad=True)
    _arriving = _draws.normal(size=(5, 3)).astype(np.float32)
    _table[_ids].backward(tk.Tensor(_arriving))
    _picked = np.zeros((4, 3), bool)
    _picked[_ids] = True
    kit.row(
        kit.table(_ids, "ids", digits=0),
        kit.table(_arriving, "the gradient that arrives at table[ids]", top=3),
        kit.table(_table.grad, "table.grad", top=3, lit=_picked),
    )
    return


@app.cell(hide_code=True)
def predict_3(result_1):
    kit.gate(result_1)
    options_3 = {
        "it keeps the last of them": """`total[ids] += grad` reads all rows first, adds, and writes them back; a row
            that is there three times is written three times, each time over the last.""",
        "it adds all of them": "that is what is needed, and what `+=` suggests. Compare it with `table.grad` above.",
        "it raises an error": "that would be kind. It says nothing, and the model learns a little worse.",
    }
    guess_3 = kit.predict("With an id that is there three times, what does `total[ids] += grad` do?", options_3)
    guess_3
    return guess_3, options_3


@app.cell(hide_code=True)
def reveal_3(guess_3, options_3):
    step_3_done = kit.reveal(guess_3, options_3)
    step_3_done
    return (step_3_done,)


@app.cell(hide_code=True)
def see_careless(step_3_done, twos):
    step_3_done
    _ids = np.array([2] * twos.value + [0, 3, 3, 0, 1][twos.value :])
    _draws = np.random.default_rng(6)
    _draws.normal(size=(4, 3))  # the table's own numbers
    _careless = np.zeros((4, 3), np.float32)
    _careless[_ids] += _draws.normal(size=(5, 3)).astype(np.float32)
    kit.row(kit.table(_careless, "total[ids] += grad, with NumPy: compare it with table.grad", top=3))
    return


@app.cell(hide_code=True)
def ask_2(step_3_done):
    step_3_done
    mo.md(r"""
    ### Exercise 2: the backward of `table[ids]`

    `tk.backend.scatter_add(total, ids, values)` adds to `total` and loses nothing, on every device; it returns nothing.
    `xp.zeros(shape, dtype=...)` makes the total: `xp` is NumPy here, or what stands for it on a GPU.
    """)
    return


@app.function
# EXERCISE 2. The forward was table[ids], of a table with so many `rows`. `grad` has a row for
# each id. Return the gradient of the table. Its dtype is that of grad.
def pick_backward(grad, ids, rows):
    raise kit.Todo


@app.cell(hide_code=True)
def check_2(step_3_done):
    step_3_done
    _draws = np.random.default_rng(1)
    _cases = []
    for _label, _ids, _rows, _width in [
        ("every id once", [2, 0, 1], 3, 4),
        ("id 2 three times, id 1 never", [2, 0, 2, 2], 3, 4),
        ("one column", [1, 1, 0], 5, 1),
        ("one row", [0, 0], 1, 3),
    ]:
        _grad = _draws.normal(size=(len(_ids), _width)).astype(np.float32)
        _one_hot = np.eye(_rows, dtype=np.float32)[_ids]  # picking is a product with a matrix of zeros and ones
        _cases.append((_label, (xp.asarray(_grad), xp.asarray(np.array(_ids)), _rows), xp.asarray(_one_hot.T @ _grad)))

    def _lossy(_grad, _ids, _rows):
        _total = xp.zeros((_rows, _grad.shape[1]), dtype=_grad.dtype)
        _total[_ids] += _grad
        return _total

    def _averaged(_grad, _ids, _rows):
        _total, _counts = (xp.zeros((_rows, _n), dtype=_grad.dtype) for _n in (_grad.shape[1], 1))
        tk.backend.scatter_add(_total, _ids, _grad)
        tk.backend.scatter_add(_counts, _ids, xp.ones((len(_ids), 1), dtype=_grad.dtype))
        return _total / xp.maximum(_counts, 1.0)

    result_2 = kit.check(
        "pick_backward",
        pick_backward,
        _cases,
        mistakes=[
            ("A row that was picked often keeps only the last gradient: the others are lost.", _lossy),
            ("That is the mean of what arrived. It adds up.", _averaged),
            (
                "That picks again. Backward, rows go to where they were taken from.",
                lambda _grad, _ids, _rows: _grad[_ids],
            ),
        ],
    )
    result_2
    return (result_2,)


@app.cell(hide_code=True)
def help_2(result_2):
    help_for_2 = kit.help(
        result_2,
        hint="Begin with zeros for every row of the table. Which row does `grad[0]` belong to?",
        solution="""
        def pick_backward(grad, ids, rows):
            total = xp.zeros((rows, grad.shape[1]), dtype=grad.dtype)
            tk.backend.scatter_add(total, ids, grad)
            return total
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
        **Done.** A sum is undone by a broadcast, a product by two products, a pick by adding to what was picked. With
        these and the elementwise operations a transformer can be built: read `MatMul` in `tinykron/ops.py` and
        `TakeRows` in `tinykron/shapes.py`. But who says that they are right? Next: `tinykron lesson 5`.
        """,
    )
    lesson_done
    return


if __name__ == "__main__":
    app.run()
