import marimo

__generated_with = "0.25.2"
app = marimo.App(width="medium", app_title="0 The two-minute start")

with app.setup(hide_code=True):
    import marimo as mo
    import numpy as np

    from tinykron import kit

    LESSON = 1  # the version of this lesson
    xp = kit.array_module()


@app.cell(hide_code=True)
def title():
    mo.md(r"""
    # 0 · The two-minute start

    **You build** a function of one line. **You see** how a lesson works, and where all of this leads.

    This page is a file of your own; what you write in it stays. The lessons go from a number that remembers where it
    came from, through a transformer, to models that are cut into small factors and still speak.
    """)
    return


@app.cell(hide_code=True)
def step_1():
    mo.md(r"""
    ## 1. Move a slider

    A transformer is mostly large matrices. This course makes them small: it looks for two little matrices $A$ and $B$
    whose *Kronecker product* $A\otimes B$ is close to the large one. Each number of $A$ is multiplied by all of $B$.

    Move the slider, and watch the product grow much faster than the pair.
    """)
    return


@app.cell(hide_code=True)
def slide_1():
    side = mo.ui.slider(1, 12, value=4, label="rows and columns of A", show_value=True)
    side
    return (side,)


@app.cell(hide_code=True)
def see_1(side):
    _draws = np.random.default_rng(1)
    _a = xp.asarray(_draws.normal(size=(12, 12))[: side.value, : side.value])
    _b = xp.asarray(_draws.normal(size=(6, 6)))
    _count = {"A and B hold": _a.size + _b.size, "A ⊗ B holds": _a.size * _b.size}
    kit.row(
        kit.heat(_a, "A", size=20 * side.value),
        kit.heat(_b, "B", size=120),
        kit.heat(xp.kron(_a, _b), "A ⊗ B", size=240),
        kit.bars(_count, "numbers to store"),
    )
    return


@app.cell(hide_code=True)
def step_2():
    mo.md(r"""
    ## 2. Guess first

    A guess costs nothing and makes what follows stick. If you would rather not, say so: nothing here is locked.
    """)
    return


@app.cell(hide_code=True)
def predict_2():
    options_2 = {
        "2 in 64": "each holds 64 numbers, the pair 128; the product holds 64 times 64, which is 4096.",
        "1 in 64": "that counts one of the factors only.",
        "1 in 2": "that would be so if the product held as many numbers as the two together, twice over.",
    }
    guess_2 = kit.predict(
        "A and B are both 8 by 8. Which share of the product's numbers does the pair hold?", options_2
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
    ## 3. Write a function

    Click into the next cell, replace its last line, and press **Ctrl+Enter**. The verdict below it comes at once. Try a
    wrong answer too: `return 1.0`, or a line that does not run.
    """)
    return


@app.function
# EXERCISE 1. A has m rows and n columns, B has p rows and q columns. Return the share: how
# many numbers A and B hold together, divided by how many A ⊗ B holds.
def share(m, n, p, q):
    raise kit.Todo


@app.cell(hide_code=True)
def check_1(step_2_done):
    step_2_done
    _cases = []
    for _sizes in [(8, 8, 8, 8), (2, 3, 4, 5), (1, 7, 6, 1), (1, 1, 1, 1)]:
        _a, _b = np.ones(_sizes[:2]), np.ones(_sizes[2:])
        _cases.append((f"m, n, p, q = {_sizes}", _sizes, (_a.sum() + _b.sum()) / np.kron(_a, _b).sum()))
    result_1 = kit.check(
        "share",
        share,
        _cases,
        mistakes=[
            (
                "That is the other way round: the product divided by the pair.",
                lambda m, n, p, q: m * n * p * q / (m * n + p * q),
            ),
            ("The product has as many rows as m *times* p.", lambda m, n, p, q: (m * n + p * q) / ((m + p) * (n + q))),
            ("A matrix holds rows times columns.", lambda m, n, p, q: (m + n + p + q) / (m * n * p * q)),
        ],
    )
    result_1
    return (result_1,)


@app.cell(hide_code=True)
def help_1(result_1):
    help_for_1 = kit.help(
        result_1,
        hint="Each of the numbers of A is multiplied by each of the numbers of B. How many products is that?",
        solution="""
        def share(m, n, p, q):
            return (m * n + p * q) / (m * n * p * q)
        """,
    )
    help_for_1
    return


@app.cell(hide_code=True)
def finish(result_1):
    lesson_done = kit.finish(
        result_1,
        text="""
        **Done.** That is all there is to a lesson: sliders, guesses, and functions of your own that are checked.

        In a terminal, `tinykron lesson next` opens the next one, `tinykron lesson list` says how far you are, and
        `tinykron lesson check` checks your files without a browser. `tinykron lesson reset 0` begins this one again.
        """,
    )
    lesson_done
    return


if __name__ == "__main__":
    app.run()
