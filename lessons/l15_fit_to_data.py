import marimo

__generated_with = "0.25.2"
app = marimo.App(width="medium", app_title="15 Fit to the data")

with app.setup(hide_code=True):
    import marimo as mo
    import numpy as np

    import tinykron as tk
    from tinykron import kit, kron
    from tinykron.data.corpus import language_reference
    from tinykron.data.shipped import weights_folder
    from tinykron.data.tokens import encode
    from tinykron.kron.fitting.als import alternate

    LESSON = 3  # the version of this lesson
    xp = kit.array_module()


@app.cell(hide_code=True)
def title():
    mo.md(r"""
    # 15 · Fit to the data: alternating least squares

    **You build** the ruler that counts an error by what it does to the outputs, and one half of a step that makes it
    smaller.

    **You see** two fits of a trained layer, one nearer to its weights, one nearer to its outputs.

    **You need** lesson 14: the nearest product in the plain norm.
    """)
    return


@app.cell(hide_code=True)
def step_1():
    mo.md(r"""
    ## 1. An error that no input meets costs nothing

    A layer computes $Wx$. A fit $\hat W$ errs by $E = W - \hat W$, and what is seen of it is $Ex$. Over the inputs that
    the layer really gets, the mean of $\|Ex\|^2$ depends on them through one matrix only, their second moment $C$, the
    mean of $x x^\top$:

    $$\text{mean of } \|E x\|^2 = \mathrm{tr}(E\,C\,E^\top).$$

    Below, neighbouring entries of $x$ are alike, as the slider says. The plain fit of a matrix of 16 by 16, three terms
    of 4 by 4, does not know that. The other one is given $C$. What they leave out is the root of that mean, as a share
    of what the layer gives.
    """)
    return


@app.cell(hide_code=True)
def slide_1():
    alike = mo.ui.slider(0.0, 0.95, 0.05, value=0.9, label="how alike neighbouring entries are", show_value=True)
    alike
    return (alike,)


@app.function(hide_code=True)
def left_out(w, fit, c):
    """Return what a fit leaves out of the outputs, as a share."""
    error = w - fit.dense()
    return float((error @ c * error).sum() / (w @ c * w).sum()) ** 0.5


@app.cell(hide_code=True)
def see_1(alike):
    _places = np.arange(16)
    _c = xp.asarray(alike.value ** np.abs(_places[:, None] - _places))
    _w = xp.asarray(np.random.default_rng(0).normal(size=(16, 16)))
    _plain, _fitted, _even = kron.nearest(_w, (4, 4), 3), kron.nearest(_w, (4, 4), 3, _c), xp.eye(16)
    _bars = {
        "weights: plain fit": left_out(_w, _plain, _even),
        "weights: fitted to C": left_out(_w, _fitted, _even),
        "outputs: plain fit": left_out(_w, _plain, _c),
        "outputs: fitted to C": left_out(_w, _fitted, _c),
    }
    kit.row(kit.heat(_c, "C", top=1.0), kit.bars(_bars, "what is left out, as a share"))
    return


@app.cell(hide_code=True)
def ask_1():
    mo.md(r"""
    ### Exercise 1: the ruler

    No input is given to you, only $C$. The check takes inputs one by one, and compares.
    """)
    return


@app.function
# EXERCISE 1. e is (out, in), c is (in, in), the mean of x xᵀ over many inputs x.
# Return one number: the mean of the sum of squares of e @ x.
def output_error(e, c):
    raise kit.Todo


@app.cell(hide_code=True)
def check_1():
    _draws = np.random.default_rng(2)
    _cases = []
    for _rows, _columns in [(3, 3), (4, 6), (1, 5), (5, 1)]:
        _e = _draws.normal(size=(_rows, _columns)).astype(np.float32)
        _inputs = (_draws.normal(size=(50, _columns)) @ _draws.normal(size=(_columns, _columns))).astype(np.float32)
        _one_by_one = sum(float(((_e @ _x) ** 2).sum()) for _x in _inputs) / len(_inputs)
        _given = xp.asarray(_e), xp.asarray(_inputs.T @ _inputs / len(_inputs))
        _cases.append((f"e of {_rows} by {_columns}", _given, _one_by_one))
    result_1 = kit.check(
        "output_error",
        output_error,
        _cases,
        mistakes=[
            ("That is the plain norm: C does not count yet.", lambda e, c: (e * e).sum()),
            ("C is in it twice: multiply E C by E, not by itself.", lambda e, c: ((e @ c) ** 2).sum()),
            ("That is the root of it.", lambda e, c: (e @ c * e).sum() ** 0.5),
            ("That is the mean over the outputs: add them up.", lambda e, c: (e @ c * e).sum() / len(e)),
            (
                "Only each input's own square is used, not how inputs go together.",
                lambda e, c: (e * e @ c.diagonal()).sum(),
            ),
        ],
        tolerance=1e-3,
    )
    result_1
    return (result_1,)


@app.cell(hide_code=True)
def help_1(result_1):
    help_for_1 = kit.help(
        result_1,
        hint="The trace of E C Eᵀ is the sum of its diagonal. Entry (i, i) is row i of E C times row i of E, summed.",
        solution="""
        def output_error(e, c):
            return ((e @ c) * e).sum()
        """,
    )
    help_for_1
    return


@app.cell(hide_code=True)
def step_2(result_1):
    kit.gate(result_1, "Exercise 1 opens the next step.")
    mo.md(r"""
    ## 2. With B held, the best A is an ordinary least-squares problem

    For this ruler there is no SVD that finds the best $A$ and $B$ together. But hold $B$. Then $Z = X B^\top$ is known,
    and the layer is $Y = A Z$: linear in $A$. Every column $z$ of every $Z$ wants the same column $y$ of its $Y$ to be
    $A z$, and the best $A$ is that of least squares. Summed over all columns of all inputs:

    $$A\,\sum z z^\top = \sum y\,z^\top.$$

    The unknown stands on the left: transposed, it is what `solve` wants.

    ### Exercise 2: one half of a step
    """)
    return


@app.function
# EXERCISE 2. x is (T, N, Q), the outputs y that are wanted are (T, M, P), b is (P, Q).
# Return the A (M, N) for which a @ x @ b.T is nearest to y, over all T.
# xp.linalg.solve(s, r) solves s @ answer = r.
def best_a(x, y, b):
    raise kit.Todo


@app.cell(hide_code=True)
def check_2(result_1):
    kit.gate(result_1, "Exercise 1 comes first.")

    def _by_design(_x, _y, _b):
        """One column of a large system for each number of A: what the layer gives if only that one is 1."""
        _m, _n = _y.shape[1], _x.shape[1]
        _units = np.eye(_m * _n).reshape(-1, 1, _m, _n)
        _columns = (_units @ _x.astype(np.float64) @ _b.T).reshape(_m * _n, -1)
        _answer = np.linalg.lstsq(_columns.T, _y.reshape(-1), rcond=None)[0]
        return _answer.reshape(_m, _n).astype(np.float32)

    _draws = np.random.default_rng(4)
    _cases = []
    for _t, _m, _n, _p, _q in [(20, 3, 3, 3, 3), (20, 2, 3, 4, 5), (30, 4, 2, 1, 3), (12, 1, 3, 2, 2), (9, 3, 1, 2, 1)]:
        _arrays = [_draws.normal(size=_s).astype(np.float32) for _s in ((_t, _n, _q), (_t, _m, _p), (_p, _q))]
        _given = tuple(xp.asarray(_array) for _array in _arrays)
        _cases.append((f"A ({_m}, {_n}), B ({_p}, {_q})", _given, xp.asarray(_by_design(*_arrays))))

    def _sums(x, y, b):
        _z = (x @ b.T).transpose(0, 2, 1).reshape(-1, x.shape[1])
        _y = y.transpose(0, 2, 1).reshape(-1, y.shape[1])
        return _z.T @ _z, _z.T @ _y

    def _diagonal(x, y, b):
        _squares, _products = _sums(x, y, b)
        return (_products / _squares.diagonal()[:, None]).T

    def _unturned(x, y, b):
        _z, _y = (x @ b.T).reshape(-1, x.shape[1]), y.reshape(-1, y.shape[1])
        return xp.linalg.solve(_z.T @ _z, _z.T @ _y).T

    result_2 = kit.check(
        "best_a",
        best_a,
        _cases,
        mistakes=[
            ("That is Σ y zᵀ. It still has to be solved for A.", lambda x, y, b: _sums(x, y, b)[1].T),
            ("The answer is transposed: A is (M, N).", lambda x, y, b: xp.linalg.solve(*_sums(x, y, b))),
            ("Only the diagonal of Σ z zᵀ is used, as if the inputs of A were independent.", _diagonal),
            ("Rows and columns are mixed up: the columns of Z belong together, turn Z before the reshape.", _unturned),
            ("B is missing: A meets Z, not X.", lambda x, y, b: xp.linalg.solve(*_sums(x, y, xp.eye(b.shape[1]))).T),
        ],
        tolerance=1e-3,
    )
    result_2
    return (result_2,)


@app.cell(hide_code=True)
def help_2(result_2):
    help_for_2 = kit.help(
        result_2,
        hint="""
        `(x @ b.T).transpose(0, 2, 1).reshape(-1, N)` has one z in each row. Do the same with y. What are the two sums,
        as products of these matrices? And solve gives the transpose of A.
        """,
        solution="""
        def best_a(x, y, b):
            z_SN = (x @ b.T).transpose(0, 2, 1).reshape(-1, x.shape[1])
            y_SM = y.transpose(0, 2, 1).reshape(-1, y.shape[1])
            return xp.linalg.solve(z_SN.T @ z_SN, z_SN.T @ y_SM).T
        """,
    )
    help_for_2
    return


@app.cell(hide_code=True)
def step_3(result_2):
    kit.gate(result_2, "Exercise 2 opens the next step.")
    mo.md(r"""
    ## 3. Take turns

    Best $A$ for this $B$, best $B$ for that $A$, and again: *alternating least squares*. No half-step can raise the
    error, as staying put is among its choices. Nothing says that it ends at the best there is; here three starts, two
    of them random, meet.
    """)
    return


@app.cell(hide_code=True)
def slide_3(result_2):
    kit.gate(result_2)
    sweeps = mo.ui.slider(0, 12, value=4, label="sweeps", show_value=True)
    sweeps
    return (sweeps,)


@app.cell(hide_code=True)
def see_3(sweeps):
    _draws = np.random.default_rng(5)
    _mix, _w = _draws.normal(size=(16, 16)) * np.linspace(0.05, 1, 16), xp.asarray(_draws.normal(size=(16, 16)))
    _c = xp.asarray(_mix @ _mix.T)
    _whole, _near, _curves = float((_w @ _c * _w).sum()), kron.nearest(_w, (4, 4)), {}
    _starts = {"from the plain fit": (_near.a, _near.b)}
    for _number in (1, 2):
        _starts[f"random {_number}"] = tuple(xp.asarray(_draws.normal(size=(1, 4, 4))) for _ in range(2))
    for _name, (_a, _b) in _starts.items():
        _costs = alternate(_w, _c, _a, _b, 12, -1.0)[2]  # -1: go on, however little a sweep gains
        _curves[_name] = [(_cost / _whole) ** 0.5 for _cost in _costs]
    kit.row(
        kit.lines(_curves, "what is left out of the outputs", x_label="sweeps", log_y=True, mark=sweeps.value),
        kit.bars({_name: _curve[sweeps.value] for _name, _curve in _curves.items()}, "at the mark"),
    )
    return


@app.cell(hide_code=True)
def step_4(result_2):
    kit.gate(result_2)
    mo.md(r"""
    ## 4. A real layer, real text

    Again the feed-forward parts of the small GPT-2, 512 by 128, now with half the numbers: one term, $A$ of shape
    $(512, 64)$ and $B$ of $(1, 2)$. $C$ is measured on some pages of Python's reference, and the outputs are compared
    on other pages.
    """)
    return


@app.cell(hide_code=True)
def predict_4(result_2):
    kit.gate(result_2)
    options_4 = {
        "further from W than a matrix of zeros": "Inputs of a trained layer crowd into few directions. Elsewhere the "
        "fitted weights go where they like, and what they err there can be larger than W itself.",
        "a little further than the plain fit": "so it was above, where inputs were only somewhat alike.",
        "as near as the plain fit": "the plain fit is the nearest: any other is further from W.",
    }
    guess_4 = kit.predict(
        "The fit to the text has the nearer outputs, on other pages, too. How near are its weights to W?", options_4
    )
    guess_4
    return guess_4, options_4


@app.cell(hide_code=True)
def reveal_4(guess_4, options_4):
    step_4_done = kit.reveal(guess_4, options_4)
    step_4_done
    return (step_4_done,)


@app.cell(hide_code=True)
def measure(step_4_done):
    step_4_done
    model = tk.load(weights_folder("gpt2-tiny"))
    _length = 32 if kit.fast() else 128
    _tokens = encode(model.tokenizer, language_reference()[:20])[: 16 * _length].reshape(-1, _length)
    _names = [f"blocks.{_layer}.mlp.up" for _layer in range(8)]
    seen, other = (kron.calibrate(model, [_half], _names) for _half in (_tokens[:12], _tokens[12:]))
    return model, other, seen


@app.cell(hide_code=True)
def slide_4(step_4_done):
    step_4_done
    layer = mo.ui.slider(0, 7, value=3, label="layer", show_value=True)
    layer
    return (layer,)


@app.cell(hide_code=True)
def see_4(layer, model, other, seen):
    _name = f"blocks.{layer.value}.mlp.up"
    _w, _c = xp.ascontiguousarray(model.get(_name).weight.data.T), other.covariance(_name)
    _plain, _fitted = kron.nearest(_w, (512, 64)), kron.nearest(_w, (512, 64), 1, seen.covariance(_name))
    _even = xp.eye(128)
    _bars = {
        "weights: plain fit": left_out(_w, _plain, _even),
        "weights: fitted to text": left_out(_w, _fitted, _even),
        "outputs: plain fit": left_out(_w, _plain, _c),
        "outputs: fitted to text": left_out(_w, _fitted, _c),
    }
    kit.bars(_bars, f"what is left out in layer {layer.value}; a matrix of zeros leaves out 1", width=460)
    return


@app.cell(hide_code=True)
def finish(result_1, result_2):
    lesson_done = kit.finish(
        result_1,
        result_2,
        text="""
        **Done.** Count errors where the data are, hold one factor, solve for the other. As $z$ is made of $x$ and $B$,
        $\\sum zz^\\top$ is made of $C$ and $B$, and $\\sum yz^\\top$ of $WC$ and $B$: the library keeps $C$, never the
        inputs. Read `tinykron/kron/fitting/als.py`. On the command line it is `tinykron compress`. What the fit
        leaves out, training against the teacher brings back in part: `tinykron lesson 16`.
        """,
    )
    lesson_done
    return


if __name__ == "__main__":
    app.run()
