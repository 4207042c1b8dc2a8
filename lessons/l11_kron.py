import marimo

__generated_with = "0.25.2"
app = marimo.App(width="medium", app_title="11 What A ⊗ B is")

with app.setup(hide_code=True):
    import importlib.util

    import marimo as mo
    import numpy as np

    import tinykron as tk
    from tinykron import kit
    from tinykron.kron import Kron

    LESSON = 3  # the version of this lesson
    xp = kit.array_module()


@app.cell(hide_code=True)
def title():
    mo.md(r"""
    # 11 · What A ⊗ B is

    **You build** the Kronecker product, and a *property*: a test that needs no right answers.

    **You see** which two numbers made each entry, laws that turn large matrices into small ones, and a machine that
    hunts for counterexamples.

    **You need** to know what a matrix product is.
    """)
    return


@app.cell(hide_code=True)
def step_1():
    mo.md(r"""
    ## 1. Every number of A, times all of B

    $A\otimes B$ has a block for each entry of $A$: that entry times the whole of $B$. With $A$ of $m\times n$ and $B$
    of $p\times q$ it has $mp$ rows and $nq$ columns, and every entry is one number of $A$ times one number of $B$.

    Drag through the entries of the product, and see where each comes from.
    """)
    return


@app.cell(hide_code=True)
def slide_1():
    entry = mo.ui.slider(0, 35, value=22, label="which entry of A ⊗ B, row by row", show_value=True)
    entry
    return (entry,)


@app.cell(hide_code=True)
def see_1(entry):
    _a = xp.asarray(np.array([[1, -2, 3], [4, 2, -1]], np.float32))
    _b = xp.asarray(np.array([[2, 1], [-1, 3], [0.5, -2]], np.float32))
    _product = Kron(_a, _b).dense()
    _row, _column = divmod(entry.value, 6)
    _in_a, _in_b = (_row // 3, _column // 2), (_row % 3, _column % 2)
    _found, _first, _second = (
        float(_array[_place]) for _array, _place in [(_product, (_row, _column)), (_a, _in_a), (_b, _in_b)]
    )
    mo.vstack(
        [
            kit.row(
                kit.table(_a, "A", lit=_in_a, digits=1),
                kit.table(_b, "B", lit=_in_b, digits=1),
                kit.table(_product, "A ⊗ B", lit=(_row, _column), digits=1),
            ),
            mo.md(
                f"row {_row} = {_in_a[0]} · 3 + {_in_b[0]}, column {_column} = {_in_a[1]} · 2 + {_in_b[1]}: "
                f"**{_found:g}** is A[{_in_a[0]}, {_in_a[1]}] · B[{_in_b[0]}, {_in_b[1]}] = {_first:g} · {_second:g}"
            ),
        ]
    )
    return


@app.cell(hide_code=True)
def step_2():
    mo.md(r"""
    ## 2. Which comes first matters

    $A$ says where the blocks are and how strong; $B$ says what is in them.
    """)
    return


@app.cell(hide_code=True)
def predict_2():
    options_2 = {
        "the same numbers, in other places": """every number of A meets every number of B in both; but in B ⊗ A the
            blocks are copies of A.""",
        "the same matrix": "that would be so for numbers. Exchanged, the blocks are copies of the other matrix.",
        "other numbers altogether": "a · b is b · a: the products are the same ones.",
    }
    guess_2 = kit.predict("Beside A ⊗ B, what is B ⊗ A?", options_2)
    guess_2
    return guess_2, options_2


@app.cell(hide_code=True)
def reveal_2(guess_2, options_2):
    step_2_done = kit.reveal(guess_2, options_2)
    step_2_done
    return (step_2_done,)


@app.cell(hide_code=True)
def slide_2(step_2_done):
    step_2_done
    side = mo.ui.slider(1, 8, value=4, label="rows and columns of A", show_value=True)
    side
    return (side,)


@app.cell(hide_code=True)
def see_2(side):
    _a = xp.asarray(np.random.default_rng(2).normal(size=(8, 8)).astype(np.float32)[: side.value, : side.value])
    _b = xp.asarray(np.outer(np.linspace(0.2, 1, 6), np.linspace(0.1, 1, 6)).astype(np.float32))
    kit.row(
        kit.heat(_a, "A", size=18 * side.value),
        kit.heat(_b, "B", size=108),
        kit.heat(Kron(_a, _b).dense(), "A ⊗ B: copies of B", size=220),
        kit.heat(Kron(_b, _a).dense(), "B ⊗ A: copies of A", size=220),
    )
    return


@app.cell(hide_code=True)
def step_3(step_2_done):
    step_2_done
    mo.md(r"""
    ## 3. In one line, almost

    With $A$ of $m\times n$ and $B$ of $p\times q$, entry $(i\,p+k,\; j\,q+l)$ is $A_{ij}B_{kl}$. All products together
    are an array of four axes; a `reshape` to two axes runs through them in order, the last one fastest. Which order of
    the axes puts every product in its place?

    ### Exercise 1: the Kronecker product
    """)
    return


@app.function
# EXERCISE 1. a (m, n), b (p, q) -> (m * p, n * q). Without xp.kron: a product of arrays with
# axes of size 1, reshaped. a[:, None, :, None] has shape (m, 1, n, 1).
def kronecker(a, b):
    raise kit.Todo


@app.cell(hide_code=True)
def check_1(step_2_done):
    step_2_done

    def _entry_by_entry(_a, _b):
        (_m, _n), (_p, _q) = _a.shape, _b.shape
        _all = np.zeros((_m * _p, _n * _q), np.float32)
        for _i, _j, _k, _l in np.ndindex(_m, _n, _p, _q):
            _all[_i * _p + _k, _j * _q + _l] = _a[_i, _j] * _b[_k, _l]
        return _all

    _draws = np.random.default_rng(11)
    _cases = []
    for _m, _n, _p, _q in [(2, 3, 4, 2), (1, 4, 3, 2), (3, 2, 1, 5), (2, 2, 2, 2), (1, 1, 1, 1)]:
        _a, _b = (_draws.normal(size=_shape).astype(np.float32) for _shape in ((_m, _n), (_p, _q)))
        _cases.append(
            (f"A {_a.shape}, B {_b.shape}", (xp.asarray(_a), xp.asarray(_b)), xp.asarray(_entry_by_entry(_a, _b)))
        )

    def _sizes(_a, _b):
        return _a.shape[0] * _b.shape[0], _a.shape[1] * _b.shape[1]

    result_1 = kit.check(
        "kronecker",
        kronecker,
        _cases,
        mistakes=[
            ("That is B ⊗ A.", lambda _a, _b: Kron(_b, _a).dense()),
            (
                "The axes are in the order m, n, p, q: rows of a block must come right behind the rows of A.",
                lambda _a, _b: (_a[:, :, None, None] * _b[None, None]).reshape(_sizes(_a, _b)),
            ),
            (
                "The numbers are added, not multiplied.",
                lambda _a, _b: (_a[:, None, :, None] + _b[None, :, None, :]).reshape(_sizes(_a, _b)),
            ),
            ("Four axes are left: reshape to two.", lambda _a, _b: _a[:, None, :, None] * _b[None, :, None, :]),
            ("That is the transpose.", lambda _a, _b: Kron(_a, _b).dense().T),
            (
                "That is vec(A) vec(B)ᵀ: the same numbers, one row for each number of A. Lesson 14 needs it.",
                lambda _a, _b: _a.reshape(-1, 1) * _b.reshape(1, -1),
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
        Rows of the product are numbered by i and k, i slower: axis i must come first, k right behind it. Then j and l.
        Where must `b` have axes of size 1 so that it meets `a[:, None, :, None]` in the order (i, k, j, l)?
        """,
        solution="""
        def kronecker(a, b):
            (m, n), (p, q) = a.shape, b.shape
            return (a[:, None, :, None] * b[None, :, None, :]).reshape(m * p, n * q)
        """,
    )
    help_for_1
    return


@app.cell(hide_code=True)
def step_4(result_1):
    kit.gate(result_1, "Exercise 1 opens the next step.")
    mo.md(r"""
    ## 4. Laws that make large things small

    | | law | what it saves |
    |---|---|---|
    | 0 | $(A\otimes B)^\top = A^\top\otimes B^\top$ | transposing the large matrix |
    | 1 | $(A\otimes B)(C\otimes D) = AC\otimes BD$ | multiplying two large matrices |
    | 2 | $(A\otimes B)^{-1} = A^{-1}\otimes B^{-1}$, where $A$ and $B$ have inverses | inverting it |
    | 3 | $(A\otimes B)\,\mathrm{vec}(X) = \mathrm{vec}(A X B^\top)$ | building it at all: lesson 12 |

    On the left the work is done on large matrices, on the right on the small ones; shapes must fit, as they must for
    any product. $\mathrm{vec}$ writes a matrix as a vector, row by row.
    """)
    return


@app.cell(hide_code=True)
def slide_4(result_1):
    kit.gate(result_1, "")
    law = mo.ui.slider(0, 3, value=1, label="which law", show_value=True)
    law
    return (law,)


@app.cell(hide_code=True)
def see_4(law):
    _draws = np.random.default_rng(4)
    _a, _c, _b, _d, _x = (
        xp.asarray(_draws.normal(size=_shape).astype(np.float32)) for _shape in ((3, 3), (3, 3), (4, 4), (4, 4), (3, 4))
    )
    _large = Kron(_a, _b).dense()
    _name, _left, _right = [
        ("transpose", lambda: _large.T, lambda: Kron(_a.T, _b.T).dense()),
        ("product", lambda: _large @ Kron(_c, _d).dense(), lambda: Kron(_a @ _c, _b @ _d).dense()),
        ("inverse", lambda: xp.linalg.inv(_large), lambda: Kron(xp.linalg.inv(_a), xp.linalg.inv(_b)).dense()),
        (
            "product with a vector",
            lambda: (_large @ tk.kron.vec(_x))[:, None],
            lambda: tk.kron.vec(_a @ _x @ _b.T)[:, None],
        ),
    ][law.value]
    _one, _two = _left(), _right()
    _compared = {"largest entry": float(abs(_one).max()), "largest difference": float(abs(_one - _two).max())}
    kit.row(
        kit.heat(_one, f"{_name}, by the large matrix"),
        kit.heat(_two, f"{_name}, by the small ones"),
        kit.bars(_compared, "left minus right: rounding alone", width=380),
    )
    return


@app.cell(hide_code=True)
def step_5(result_1):
    kit.gate(result_1, "Exercise 1 comes first.")
    mo.md(r"""
    ## 5. A law is a test

    In exercise 1, somebody had to know the right answers. A law needs none: for **any** four matrices that fit, its two
    sides must agree. Such a test is a *property*. It can be tried on thousands of random matrices.
    """)
    return


@app.cell(hide_code=True)
def predict_5(result_1):
    kit.gate(result_1, "")
    options_5 = {
        "no": """(B ⊗ A)(D ⊗ C) = BD ⊗ AC is the same law with other letters. One property rarely says everything:
            another must say which comes first.""",
        "yes, always": "read the law again with A and B exchanged, and C and D: it holds.",
        "yes, unless the matrices are square": "square or not, the exchanged product obeys the same law.",
    }
    guess_5 = kit.predict(
        "Somebody's product is B ⊗ A by mistake. Does a test of law 1, (A ⊗ B)(C ⊗ D) = AC ⊗ BD, notice?", options_5
    )
    guess_5
    return guess_5, options_5


@app.cell(hide_code=True)
def reveal_5(guess_5, options_5):
    step_5_done = kit.reveal(guess_5, options_5)
    step_5_done
    return (step_5_done,)


@app.cell(hide_code=True)
def ask_2(step_5_done):
    step_5_done
    mo.md(r"""
    ### Exercise 2: the property

    Your function is handed a `product` that may be right or wrong, and says whether law 1 holds for it on four
    matrices. float32 rounds, so `==` refuses right products, too: entries may differ by up to 0.0001 times the largest
    entry (without its sign) of either side. The check hands it right products and wrong ones.
    """)
    return


@app.function
# EXERCISE 2. product(a, b) returns a matrix. Return True where law 1 holds for it:
# (A ⊗ B)(C ⊗ D) = AC ⊗ BD, up to and with a ten-thousandth of the largest entry.
# Return False where it does not.
def mixed_product(product, a, b, c, d):
    raise kit.Todo


@app.function(hide_code=True)
def suspects():
    """Return products by name: the right one, one that obeys law 1 as well, and wrong ones."""

    def right(a, b):
        return Kron(a, b).dense()

    def unplaced(a, b):
        return (a[:, :, None, None] * b[None, None]).reshape(a.shape[0] * b.shape[0], a.shape[1] * b.shape[1])

    def added(a, b):
        return (a[:, None, :, None] + b[None, :, None, :]).reshape(a.shape[0] * b.shape[0], a.shape[1] * b.shape[1])

    def one_sign(a, b):
        signs = np.ones((a.shape[0] * b.shape[0], a.shape[1] * b.shape[1]), np.float32)
        signs[-1, -1] = -1.0
        return right(a, b) * xp.asarray(signs)

    def cancelling(a, b):
        rows, columns = right(a, b).shape
        down, across = (np.float32([1, -1] + [0] * (size - 2) if size > 1 else [0]) for size in (rows, columns))
        return right(a, b) + xp.asarray(np.outer(down, across))

    return {
        "A ⊗ B": right,
        "B ⊗ A": lambda a, b: right(b, a),
        "blocks that are not in their places": unplaced,
        "sums in place of products": added,
        "a sign lost: |B|": lambda a, b: right(a, abs(b)),
        "the last entry has the wrong sign": one_sign,
        "errors that cancel in every row and column": cancelling,
        "all entries too large by a thousandth": lambda a, b: right(a, b) * 1.001,
    }


@app.cell(hide_code=True)
def check_2(step_5_done):
    step_5_done

    def _matrices(_scale, *_sizes):
        _m, _n, _r, _p, _q, _s = _sizes
        _draws = np.random.default_rng(12)
        return tuple(
            xp.asarray((_scale * _draws.normal(size=_shape)).astype(np.float32))
            for _shape in ((_m, _n), (_p, _q), (_n, _r), (_q, _s))
        )

    _usual, _square, _row = (2, 3, 4, 3, 2, 5), (3, 3, 3, 3, 3, 3), (1, 3, 2, 2, 4, 1)
    _all = suspects()
    _cases = [
        ("A ⊗ B itself", "A ⊗ B", 1.0, _usual, True),
        ("A ⊗ B of large numbers, which round more", "A ⊗ B", 50.0, _square, True),
        ("A ⊗ B of a row and a matrix", "A ⊗ B", 1.0, _row, True),
        ("A ⊗ B of zeros: the sides differ by 0, and 0 is allowed", "A ⊗ B", 0.0, _usual, True),
        ("B ⊗ A, which obeys the law too", "B ⊗ A", 1.0, _usual, True),
        ("blocks that are not in their places", "blocks that are not in their places", 1.0, _usual, False),
        ("the same, square", "blocks that are not in their places", 1.0, _square, False),
        ("sums in place of products", "sums in place of products", 1.0, _usual, False),
        ("the last entry alone is wrong", "the last entry has the wrong sign", 1.0, _square, False),
        ("wrong entries that cancel in the sums", "errors that cancel in every row and column", 1.0, _usual, False),
        ("all entries too large by a thousandth", "all entries too large by a thousandth", 1.0, _usual, False),
        ("a wrong product of small numbers, whose difference is small too", "a sign lost: |B|", 0.02, _usual, False),
    ]

    def _judge(_answer, *_given):
        return bool(_answer)

    result_2 = kit.check(
        "mixed_product",
        mixed_product,
        [
            (_label, (_all[_name], *_matrices(_scale, *_sizes)), _wanted)
            for _label, _name, _scale, _sizes, _wanted in _cases
        ],
        judge=_judge,
    )
    result_2
    return (result_2,)


@app.cell(hide_code=True)
def help_2(result_2):
    help_for_2 = kit.help(
        result_2,
        hint="""
        Two sides, each with `product` in it: on the left it is called twice, on the right once, with the small
        products. `abs(x).max()` is the largest entry of a matrix; how much of it may the difference be?
        """,
        solution="""
        def mixed_product(product, a, b, c, d):
            left = product(a, b) @ product(c, d)
            right = product(a @ c, b @ d)
            return bool(abs(left - right).max() <= 1e-4 * abs(right).max())
        """,
    )
    help_for_2
    return


@app.cell(hide_code=True)
def tell_5(result_2):
    kit.gate(result_2, "Exercise 2 opens the hunt.")
    mo.md(r"""
    Now your property goes hunting. The library [hypothesis](https://hypothesis.readthedocs.io) draws matrices, and when
    the property fails, makes them smaller as long as it still does: what is left is the smallest counterexample it
    finds. In a test file, the hunt is three lines:

    ```python
    @given(matrices=four_that_fit())
    def test_mixed_product(matrices):
        assert mixed_product(kronecker, *matrices)
    ```

    tinykron's own laws are held so, in `tests/kron/test_identities.py`. (Without hypothesis, this page draws matrices
    from small to large itself.)
    """)
    return


@app.function(hide_code=True)
def four_that_fit(sizes, seed):
    """Return a (m, n), b (p, q), c (n, r), d (q, s) of small whole numbers."""
    m, n, r, p, q, s = sizes
    draws = np.random.default_rng(seed)
    shapes = (m, n), (p, q), (n, r), (q, s)
    return [xp.asarray(draws.integers(-3, 4, size=shape).astype(np.float32)) for shape in shapes]


@app.function(hide_code=True)
def hunt(fails, tries, library=True):
    """Return the smallest (sizes, seed) found whose matrices fail; None if there is none. And who looked."""
    if not library or importlib.util.find_spec("hypothesis") is None:
        every = [tuple(np.random.default_rng(i).integers(1, 4, 6).tolist()) for i in range(tries)]
        found = ((sizes, seed) for seed, sizes in enumerate(sorted(every, key=sum)) if fails((sizes, seed)))
        return next(found, None), "this page"
    from hypothesis import HealthCheck, errors, find, settings
    from hypothesis import strategies as st

    quiet = settings(
        max_examples=tries, database=None, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )
    try:
        found = find(st.tuples(st.tuples(*[st.integers(1, 3)] * 6), st.integers(0, 19)), fails, settings=quiet)
    except errors.NoSuchExample:
        found = None
    return found, "hypothesis"


@app.cell(hide_code=True)
def slide_5(result_2):
    kit.gate(result_2, "")
    suspect = mo.ui.slider(0, 7, value=4, label="which product was hunted", show_value=True)
    suspect
    return (suspect,)


@app.cell(hide_code=True)
def hunt_5(result_2):
    tries = 8 if kit.fast() else 60

    def _hunted(_product):
        return hunt(lambda _drawn: not mixed_product(_product, *four_that_fit(*_drawn)), tries, library=not kit.fast())

    hunted = {_name: _hunted(_product) if result_2 else (None, "nobody") for _name, _product in suspects().items()}
    return hunted, tries


@app.cell(hide_code=True)
def see_5(hunted, suspect, tries):
    _name, (_found, _who) = list(hunted.items())[suspect.value]
    _product = suspects()[_name]
    _says = "a counterexample" if _found else f"none in {tries} tries; on these matrices, say, the law holds"
    _a, _b, _c, _d = four_that_fit(*(_found or ((2, 1, 2, 1, 2, 2), 3)))
    _sides = {
        "(A ⊗ B)(C ⊗ D)": _product(_a, _b) @ _product(_c, _d),
        "AC ⊗ BD": _product(_a @ _c, _b @ _d),
    }
    mo.vstack(
        [
            mo.md(f"**{_name}**, hunted by {_who}: {_says}"),
            kit.row(
                *(kit.table(_m, _letter, digits=0) for _letter, _m in zip("ABCD", (_a, _b, _c, _d), strict=True)),
                *(kit.table(_m, f"{_side} by this product", digits=3) for _side, _m in _sides.items()),
            ),
        ]
    )
    return


@app.cell(hide_code=True)
def finish(result_1, result_2):
    lesson_done = kit.finish(
        result_1,
        result_2,
        text="""
        **Done.** Each entry of A ⊗ B is one number of A times one of B; laws let the small matrices do the work of the
        large one, and test it. Law 3 is worth a lesson of its own: `tinykron lesson 12`.
        """,
    )
    lesson_done
    return


if __name__ == "__main__":
    app.run()
