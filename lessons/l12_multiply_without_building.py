import marimo

__generated_with = "0.25.2"
app = marimo.App(width="medium", app_title="12 Multiply without building it")

with app.setup(hide_code=True):
    import time
    import tracemalloc

    import marimo as mo
    import numpy as np

    from tinykron import kit, kron
    from tinykron.kron.order import CostModel

    LESSON = 2  # the version of this lesson
    xp = kit.array_module()


@app.cell(hide_code=True)
def title():
    mo.md(r"""
    # 12 · Multiply without building it

    **You build** the product with $A\otimes B$ out of two small ones, and the count that says which comes first.

    **You see** one large row fall apart into a row of $A$ and a row of $B$, and what that saves.

    **You need** lesson 11: block $(m, n)$ of $A\otimes B$ is $A_{mn}B$.
    """)
    return


@app.cell(hide_code=True)
def step_1():
    mo.md(r"""
    ## 1. A long vector is a small matrix

    With $A$ of shape $(M, N)$ and $B$ of shape $(P, Q)$, the product $y = (A\otimes B)\,x$ takes $NQ$ numbers to $MP$
    numbers. Write $x$ row by row into a matrix $X$ of shape $(N, Q)$, and $y$ into $Y$ of shape $(M, P)$. Then

    $$Y_{mp} = \sum_{n, q} A_{mn}\,B_{pq}\,X_{nq}\qquad\text{that is}\qquad Y = A\,X\,B^\top.$$

    Choose one number of $y$. In the large matrix it needs a whole row; in the small ones, a row of $A$ and a row of
    $B$: each number of the one times each of the other is that row of the large matrix, to be multiplied with $X$.
    """)
    return


@app.cell(hide_code=True)
def slide_1():
    entry = mo.ui.slider(0, 5, value=4, label="which number of y", show_value=True)
    entry
    return (entry,)


@app.cell(hide_code=True)
def see_1(entry):
    _draws = np.random.default_rng(2)
    _a, _b, _x = (xp.asarray(_draws.normal(size=_s).astype(np.float32)) for _s in ((2, 3), (3, 2), (3, 2)))
    _m, _p = divmod(entry.value, 3)
    _full = xp.kron(_a, _b)
    _y = (_full @ _x.reshape(-1)).reshape(2, 3)
    _large = kit.row(
        kit.table(_full, f"A ⊗ B, row {entry.value}", top=3.0, lit=(entry.value, slice(None))),
        kit.table(_x.reshape(-1, 1), "x", top=3.0),
        kit.table(_y.reshape(-1, 1), "y = (A ⊗ B) x", top=3.0, lit=(entry.value, 0)),
    )
    _small = kit.row(
        kit.table(_a, f"A, row {_m}", top=3.0, lit=(_m, slice(None))),
        kit.table(_x, "X", top=3.0),
        kit.table(_b, f"B, row {_p}", top=3.0, lit=(_p, slice(None))),
        kit.table(_a @ _x @ _b.T, "Y = A X Bᵀ: the same numbers", top=3.0, lit=(_m, _p)),
    )
    mo.vstack([_large, _small])
    return


@app.cell(hide_code=True)
def step_2():
    mo.md(r"""
    ## 2. What is never built costs nothing

    A layer keeps $A$ and $B$. If it builds $A\otimes B$ to use it, the saving is gone while the call lasts.
    """)
    return


@app.cell(hide_code=True)
def slide_2():
    side = mo.ui.slider(1, 64, value=48, label="rows and columns of A and of B", show_value=True)
    side
    return (side,)


@app.cell(hide_code=True)
def see_2(side):
    _sides = list(range(1, 65))
    _megabytes = {"A ⊗ B": [_s**4 * 4e-6 for _s in _sides], "A and B": [_s**2 * 8e-6 for _s in _sides]}  # float32
    _title = f"megabytes: at the mark {_megabytes['A ⊗ B'][side.value - 1]:.3g} beside {side.value**2 * 8e-6:.2g}"
    kit.lines(_megabytes, _title, x=_sides, x_label="rows and columns of each", log_y=True, mark=side.value)
    return


@app.cell(hide_code=True)
def ask_1():
    mo.md(r"""
    ### Exercise 1: many vectors at once

    A layer gets $T$ vectors, as the rows of `x`. Each becomes a matrix, multiplied on both sides: `@` takes a stack
    of matrices and one matrix, in either order, and leaves the stack in front.

    The last case is large: there the check sets a ceiling to the memory of your call.
    """)
    return


@app.function
# EXERCISE 1. a is (M, N), b is (P, Q), x is (T, N*Q).
# Return (T, M*P): each row of x multiplied by A ⊗ B, which you never build.
def kron_multiply(a, b, x):
    raise kit.Todo


@app.cell(hide_code=True)
def check_1():
    _ceiling = 2.0  # megabytes; of the CPU's memory: what lies on a GPU is not seen

    def _by_loops(_a, _b, _x):
        _out = np.zeros((len(_x), _a.shape[0] * _b.shape[0]))
        for (_m, _n), _first in np.ndenumerate(_a):
            for (_p, _q), _second in np.ndenumerate(_b):
                _out[:, _m * _b.shape[0] + _p] += _first * _second * _x[:, _n * _b.shape[1] + _q]
        return _out.astype(np.float32)

    def _judge(_answer, _a, _b, _x):
        """Let the large case be computed once more, under the ceiling."""
        if len(_a) < 48:
            return _answer
        tracemalloc.start()
        kron_multiply(_a, _b, _x)
        _peak = tracemalloc.get_traced_memory()[1] / 2**20
        tracemalloc.stop()
        if _peak > _ceiling:
            raise MemoryError(f"your call took {_peak:.0f} MB of {_ceiling:.0f} MB. Was the large matrix built?")
        return _answer

    _draws = np.random.default_rng(0)
    _cases = []
    _small = [(4, (2, 3), (4, 5)), (3, (3, 3), (2, 2)), (1, (1, 4), (3, 1)), (5, (4, 1), (1, 6))]
    for _rows, _first, _second in [*_small, (8, (48, 48), (48, 48))]:
        _a, _b, _x = (
            _draws.normal(size=_s).astype(np.float32) for _s in (_first, _second, (_rows, _first[1] * _second[1]))
        )
        _wanted = _by_loops(_a, _b, _x) if _rows < 8 else _x @ np.kron(_a, _b).T
        _given = tuple(xp.asarray(_array) for _array in (_a, _b, _x))
        _cases.append((f"{_rows} vectors, A {_first}, B {_second}", _given, xp.asarray(_wanted)))

    def _y(a, x, b):
        return (a @ x.reshape(len(x), a.shape[1], -1) @ b).reshape(len(x), -1)

    result_1 = kit.check(
        "kron_multiply",
        kron_multiply,
        _cases,
        mistakes=[
            ("X is read by columns.", lambda a, b, x: _y(a, x.reshape(len(x), len(b.T), -1).swapaxes(1, 2), b.T)),
            ("That is B ⊗ A.", lambda a, b, x: x @ xp.kron(b, a).T),
            (
                "Every Y is turned.",
                lambda a, b, x: (b @ x.reshape(len(x), len(a.T), -1).swapaxes(1, 2) @ a.T).reshape(len(x), -1),
            ),
            ("B is not transposed.", lambda a, b, x: _y(a, x, b)),
        ],
        judge=_judge,
    )
    result_1
    return (result_1,)


@app.cell(hide_code=True)
def help_1(result_1):
    help_for_1 = kit.help(
        result_1,
        hint="`x.reshape(T, N, Q)` is the stack of all X. What must be at the left of each X, and what at its right?",
        solution="""
        def kron_multiply(a, b, x):
            x_TNQ = x.reshape(len(x), a.shape[1], b.shape[1])
            y_TMP = a @ (x_TNQ @ b.T)
            return y_TMP.reshape(len(x), -1)
        """,
    )
    help_for_1
    return


@app.cell(hide_code=True)
def step_3(result_1):
    kit.gate(result_1, "Exercise 1 opens the next step.")
    mo.md(r"""
    ## 3. Two products, two orders

    $A\,(X B^\top)$, with $B$ first, and $(A X)\,B^\top$, with $A$ first, are the same matrix. The work is not the same:
    what lies between the two products is $(N, P)$ where $B$ comes first, $(M, Q)$ where $A$ does.

    KroneckerBERT, a compressed BERT (lesson 16), takes $A$ of shape $(8, 2)$ and $B$ of shape $(384, 384)$ in place of
    a matrix of 3072 by 768.
    """)
    return


@app.cell(hide_code=True)
def predict_3():
    options_3 = {
        "B first": "X has N = 2 rows. After A it would have M = 8, four times as many for the large B to work on.",
        "A first": "A is small, so it looks cheap to begin with. But it turns 2 rows into 8, and B then works on 8.",
        "no difference": "the result is the same. The work is not: A changes how many rows B sees.",
    }
    guess_3 = kit.predict("A is 8 by 2, B is 384 by 384. Which should be applied to X first?", options_3)
    guess_3
    return guess_3, options_3


@app.cell(hide_code=True)
def reveal_3(guess_3, options_3):
    step_3_done = kit.reveal(guess_3, options_3)
    step_3_done
    return (step_3_done,)


@app.cell(hide_code=True)
def slide_3(step_3_done):
    step_3_done
    power = mo.ui.slider(0, 10, value=8, label="rows of A: 2 to the power of", show_value=True)
    power
    return (power,)


@app.cell(hide_code=True)
def see_3(power):
    _rows, _columns, _n = 1024, 256, 8
    _shapes = [((1, 2**_k, _n), (1, _rows // 2**_k, _columns // _n)) for _k in range(11)]
    _costs = [CostModel().costs(_a, _b, rows=1) for _a, _b in _shapes]  # multiplications
    _names = {"A first": "a_first", "B first": "b_first", "large matrix": "dense"}
    _curves = {_text: [_cost[_key] for _cost in _costs] for _text, _key in _names.items()}
    (_, _m, _), (_, _p, _q) = _shapes[power.value]
    kit.row(
        kit.lines(
            _curves,
            f"multiplications; A ⊗ B stays {_rows} by {_columns}: B shrinks as A grows",
            x=[2.0**_k for _k in range(11)],
            x_label=f"rows of A (it has {_n} columns)",
            log_x=True,
            log_y=True,
            mark=2.0**power.value,
        ),
        kit.bars({_text: _curve[power.value] for _text, _curve in _curves.items()}, f"A {_m} by {_n}, B {_p} by {_q}"),
    )
    return


@app.cell(hide_code=True)
def ask_2(step_3_done):
    step_3_done
    mo.md(r"""
    ### Exercise 2: count

    The check counts them one by one, with numbers that note when they are multiplied.
    """)
    return


@app.function
# EXERCISE 2. A is (m, n), B is (p, q). How many multiplications does one vector take?
# Return (A first, B first, with the large matrix). (i, j) @ (j, k) takes i * j * k.
def multiplications(m, n, p, q):
    raise kit.Todo


@app.cell(hide_code=True)
def check_2(step_3_done):
    step_3_done

    class _Noted:
        times = 0

        def __mul__(self, other):
            _Noted.times += 1
            return self

        def __add__(self, other):
            return self

    def _counted(_multiply, *_arrays):
        _Noted.times = 0
        _multiply(*_arrays)
        return _Noted.times

    def _of(_rows, _columns):
        return np.array([[_Noted() for _ in range(_columns)] for _ in range(_rows)], dtype=object)

    _cases = []
    for _m, _n, _p, _q in [(2, 3, 4, 5), (4, 2, 3, 3), (3, 3, 3, 3), (1, 6, 5, 2), (7, 1, 1, 4)]:
        _a, _b, _x = _of(_m, _n), _of(_p, _q), _of(_n, _q)
        _dense = _counted(lambda w, x: w @ x, _of(_m * _p, _n * _q), _x.reshape(-1))
        _first = _counted(lambda a, b, x: (a @ x) @ b.T, _a, _b, _x)
        _second = _counted(lambda a, b, x: a @ (x @ b.T), _a, _b, _x)
        _cases.append((f"A ({_m}, {_n}), B ({_p}, {_q})", (_m, _n, _p, _q), (_first, _second, _dense)))
    result_2 = kit.check(
        "multiplications",
        multiplications,
        _cases,
        mistakes=[
            ("The orders are exchanged.", lambda m, n, p, q: (n * p * (q + m), m * q * (n + p), m * n * p * q)),
            ("Only the first product is counted.", lambda m, n, p, q: (m * n * q, n * p * q, m * n * p * q)),
            ("Only the second product is counted.", lambda m, n, p, q: (m * p * q, m * n * p, m * n * p * q)),
            ("So many numbers the factors hold.", lambda m, n, p, q: (m * n + p * q,) * 2 + (m * n * p * q,)),
        ],
    )
    result_2
    return (result_2,)


@app.cell(hide_code=True)
def help_2(result_2):
    help_for_2 = kit.help(
        result_2,
        hint="Write the shapes down: A first is (m, n) @ (n, q), and then? Two products, so two terms, added.",
        solution="""
        def multiplications(m, n, p, q):
            a_first = m * n * q + m * q * p
            b_first = n * q * p + m * n * p
            return a_first, b_first, (m * p) * (n * q)
        """,
    )
    help_for_2
    return


@app.cell(hide_code=True)
def step_4(result_2):
    kit.gate(result_2, "Exercise 2 opens the last step.")
    mo.md(r"""
    ## 4. Fewer multiplications are not yet less time

    `kron.apply(a, b, x)` does what you wrote, for a sum of $R$ products: `a` is $(R, M, N)$, `b` is $(R, P, Q)$. It
    chooses the way by what it measured on your machine: two thin products may be slower than one thick one.

    The bars are times on the machine in front of you, just now. Where do the factors begin to pay?
    """)
    return


@app.function(hide_code=True)
def milliseconds(a, b, x, plan, repeats):
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        kit.host(kron.apply(a, b, x, order=plan)[0, 0])  # reading a number waits until a GPU is done
        taken.append(time.perf_counter() - start)
    return 1000 * min(taken)


@app.cell(hide_code=True)
def slide_4(result_2):
    kit.gate(result_2)
    sides = mo.ui.slider(2, 32, 2, value=2, label="rows and columns of A and of B", show_value=True)
    sides
    return (sides,)


@app.cell(hide_code=True)
def see_4(sides):
    _draws = np.random.default_rng(4)
    _s = sides.value
    _shapes = (1, _s, _s), (1, _s, _s), (32, _s * _s)
    _arrays = [xp.asarray(_draws.normal(size=_shape).astype(np.float32)) for _shape in _shapes]
    _plans = {"A first": "a_first", "B first": "b_first", "build, then multiply": "dense"}
    _times = {_name: milliseconds(*_arrays, _plan, 1 if kit.fast() else 3) for _name, _plan in _plans.items()}
    kit.bars(_times, f"milliseconds for 32 vectors of {_s * _s} numbers")
    return


@app.cell(hide_code=True)
def finish(result_1, result_2):
    lesson_done = kit.finish(
        result_1,
        result_2,
        text="""
        **Done.** Two small products replace a large one, and the large matrix never exists. Read `apply` in
        `tinykron/kron/product.py`, and `CostModel` in `tinykron/kron/order.py`. Next: `tinykron lesson 13`.
        """,
    )
    lesson_done
    return


if __name__ == "__main__":
    app.run()
