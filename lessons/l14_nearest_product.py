import marimo

__generated_with = "0.25.2"
app = marimo.App(width="medium", app_title="14 The nearest Kronecker product")

with app.setup(hide_code=True):
    import marimo as mo
    import numpy as np

    import tinykron as tk
    from tinykron import kit, kron
    from tinykron.data.shipped import weights_folder

    LESSON = 3  # the version of this lesson
    xp = kit.array_module()


@app.cell(hide_code=True)
def title():
    mo.md(r"""
    # 14 · The nearest Kronecker product

    **You build** the rearrangement that turns a Kronecker product into a column times a row, and with it the best fit.

    **You see** for which matrices that fit is good, for which low rank is better, and how it is with trained weights.

    **You need** lesson 11, and that a singular value decomposition (SVD) gives the nearest matrix of rank one.
    """)
    return


@app.cell(hide_code=True)
def step_1():
    mo.md(r"""
    ## 1. The same numbers, in other places

    Cut $W$ into $M$ by $N$ blocks of $P$ rows and $Q$ columns. Write the rows of a block one behind the other, as one
    long row, and put these long rows one below the other: that is $R(W)$, of shape $(MN, PQ)$. In $A\otimes B$ every
    block is a multiple of $B$, so every row of $R$ is a multiple of one row:

    $$R(A\otimes B) = \mathrm{vec}(A)\,\mathrm{vec}(B)^\top.$$

    Choose a block. Its factor is a number of $A$.
    """)
    return


@app.cell(hide_code=True)
def slide_1():
    block = mo.ui.slider(0, 5, value=1, label="which block", show_value=True)
    block
    return (block,)


@app.cell(hide_code=True)
def see_1(block):
    _a = xp.asarray(np.array([[2, -1, 0.5], [-1.5, 1, 3]], np.float32))
    _b = xp.asarray(np.array([[1, 2], [-1, 0.5]], np.float32))
    _m, _n = divmod(block.value, 3)
    _w = xp.kron(_a, _b)
    kit.row(
        kit.table(_a, "A", lit=(_m, _n)),
        kit.table(_b, "B"),
        kit.table(_w, f"W = A ⊗ B, block {block.value}", lit=(slice(2 * _m, 2 * _m + 2), slice(2 * _n, 2 * _n + 2))),
        kit.table(kron.rearrange(_w, (2, 3)), f"R(W), row {block.value}", lit=(block.value, slice(None))),
    )
    return


@app.cell(hide_code=True)
def ask_1():
    mo.md(r"""
    ### Exercise 1: rearrange

    Give each of the four indices an axis, put the axes into the order that is wanted, and make two of them again.
    """)
    return


@app.function
# EXERCISE 1. w is (m*P, n*Q). Return R(w), of shape (m*n, P*Q):
# row i*n + j is block (i, j) of w, row by row.
def rearranged(w, m, n):
    raise kit.Todo


@app.cell(hide_code=True)
def check_1():
    def _by_blocks(_w, _m, _n):
        _p, _q = _w.shape[0] // _m, _w.shape[1] // _n
        _blocks = [_w[_i * _p : (_i + 1) * _p, _j * _q : (_j + 1) * _q] for _i in range(_m) for _j in range(_n)]
        return np.stack([_block.reshape(-1) for _block in _blocks])

    _cases = []
    for _m, _n, _p, _q in [(2, 2, 3, 3), (2, 3, 4, 5), (1, 4, 3, 2), (5, 1, 1, 2), (2, 2, 1, 3)]:
        _w = np.arange(_m * _p * _n * _q, dtype=np.float32).reshape(_m * _p, _n * _q)
        _label = f"A ({_m}, {_n}), B ({_p}, {_q})"
        _cases.append((_label, (xp.asarray(_w), _m, _n), xp.asarray(_by_blocks(_w, _m, _n))))

    def _four(w, first, second, order):
        _axes = w.reshape(first, len(w) // first, second, len(w.T) // second).transpose(*order)
        return _axes.reshape(_axes.shape[0] * _axes.shape[1], -1)

    result_1 = kit.check(
        "rearranged",
        rearranged,
        _cases,
        mistakes=[
            ("The numbers have not moved: a block lies in several rows of w.", lambda w, m, n: w.reshape(m * n, -1)),
            ("That is R, transposed.", lambda w, m, n: _four(w, m, n, (0, 2, 1, 3)).T),
            ("The blocks are taken column by column.", lambda w, m, n: _four(w, m, n, (2, 0, 1, 3))),
            ("Each block is written column by column.", lambda w, m, n: _four(w, m, n, (0, 2, 3, 1))),
            (
                "w has m blocks of P rows, not P of m.",
                lambda w, m, n: _four(w, len(w) // m, len(w.T) // n, (1, 3, 0, 2)),
            ),
        ],
    )
    result_1
    return (result_1,)


@app.cell(hide_code=True)
def help_1(result_1):
    help_for_1 = kit.help(
        result_1,
        hint="Row i*P + p, column j*Q + q: give i, p, j, q an axis each, by a reshape. In which order must they come?",
        solution="""
        def rearranged(w, m, n):
            p, q = w.shape[0] // m, w.shape[1] // n
            return w.reshape(m, p, n, q).transpose(0, 2, 1, 3).reshape(m * n, p * q)
        """,
    )
    help_for_1
    return


@app.cell(hide_code=True)
def step_2(result_1):
    kit.gate(result_1, "Exercise 1 opens the next step.")
    mo.md(r"""
    ## 2. The best product is a singular pair

    Moving numbers about does not change how far two matrices are apart, the root of the sum of squares of what differs:

    $$\|W - A\otimes B\| = \|R(W) - \mathrm{vec}(A)\,\mathrm{vec}(B)^\top\|$$

    On the right stands a question that is solved: the nearest column times row is $s_1 u_1 v_1^\top$, the first part of
    the SVD. Reshape $u_1$ to $A$ and $v_1$ to $B$, and give $s_1$ to one of the two, or its root to each.
    """)
    return


@app.cell(hide_code=True)
def ask_2(result_1):
    kit.gate(result_1)
    mo.md(r"""
    ### Exercise 2: fit

    `kron.rearrange` is the library's own `rearranged`. Many pairs are right, $cA$ with $B/c$: their product is judged.
    """)
    return


@app.function
# EXERCISE 2. w is (m*P, n*Q). Return (a, b), of shapes (m, n) and (P, Q), so that a ⊗ b is as
# near to w as can be.
# u, s, vt = xp.linalg.svd(kron.rearrange(w, (m, n)), full_matrices=False)
def nearest_pair(w, m, n):
    raise kit.Todo


@app.cell(hide_code=True)
def check_2(result_1):
    kit.gate(result_1, "Exercise 1 comes first.")

    def _by_turns(_w, _m, _n):
        """Choose the best A for this B, the best B for this A, and so on, until nothing changes."""
        _w_MPNQ = _w.astype(np.float64).reshape(_m, len(_w) // _m, _n, -1)
        _b = np.random.default_rng(3).normal(size=_w_MPNQ.shape[1::2])
        for _ in range(500):
            _a = np.einsum("mpnq,pq->mn", _w_MPNQ, _b) / (_b**2).sum()
            _b = np.einsum("mpnq,mn->pq", _w_MPNQ, _a) / (_a**2).sum()
        return xp.asarray(np.kron(_a, _b).astype(np.float32))

    _draws = np.random.default_rng(1)
    _cases = []
    for _m, _n, _p, _q in [(3, 3, 3, 3), (2, 3, 4, 5), (1, 4, 3, 2), (6, 1, 1, 5)]:
        _w = np.kron(_draws.normal(size=(_m, _n)), _draws.normal(size=(_p, _q)))
        _w = (_w + 0.5 * _draws.normal(size=_w.shape)).astype(np.float32)
        _cases.append((f"A ({_m}, {_n}), B ({_p}, {_q})", (xp.asarray(_w), _m, _n), _by_turns(_w, _m, _n)))

    def _pair(w, m, n, scale=lambda s: s, at=0):
        _u, _s, _vt = xp.linalg.svd(kron.rearrange(w, (m, n)), full_matrices=False)
        return scale(_s[at]) * _u[:, at].reshape(m, n), _vt[at].reshape(len(w) // m, -1)

    result_2 = kit.check(
        "nearest_pair",
        nearest_pair,
        _cases,
        mistakes=[
            ("The singular value is missing: u and v have length 1.", lambda w, m, n: _pair(w, m, n, lambda s: 1.0)),
            (
                "s is on both sides: its square. Once, or its root on each.",
                lambda w, m, n: _pair(w, m, n, lambda s: s * s),
            ),
            ("The last singular value is the smallest.", lambda w, m, n: _pair(w, m, n, at=-1)),
            ("Only one of the sides got the root of s.", lambda w, m, n: _pair(w, m, n, lambda s: s**0.5)),
        ],
        tolerance=1e-3,
        judge=lambda pair, w, m, n: xp.kron(pair[0], pair[1]),
    )
    result_2
    return (result_2,)


@app.cell(hide_code=True)
def help_2(result_2):
    help_for_2 = kit.help(
        result_2,
        hint="The first column of u has m*n numbers, the first row of vt has P*Q. Which shapes do they take?",
        solution="""
        def nearest_pair(w, m, n):
            u, s, vt = xp.linalg.svd(kron.rearrange(w, (m, n)), full_matrices=False)
            root = s[0] ** 0.5
            return root * u[:, 0].reshape(m, n), root * vt[0].reshape(w.shape[0] // m, w.shape[1] // n)
        """,
    )
    help_for_2
    return


@app.cell(hide_code=True)
def step_3(result_2):
    kit.gate(result_2, "Exercise 2 opens the next step.")
    mo.md(r"""
    ## 3. Sums of products, and of ranks

    More singular pairs give a sum of products, `kron.nearest(w, (M, N), terms)`. What is left out are the other pairs:
    its size, the root of the sum of their singular values squared, is shown as a share of that of $W$. Low rank is the
    same with other shapes: $A$ a column, $B$ a row, and $R(W)$ is $W$ itself.

    Below, a woven pattern of 48 by 48 turns into a smooth one. A term with $A$ of 8 by 8 and $B$ of 6 by 6 takes 100
    numbers, one of low rank 96.
    """)
    return


@app.cell(hide_code=True)
def slide_3(result_2):
    kit.gate(result_2)
    smooth = mo.ui.slider(0.0, 1.0, 0.1, value=0.1, label="from woven to smooth", show_value=True)
    smooth
    return (smooth,)


@app.cell(hide_code=True)
def slide_terms(result_2):
    kit.gate(result_2)
    terms = mo.ui.slider(1, 16, value=2, label="terms of either kind", show_value=True)
    terms
    return (terms,)


@app.function
def errors(w, shape):
    """Return what 1, 2, 3, ... terms leave out, as a share of the norm of w."""
    squares = np.linalg.svd(kit.host(kron.rearrange(w, shape)), compute_uv=False) ** 2
    return np.sqrt(np.append(squares[::-1].cumsum()[::-1][1:], 0.0) / squares.sum())


@app.cell(hide_code=True)
def see_3(smooth, terms):
    _draws = np.random.default_rng(7)
    _tiles = np.eye(6), np.eye(6)[::-1]
    _woven = sum(2 * np.kron(_draws.normal(size=(8, 8)), _tile) for _tile in _tiles)
    _at = np.linspace(0, 1, 48)
    _even = 4 * np.outer(np.sin(5 * _at), np.cos(3 * _at)) + 2 * np.outer(_at, np.sin(9 * _at))
    _mixed = (1 - smooth.value) * _woven + smooth.value * _even + 0.1 * _draws.normal(size=(48, 48))
    _w = xp.asarray(_mixed.astype(np.float32))
    _products, _low = kron.nearest(_w, (8, 8), terms.value), kron.nearest(_w, (48, 1), terms.value)
    _curves = {"Kronecker (8, 8)": errors(_w, (8, 8))[:16], "low rank": errors(_w, (48, 1))[:16]}
    _top = float(np.abs(_mixed).max())
    kit.row(
        kit.heat(_w, "W", top=_top),
        kit.heat(_products.dense(), f"Kronecker, {_products.parameters} numbers", top=_top),
        kit.heat(_low.dense(), f"low rank, {_low.parameters} numbers", top=_top),
        kit.lines(_curves, "what is left out", x=list(range(1, 17)), x_label="terms", mark=terms.value),
    )
    return


@app.cell(hide_code=True)
def step_4(result_2):
    kit.gate(result_2)
    mo.md(r"""
    ## 4. Trained weights

    tinykron comes with a small GPT-2. The first matrix of each feed-forward part is 512 by 128.
    """)
    return


@app.cell(hide_code=True)
def predict_4(result_2):
    kit.gate(result_2)
    options_4 = {
        "low rank": "The blocks of these matrices have little in common: in that shape R(W) is much like noise.",
        "Kronecker": "papers compress transformers with it. But they train after the fit, and training changes much.",
        "neither: they are like noise": "trained matrices have some directions that are much stronger than others.",
    }
    guess_4 = kit.predict(
        "With equally many numbers, which leaves less of a trained matrix out: low rank, or sums with A of 16 by 16?",
        options_4,
    )
    guess_4
    return guess_4, options_4


@app.cell(hide_code=True)
def reveal_4(guess_4, options_4):
    step_4_done = kit.reveal(guess_4, options_4)
    step_4_done
    return (step_4_done,)


@app.cell(hide_code=True)
def slide_4(step_4_done):
    step_4_done
    layer = mo.ui.slider(0, 7, value=3, label="layer", show_value=True)
    layer
    return (layer,)


@app.cell(hide_code=True)
def load(step_4_done):
    step_4_done
    model = tk.load(weights_folder("gpt2-tiny"))
    return (model,)


@app.cell(hide_code=True)
def see_4(layer, model):
    _w = kit.host(model.get(f"blocks.{layer.value}.mlp.up").weight).T  # out x in
    _noise = np.random.default_rng(0).normal(size=_w.shape).astype(np.float32)
    _shares = np.arange(1, 17) / 16
    _curves = {}
    for _name, _matrix, _shape in [
        ("low rank", _w, (512, 1)),
        ("A (2, 128)", _w, (2, 128)),
        ("A (16, 16)", _w, (16, 16)),
        ("noise, by A (16, 16)", _noise, (16, 16)),
    ]:
        _left = errors(_matrix, _shape)
        _each = _shape[0] * _shape[1] + _matrix.size // (_shape[0] * _shape[1])  # numbers of a term
        _curves[_name] = [_left[min(int(_share * _w.size) // _each, len(_left)) - 1] for _share in _shares]
    _label = "numbers, as a share of the matrix's own"
    kit.lines(_curves, f"what is left out of layer {layer.value}", x=_shares, x_label=_label, size=(520, 260))
    return


@app.cell(hide_code=True)
def finish(result_1, result_2):
    lesson_done = kit.finish(
        result_1,
        result_2,
        text="""
        **Done.** Rearrange, then SVD: the nearest sum of products, and low rank is one of its shapes. But is the plain
        norm the right ruler? A layer meets some inputs often, and most never: `tinykron lesson 15`. The library's own
        way, by the eigenvectors of R Rᵀ, is `tinykron/kron/fitting/svd.py`.
        """,
    )
    lesson_done
    return


if __name__ == "__main__":
    app.run()
