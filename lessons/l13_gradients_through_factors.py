import marimo

__generated_with = "0.25.2"
app = marimo.App(width="medium", app_title="13 Gradients through the factors")

with app.setup(hide_code=True):
    import marimo as mo
    import numpy as np

    import tinykron as tk
    from tinykron import kit, kron
    from tinykron.kron.linear import kron_linear

    LESSON = 2  # the version of this lesson
    xp = kit.array_module()


@app.cell(hide_code=True)
def title():
    mo.md(r"""
    # 13 · Gradients through the factors

    **You build** the backward pass of a Kronecker layer, first through the large matrix, then without it.

    **You see** which entries one number of a factor answers for, and what a badly shared scale does to training.

    **You need** lessons 3, 4 and 12: what is used many times gets a sum; the backward of a product of matrices; and $Y
    = A\,X\,B^\top$.
    """)
    return


@app.cell(hide_code=True)
def step_1():
    mo.md(r"""
    ## 1. One number of A moves a whole block

    Let $W = A\otimes B$, and write $dW$ for the gradient of the loss, of the shape of $W$; $dA$ and $dB$ likewise.
    Raise $A_{mn}$ alone: every entry of block $(m, n)$ moves, each by the raise times the number of $B$ that stands
    there. So the uses add up to

    $$dA_{mn} = \sum_{p, q} dW_{\,mP + p,\; nQ + q}\;B_{pq}.$$

    Choose a number of $A$: its block is framed.
    """)
    return


@app.function(hide_code=True)
def two_layers():
    draws, sizes = np.random.default_rng(3), ((1, 2, 3), (1, 3, 2), (4, 6))
    drawn = [draws.uniform(-1, 1, size).astype("f") for size in sizes]
    a, b, x = (tk.Tensor(array, requires_grad=True) for array in drawn)
    kron_linear(x, a, b).tanh().sum().backward()
    w = tk.Tensor(xp.kron(a.data[0], b.data[0]).T, requires_grad=True)  # in x out
    (x @ w).tanh().sum().backward()
    return w.grad.T, a, b


@app.cell(hide_code=True)
def slide_1():
    of_a = mo.ui.slider(0, 5, value=4, label="which number of A", show_value=True)
    of_a
    return (of_a,)


@app.cell(hide_code=True)
def see_1(of_a):
    _grad_w, _a, _b = two_layers()
    _m, _n = divmod(of_a.value, 3)
    _block = slice(3 * _m, 3 * _m + 3), slice(2 * _n, 2 * _n + 2)
    _sum = float((_grad_w[_block] * _b.data[0]).sum())
    kit.row(
        kit.table(_grad_w, "dW", lit=_block),
        kit.table(_b.data[0], "B", lit=...),
        kit.table(_a.grad[0], "A.grad", lit=(_m, _n)),
        kit.bars({"sum of block times B": _sum, "A.grad": _a.grad[0, _m, _n]}, "the framed number", width=270),
    )
    return


@app.cell(hide_code=True)
def step_2():
    mo.md(r"""
    ## 2. One number of B moves one entry of every block

    Every block holds a copy of $B$, scaled by its number of $A$: there are $MN$ uses of $B_{pq}$ to add up.

    $$dB_{pq} = \sum_{m, n} dW_{\,mP + p,\; nQ + q}\;A_{mn}$$
    """)
    return


@app.cell(hide_code=True)
def slide_2():
    of_b = mo.ui.slider(0, 5, value=3, label="which number of B", show_value=True)
    of_b
    return (of_b,)


@app.cell(hide_code=True)
def see_2(of_b):
    _grad_w, _a, _b = two_layers()
    _p, _q = divmod(of_b.value, 2)
    _copies = slice(_p, None, 3), slice(_q, None, 2)
    _sum = float((_grad_w[_copies] * _a.data[0]).sum())
    kit.row(
        kit.table(_grad_w, "dW", lit=_copies),
        kit.table(_a.data[0], "A", lit=...),
        kit.table(_b.grad[0], "B.grad", lit=(_p, _q)),
        kit.bars({"sum of framed times A": _sum, "B.grad": _b.grad[0, _p, _q]}, "the framed number", width=270),
    )
    return


@app.cell(hide_code=True)
def ask_1():
    mo.md(r"""
    ### Exercise 1: from dW to the factors

    Row $mP + p$ and column $nQ + q$ of $dW$: four indices in two axes. `grad_w.reshape(M, P, N, Q)` gives each its own
    axis, without moving a number.
    """)
    return


@app.function
# EXERCISE 1. grad_w is (M*P, N*Q), a is (M, N), b is (P, Q).
# Return (grad_a, grad_b), each of its factor's shape.
def factor_gradients(grad_w, a, b):
    raise kit.Todo


@app.cell(hide_code=True)
def check_1():
    def _slopes(_grad_w, _a, _b):
        """Raise each number of a, then of b, and see how sum(grad_w * (a kron b)) moves."""
        _found = []
        for _which in (0, 1):
            _slope = np.zeros((_a, _b)[_which].shape)
            for _place in np.ndindex(*_slope.shape):
                _sums = []
                for _step in (0.5, -0.5):
                    _pair = [_a.astype(np.float64), _b.astype(np.float64)]
                    _pair[_which][_place] += _step
                    _sums.append((_grad_w * np.kron(*_pair)).sum())
                _slope[_place] = _sums[0] - _sums[1]
            _found.append(xp.asarray(_slope.astype(np.float32)))
        return tuple(_found)

    _draws = np.random.default_rng(8)
    _cases = []
    for _m, _n, _p, _q in [(2, 3, 4, 5), (3, 3, 3, 3), (1, 4, 3, 1), (5, 1, 1, 2)]:
        _shapes = (_m * _p, _n * _q), (_m, _n), (_p, _q)
        _arrays = [_draws.normal(size=_shape).astype(np.float32) for _shape in _shapes]
        _given = tuple(xp.asarray(_array) for _array in _arrays)
        _cases.append((f"A ({_m}, {_n}), B ({_p}, {_q})", _given, _slopes(*_arrays)))

    def _of(w, a, b, weighted=True, average=False):
        _w = w.reshape(a.shape[0], b.shape[0], a.shape[1], b.shape[1])
        _for_a, _for_b = (_w * b[:, None], _w * a[:, None, :, None]) if weighted else (_w, _w)
        return (_for_a.mean((1, 3)), _for_b.mean((0, 2))) if average else (_for_a.sum((1, 3)), _for_b.sum((0, 2)))

    result_1 = kit.check(
        "factor_gradients",
        factor_gradients,
        _cases,
        mistakes=[
            ("Those are the gradients for B ⊗ A.", lambda w, a, b: _of(w, b, a)[::-1]),
            ("Each use counts as much as what it is multiplied by.", lambda w, a, b: _of(w, a, b, weighted=False)),
            ("That is the mean over the uses. They add up.", lambda w, a, b: _of(w, a, b, average=True)),
            ("B is used in every block.", lambda w, a, b: (_of(w, a, b)[0], w[: len(b), : len(b.T)] * a[0, 0])),
        ],
    )
    result_1
    return (result_1,)


@app.cell(hide_code=True)
def help_1(result_1):
    help_for_1 = kit.help(
        result_1,
        hint="`b[None, :, None, :]` has four axes, too. Multiply: over which two of them must you sum?",
        solution="""
        def factor_gradients(grad_w, a, b):
            grad_w_MPNQ = grad_w.reshape(a.shape[0], b.shape[0], a.shape[1], b.shape[1])
            grad_a = (grad_w_MPNQ * b[None, :, None, :]).sum(axis=(1, 3))
            grad_b = (grad_w_MPNQ * a[:, None, :, None]).sum(axis=(0, 2))
            return grad_a, grad_b
        """,
    )
    help_for_1
    return


@app.cell(hide_code=True)
def step_3(result_1):
    kit.gate(result_1, "Exercise 1 opens the next step.")
    mo.md(r"""
    ## 3. Without dW

    $dW$ is as large as $W$, which we never built. We need not build it either. The forward pass was two products,
    $Z = X B^\top$ and $Y = A Z$, and keeps $X$ and $Z$; each goes back by the rule for a product of matrices, lesson 4:

    $$dA = dY\,Z^\top\qquad dZ = A^\top dY\qquad dB = dZ^\top X\qquad dX = dZ\,B$$

    That is for one vector. Every vector uses the same $A$ and $B$, so $dA$ and $dB$ are summed over the vectors; each
    $dX$ is its own. Walk through it, box by box; then write it, in exercise 2. `.swapaxes(1, 2)` transposes each matrix
    of a stack.
    """)
    return


@app.cell(hide_code=True)
def slide_3(result_1):
    kit.gate(result_1)
    walked = mo.ui.slider(0, 7, value=7, label="steps, forward and back", show_value=True)
    walked
    return (walked,)


@app.cell(hide_code=True)
def see_3(walked):
    _nodes = {
        "x": "X|N by Q",
        "z": "Z = X Bᵀ|N by P",
        "y": "Y = A Z|M by P",
        "dy": "dY|M by P",
        "da": "dA = dY Zᵀ|M by N",
        "dz": "dZ = Aᵀ dY|N by P",
        "db": "dB = dZᵀ X|P by Q",
        "dx": "dX = dZ B|N by Q",
    }
    _forward_and_back = [("x", "z"), ("z", "y"), ("y", "dy"), ("dy", "da"), ("dy", "dz"), ("dz", "db"), ("dz", "dx")]
    _kept = [("z", "da"), ("x", "db")]  # what the forward pass has to keep
    _done = list(_nodes)[: walked.value + 1]
    _title = f"after step {walked.value}: nothing has the shape of W"
    kit.graph(_nodes, _forward_and_back + _kept, _title, lit=_done)
    return


@app.function
# EXERCISE 2. a is (M, N), b is (P, Q), x is (T, N*Q), grad_y is (T, M*P).
# Return (grad_x, grad_a, grad_b). Build nothing of the shape of A ⊗ B.
def kron_backward(grad_y, x, a, b):
    raise kit.Todo


@app.cell(hide_code=True)
def check_2(result_1):
    kit.gate(result_1, "Exercise 1 comes first.")

    def _through_dense(_grad_y, _x, _a, _b):
        """Build W and dW after all, in float64, and add up over blocks in loops."""
        _grad_y, _x, _a, _b = (_array.astype(np.float64) for _array in (_grad_y, _x, _a, _b))
        (_rows, _columns), _grad_w = _b.shape, _grad_y.T @ _x
        _grad_a, _grad_b = np.zeros(_a.shape), np.zeros(_b.shape)
        for _m, _n in np.ndindex(*_a.shape):
            _block = _grad_w[_m * _rows : (_m + 1) * _rows, _n * _columns : (_n + 1) * _columns]
            _grad_a[_m, _n] = (_block * _b).sum()
            _grad_b += _block * _a[_m, _n]
        return tuple(xp.asarray(_g.astype(np.float32)) for _g in (_grad_y @ np.kron(_a, _b), _grad_a, _grad_b))

    _draws = np.random.default_rng(9)
    _cases = []
    for _rows, _m, _n, _p, _q in [(3, 3, 3, 3, 3), (4, 2, 3, 4, 5), (1, 4, 2, 2, 3), (6, 1, 4, 3, 1), (2, 5, 1, 1, 2)]:
        _shapes = (_rows, _m * _p), (_rows, _n * _q), (_m, _n), (_p, _q)
        _arrays = [_draws.normal(size=_shape).astype(np.float32) for _shape in _shapes]
        _given = tuple(xp.asarray(_array) for _array in _arrays)
        _cases.append((f"{_rows} vectors, A ({_m}, {_n}), B ({_p}, {_q})", _given, _through_dense(*_arrays)))

    def _made(grad_y, x, a, b):
        _x, _y = tk.Tensor(x, requires_grad=True), tk.Tensor(grad_y)
        _factors = [tk.Tensor(_f[None], requires_grad=True) for _f in (a, b)]
        kron_linear(_x, *_factors).backward(_y)
        return _x.grad, _factors[0].grad[0], _factors[1].grad[0]

    def _averaged(grad_y, x, a, b):
        _grad_x, _grad_a, _grad_b = _made(grad_y, x, a, b)
        return _grad_x, _grad_a / len(x), _grad_b / len(x)

    def _without_factors(grad_y, x, a, b):
        _y, _x = grad_y.reshape(len(x), len(a), -1), x.reshape(len(x), len(a.T), -1)
        return _made(grad_y, x, a, b)[0], (_y @ _x.swapaxes(1, 2)).sum(axis=0), (_y.swapaxes(1, 2) @ _x).sum(axis=0)

    result_2 = kit.check(
        "kron_backward",
        kron_backward,
        _cases,
        mistakes=[
            ("That is the mean over the vectors. Uses add up.", _averaged),
            ("Only one vector counts.", lambda g, x, a, b: (_made(g, x, a, b)[0], *_made(g[-1:], x[-1:], a, b)[1:])),
            ("dX goes forward again.", lambda g, x, a, b: (kron.apply(a[None], b[None], g), *_made(g, x, a, b)[1:])),
            ("dA needs B in it (it is in Z), and dB needs A (it is in dZ).", _without_factors),
        ],
    )
    result_2
    return (result_2,)


@app.cell(hide_code=True)
def help_2(result_2):
    help_for_2 = kit.help(
        result_2,
        hint="Reshape x to (T, N, Q) and grad_y to (T, M, P), then use the formulas. Which are summed over T?",
        solution="""
        def kron_backward(grad_y, x, a, b):
            x_TNQ = x.reshape(len(x), a.shape[1], b.shape[1])
            grad_y_TMP = grad_y.reshape(len(x), a.shape[0], b.shape[0])
            z_TNP = x_TNQ @ b.T
            grad_z_TNP = a.T @ grad_y_TMP
            grad_a = (grad_y_TMP @ z_TNP.swapaxes(1, 2)).sum(axis=0)
            grad_b = (grad_z_TNP.swapaxes(1, 2) @ x_TNQ).sum(axis=0)
            return (grad_z_TNP @ b).reshape(len(x), -1), grad_a, grad_b
        """,
    )
    help_for_2
    return


@app.cell(hide_code=True)
def step_4(result_2):
    kit.gate(result_2, "Exercise 2 opens the last step.")
    mo.md(r"""
    ## 4. The scale between the factors is free, and training feels it

    $(cA)\otimes(B/c)$ is the same matrix for every $c$: the layer computes the same, and so does the loss.
    """)
    return


@app.cell(hide_code=True)
def predict_4(result_2):
    kit.gate(result_2)
    options_4 = {
        "It is halved": "dA is made of dW and B. dW is the same as before, B is half of what it was. So the small "
        "factor gets the large gradient, and its steps overshoot; the large one hardly moves.",
        "It is doubled": "a larger A, larger gradients? But A is not part of its own gradient: B is.",
        "It stays the same": "dW does, as W is the same. dA is dW seen through B.",
    }
    guess_4 = kit.predict("A is doubled and B halved. What happens to the gradient of A?", options_4)
    guess_4
    return guess_4, options_4


@app.cell(hide_code=True)
def reveal_4(guess_4, options_4):
    step_4_done = kit.reveal(guess_4, options_4)
    step_4_done
    return (step_4_done,)


@app.function
def train(a, b, x, wanted, steps, rate):
    losses = []
    for _ in range(steps):
        a, b = tk.Tensor(a, requires_grad=True), tk.Tensor(b, requires_grad=True)
        miss = kron_linear(tk.Tensor(x), a, b) - tk.Tensor(wanted)
        loss = (miss * miss).mean()
        loss.backward()
        losses.append(loss.item())
        a, b = a.data - rate * a.grad, b.data - rate * b.grad
    return losses


@app.cell(hide_code=True)
def slide_4(step_4_done):
    step_4_done
    doublings = mo.ui.slider(-2, 2, value=2, label="c is 2 to the power of", show_value=True)
    doublings
    return (doublings,)


@app.cell(hide_code=True)
def see_4(doublings):
    _draws = np.random.default_rng(6)
    _shapes = (1, 4, 4), (1, 4, 4), (32, 16), (1, 4, 4), (1, 4, 4)
    _a, _b, _x, *_true = (xp.asarray(_draws.normal(size=_shape).astype(np.float32)) for _shape in _shapes)
    _wanted, _steps, _c = kron.apply(*_true, _x), 10 if kit.fast() else 120, 2.0**doublings.value
    _curves = {
        "c = 1": train(_a, _b, _x, _wanted, _steps, 0.05),
        f"c = {_c:g}, from the slider": train(_c * _a, _b / _c, _x, _wanted, _steps, 0.05),
    }
    kit.lines(_curves, "the loss, always from the same W and with the same step size", x_label="steps", log_y=True)
    return


@app.cell(hide_code=True)
def finish(result_1, result_2):
    lesson_done = kit.finish(
        result_1,
        result_2,
        text="""
        **Done.** Two products forward, four back, and nothing of the shape of the matrix is built. That the scale is
        free is why `kron.nearest` returns factors of equal Frobenius norm (the root of the sum of squares). Read
        `KronApply` in `tinykron/kron/linear.py`. Next, where the factors come from: `tinykron lesson 14`.
        """,
    )
    lesson_done
    return


if __name__ == "__main__":
    app.run()
