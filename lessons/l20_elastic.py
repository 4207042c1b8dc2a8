import marimo

__generated_with = "0.25.2"
app = marimo.App(
    width="medium",
    app_title="20 One elastic model: rank x depth x budget",
)

with app.setup(hide_code=True):
    from html import escape

    import marimo as mo
    import numpy as np

    import tinykron as tk
    from tinykron import kit
    from tinykron.exits import analysis
    from tinykron.kron import nested

    LESSON = 3
    EXITS = (2, 4, 6, 8)
    TERMS = (1, 2, 4, 8)
    POINTS = [(exit, terms) for exit in EXITS for terms in TERMS]


@app.cell(hide_code=True)
def title():
    mo.md(r"""
    # 20 · One elastic model: rank x depth x budget

    **You build** the two functions that turn one checkpoint into a model for every budget.

    **You see** sixteen models in one set of weights, and which of them are worth having.

    **You need** lessons 14 (sums of Kronecker products) and 17 (every depth a model).
    """)
    return


@app.cell(hide_code=True)
def step_1():
    mo.md(r"""
    ## 1. Two knobs

    A matrix as a sum of Kronecker products, $W \approx \sum_r A_r\otimes B_r$, has its terms in order: the first is the
    best single one, the first two the best pair, and so on. So a sum can be cut anywhere, as a stack of blocks can be
    left anywhere. That is one knob for the **rank**, one for the **depth**; every pair of places is a model, and all of
    them share their numbers.

    Below stand a matrix of the shipped GPT-2 and the first terms of its nearest sum of 8. Cutting a sum is a slice,
    and `tk.kron.first_terms(model, 2)` is that slice in every matrix. Gradients pass through it, so that one training
    serves all cuts.
    """)
    return


@app.cell(hide_code=True)
def slide_kept():
    kept = mo.ui.slider(1, 8, value=2, label="terms kept", show_value=True)
    kept
    return (kept,)


@app.cell(hide_code=True)
def fit_kept():
    matrix = tk.load(tk.data.weights_folder("gpt2-tiny")).blocks[0].attention.output.weight.data
    eight = tk.kron.nearest(matrix, (matrix.shape[0] // 4, matrix.shape[1] // 4), terms=8)
    return eight, matrix


@app.cell(hide_code=True)
def see_kept(eight, kept, matrix):
    _cut = tk.kron.KronSum(eight.a[: kept.value], eight.b[: kept.value])
    _dense, _top = _cut.dense(), float(abs(matrix).max())
    kit.row(
        kit.heat(matrix, "the matrix", top=_top),
        kit.heat(_dense, f"its first {kept.value} of 8 terms", top=_top),
        kit.bars(
            {
                "error, of its norm": 100 * float(((matrix - _dense) ** 2).sum() / (matrix**2).sum()) ** 0.5,
                "numbers, of its count": 100 * _cut.parameters / matrix.size,
            },
            "percent of the matrix",
            width=270,
        ),
    )
    return


@app.cell(hide_code=True)
def predict_1():
    options_1 = {
        "about as many": """2 x 8 = 8 x 2: sixteen terms in either. The deep one has a few more biases and norms.
            Which of the two is the better model is another question: look at the table below.""",
        "8 blocks of 2 terms: four times as many": """it has four times the blocks, but each holds a quarter of the
            terms.""",
        "2 blocks of 8 terms: four times as many": """it has four times the terms in a block, but a quarter of the
            blocks.""",
    }
    guess_1 = kit.predict("2 blocks of 8 terms, or 8 blocks of 2 terms: which needs more numbers?", options_1)
    guess_1
    return guess_1, options_1


@app.cell(hide_code=True)
def reveal_1(guess_1, options_1):
    step_1_done = kit.reveal(guess_1, options_1)
    step_1_done
    return (step_1_done,)


@app.cell(hide_code=True)
def tell_1(step_1_done):
    step_1_done
    mo.md(r"""
    Every matrix in the blocks of a shipped GPT-2 becomes the nearest sum of 8 terms. Then all the points are trained
    for some seconds: in each step a number of terms is drawn, as SortedNet does, and all the exits are read.

    The table holds the loss of each point on held-out text: a row for each exit (2, 4, 6, 8 blocks), a column for each
    number of terms (1, 2, 4, 8). Go back in time to see what the cut alone gives, and walk over the grid. With few
    terms more blocks can be worse: each adds its error.
    """)
    return


@app.function(hide_code=True)
def trained_grid():
    """Return an elastic GPT-2, its points' losses before, midway and after, and the dense model's loss and size."""
    dense = tk.load(tk.data.weights_folder("gpt2-tiny"))
    training, held_out = tk.data.split(tk.data.language_reference())
    training = tk.data.encode(dense.tokenizer, training[:1] if kit.fast() else training)
    held_out = tk.data.encode(dense.tokenizer, held_out)[: 9 if kit.fast() else 513]
    shapes = {name: shape for name, shape in tk.kron.dense_shapes(dense).items() if name.startswith("blocks.")}
    plan = {
        name: tk.kron.Choice((rows, columns), (rows // 4, columns // 4), 8) for name, (rows, columns) in shapes.items()
    }
    model = tk.kron.factorise(dense, plan)

    def measured():
        columns = [analysis.losses(tk.kron.first_terms(model, terms), held_out, 32, EXITS) for terms in TERMS]
        return np.array([[column[exit] for column in columns] for exit in EXITS])

    grids = [measured()]
    steps, batch, context = (2, 1, 8) if kit.fast() else (40, 8, 32)
    optimiser = tk.optim.AdamW(model.parameters(), 1e-3)
    for step in range(steps):
        draws = np.random.default_rng(step)
        drawn, terms = tk.data.sample_batch(training, batch, context, draws), int(draws.choice(TERMS))
        model.zero_grad()
        loss, _ = tk.exits.exit_loss(tk.kron.first_terms(model, terms), drawn, tk.exits.equal_weights(EXITS))
        loss.backward()
        optimiser.step()
        if step + 1 in (steps // 2, steps):
            grids.append(measured())
    return model, grids, analysis.losses(dense, held_out, 32, [8])[8], dense.parameter_count()


@app.cell(hide_code=True)
def train_1(step_1_done):
    step_1_done
    model, grids, dense_loss, dense_size = kit.once(trained_grid)
    costs = [100 * nested.size(nested.part(model, *_point)) / dense_size for _point in POINTS]
    losses = grids[-1].reshape(-1).tolist()
    return costs, dense_loss, grids, losses, model


@app.cell(hide_code=True)
def slide_exit(step_1_done):
    step_1_done
    row = mo.ui.slider(steps=list(EXITS), value=2, label="blocks", show_value=True)
    row
    return (row,)


@app.cell(hide_code=True)
def slide_terms(step_1_done):
    step_1_done
    column = mo.ui.slider(steps=list(TERMS), value=8, label="terms", show_value=True)
    column
    return (column,)


@app.cell(hide_code=True)
def slide_time(step_1_done):
    step_1_done
    moment = mo.ui.slider(steps=[0, 50, 100], value=100, label="percent of the training", show_value=True)
    moment
    return (moment,)


@app.cell(hide_code=True)
def see_1(column, costs, dense_loss, grids, moment, row):
    _exit, _terms = row.value, column.value
    _place, _grid = (EXITS.index(_exit), TERMS.index(_terms)), grids[moment.value // 50]
    kit.row(
        kit.table(_grid, "held-out loss: exits by terms", lit=_place),
        kit.bars(
            {"this point": _grid[_place], "dense, 8 blocks": dense_loss},
            f"{_exit} blocks, {_terms} terms: loss, nats",
            width=270,
        ),
        kit.bars(
            {"this point": costs[POINTS.index((_exit, _terms))], "dense, 8 blocks": 100.0},
            "numbers stored, embeddings and all, percent",
            width=270,
        ),
    )
    return


@app.cell(hide_code=True)
def step_2(step_1_done):
    step_1_done
    mo.md(r"""
    ## 2. Which points are worth having

    A point is **dominated** if another one costs no more *and* loses no more, and is better in one of the two. Nobody
    would choose it. What remains is the **Pareto front** (Pareto 1906): on it, less loss has a price. In the picture
    each curve is one exit, its terms growing from left to right; the front, wide and pale, runs along the lowest
    points. (Not drawn: the exits of the dense model. Trained as in lesson 17, they lose a little less than these points
    where both have the size; after so short a training, terms pay below the smallest of them.)
    """)
    return


@app.function(hide_code=True)
def undominated(costs, losses):
    points = list(zip(costs, losses, strict=True))
    return [not any(a <= c and b <= d and (a, b) != (c, d) for a, b in points) for c, d in points]


@app.function(hide_code=True)
def front_picture(costs, losses, dot=None):
    """Draw each exit's curve and the front, and a diamond on one point."""
    order = np.argsort(costs, kind="stable")
    x, y = np.array(costs)[order], np.array(losses)[order]
    row = np.array([EXITS.index(exit) for exit, _ in POINTS])[order]
    on_front = np.array(undominated(costs, losses))[order]
    series = {f"exit {exit}": np.where(row == i, y, np.nan) for i, exit in enumerate(EXITS)}
    series["front"] = np.where(on_front, y, np.nan)
    if dot is not None:
        wide, high = 0.015 * (x[-1] - x[0]), 0.035 * (max(losses) - min(losses))
        corner_x = costs[dot] + wide * np.array([-1, 0, 1, 0, -1])
        corner_y = losses[dot] + high * np.array([0, 1, 0, -1, 0])
        x = np.concatenate([x[:-1], corner_x, x[-1:]])
        gap = np.full(5, np.nan)
        series = {name: np.concatenate([values[:-1], gap, values[-1:]]) for name, values in series.items()}
        series["chosen"] = np.concatenate([np.full(len(costs) - 1, np.nan), corner_y, [np.nan]])
    return kit.lines(
        series,
        "loss against numbers stored, percent of the dense model",
        x=x,
        x_label="percent",
        y_label="nats a token",
        band="front",
        size=(420, 250),
    )


@app.cell(hide_code=True)
def see_2(costs, losses):
    front_picture(costs, losses)
    return


@app.cell(hide_code=True)
def ask_2(step_1_done):
    step_1_done
    mo.md(r"""
    ### Exercise 1: the front
    """)
    return


@app.function
# EXERCISE 1. `costs` and `losses` are lists of one length: a cost and a loss for each
# point. Return a list of True and False: True where no other point costs at most as much,
# loses at most as much, and is better in one of the two. Two points that are equal in both
# do not dominate each other.
def on_front(costs, losses):
    raise kit.Todo


@app.cell(hide_code=True)
def check_1(step_1_done):
    step_1_done

    def _swept(_costs, _losses):
        """Go through the costs in order; a point stays if it beats all cheaper ones and is the best of its cost."""
        _found = [False] * len(_costs)
        _best = float("inf")
        for _cost in sorted(set(_costs)):
            _here = [_i for _i in range(len(_costs)) if _costs[_i] == _cost]
            _least = min(_losses[_i] for _i in _here)
            if _least < _best:
                for _i in _here:
                    _found[_i] = _losses[_i] == _least
                _best = _least
        return _found

    _draws = np.random.default_rng(6)
    _cases = [
        ("three points, one dominated", ([1.0, 2.0, 3.0], [3.0, 3.5, 1.0]), None),
        ("not in order of cost", ([5.0, 1.0, 3.0, 2.0], [1.0, 4.0, 3.0, 2.0]), None),
        ("one cost, two losses", ([2.0, 2.0, 1.0], [3.0, 2.0, 5.0]), None),
        ("one loss, two costs", ([2.0, 1.0, 3.0], [2.0, 2.0, 1.0]), None),
        ("two equal points", ([1.0, 1.0, 2.0], [3.0, 3.0, 3.0]), None),
        ("a single point", ([4.0], [2.0]), None),
        ("twenty points", tuple(_draws.integers(0, 9, (2, 20)).astype(float).tolist()), None),
    ]
    _cases = [(_label, _given, _swept(*_given)) for _label, _given, _ in _cases]

    def _against(_dominates):
        def _front(_costs, _losses):
            _all = list(zip(_costs, _losses, strict=True))
            return [
                not any(_dominates(*_other, *_mine) for _j, _other in enumerate(_all) if _j != _i)
                for _i, _mine in enumerate(_all)
            ]

        return _front

    def _as_given(_costs, _losses):
        return [all(_losses[_j] > _losses[_i] for _j in range(_i)) for _i in range(len(_costs))]

    def _judge(_answer, _costs, _losses):
        if not isinstance(_answer, (list, tuple, np.ndarray)):
            raise TypeError("expected a list of True and False, one for each point")
        return [int(_one) for _one in _answer]

    result_1 = kit.check(
        "on_front",
        on_front,
        _cases,
        tolerance=1e-6,
        mistakes=[
            (
                "A point of the same cost that loses less dominates, too: better in one of the two will do, not both.",
                _against(lambda _a, _b, _c, _d: _a < _c and _b < _d),
            ),
            (
                "Equal points do not dominate each other: something must be better.",
                _against(lambda _a, _b, _c, _d: _a <= _c and _b <= _d),
            ),
            (
                "Being better in one of the two is not enough: it must not be worse in the other.",
                _against(lambda _a, _b, _c, _d: _a < _c or _b < _d),
            ),
            ("The points do not come in order of cost.", _as_given),
            ("True and False are exchanged.", lambda _c, _l: [not _one for _one in _swept(_c, _l)]),
            (
                "That is the point of the least loss alone: cheaper points may be worth having.",
                lambda _c, _l: [_one == min(_l) for _one in _l],
            ),
        ],
        judge=_judge,
    )
    result_1
    return (result_1,)


@app.cell(hide_code=True)
def help_1(result_1):
    help_for_1 = kit.help(
        result_1,
        hint="""
        Two loops: for each point, look at all points. Write the sentence of the exercise as one condition with three
        parts. Does a point dominate itself by that condition?
        """,
        solution="""
        def on_front(costs, losses):
            points = list(zip(costs, losses))
            found = []
            for cost, loss in points:
                dominated = any(c <= cost and l <= loss and (c < cost or l < loss) for c, l in points)
                found.append(not dominated)
            return found
        """,
    )
    help_for_1
    return


@app.cell(hide_code=True)
def step_3(step_1_done):
    step_1_done
    mo.md(r"""
    ## 3. A budget picks the point

    A device has room for so many numbers, not more. The budget decides which of the sixteen models runs on it: no new
    training, no second checkpoint.
    """)
    return


@app.cell(hide_code=True)
def predict_3(step_1_done):
    step_1_done
    options_3 = {
        "not always: a larger point may lose more": """cost is spent on depth or on rank, and not every way of
            spending it helps. Only along the front does more buy less loss.""",
        "yes: more numbers, less loss": """true along the front. But a dominated point is larger than some point
            that loses less.""",
    }
    guess_3 = kit.predict("Is the largest point that fits the budget the best one?", options_3)
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
    budget = mo.ui.slider(20, 70, value=32, label="budget, percent of the dense model", show_value=True)
    budget
    return (budget,)


@app.cell(hide_code=True)
def see_3(budget, costs, losses):
    _fitting = [_i for _i in range(len(POINTS)) if costs[_i] <= budget.value]
    chosen = min(_fitting, key=lambda _i: (losses[_i], costs[_i]))
    _largest = max(_fitting, key=lambda _i: costs[_i])
    kit.row(
        front_picture(costs, losses, chosen),
        kit.bars(
            {
                f"best: {POINTS[chosen][0]} blocks, {POINTS[chosen][1]} terms": losses[chosen],
                f"largest: {POINTS[_largest][0]} blocks, {POINTS[_largest][1]} terms": losses[_largest],
            },
            f"loss within {budget.value} percent",
        ),
    )
    return (chosen,)


@app.cell(hide_code=True)
def write_3(chosen, model):
    _exit, _terms = POINTS[chosen]
    _start = model.tokenizer.encode("The import statement").ids
    _new = tk.generate(tk.kron.first_terms(model, _terms), _start, 4 if kit.fast() else 24, exit=_exit, stop=())[0]
    _text = f'<pre style="white-space:pre-wrap;font-size:.9em">{escape(model.tokenizer.decode(_new.tolist()))}</pre>'
    mo.md(f"What {_exit} blocks of {_terms} terms write: {_text}")
    return


@app.cell(hide_code=True)
def ask_3(step_3_done):
    step_3_done
    mo.md(r"""
    ### Exercise 2: choose
    """)
    return


@app.function
# EXERCISE 2. Return the place in the lists of the point that loses least among those whose
# cost is at most `budget`; of equal losses the cheaper one; None where nothing fits.
def choose(costs, losses, budget):
    raise kit.Todo


@app.cell(hide_code=True)
def check_2(step_3_done):
    step_3_done
    _costs, _losses = [4.0, 1.0, 3.0, 2.0, 6.0], [2.0, 5.0, 4.0, 3.0, 1.0]

    def _by_elimination(_costs, _losses, _budget):
        """Let every two points fight, in every order; the one that loses no fight is left."""
        _left = {_i for _i in range(len(_costs)) if not _costs[_i] > _budget}
        for _i in range(len(_costs)):
            for _j in range(len(_costs)):
                if _j in _left and _i in _left and (_losses[_i], _costs[_i]) < (_losses[_j], _costs[_j]):
                    _left.discard(_j)
        return _left.pop() if _left else -1

    _given = [
        ("the largest that fits is not the best", (_costs, _losses, 3.5)),
        ("the budget is a point's cost", (_costs, _losses, 4.0)),
        ("everything fits", (_costs, _losses, 10.0)),
        ("one point fits", (_costs, _losses, 1.0)),
        ("equal losses", ([3.0, 2.0, 4.0, 9.0], [1.5, 1.5, 2.0, 1.0], 5.0)),
        ("nothing fits", (_costs, _losses, 0.5)),
    ]

    def _choose_by(_key, _fits=lambda _cost, _budget: _cost <= _budget):
        def _chosen(_costs, _losses, _budget):
            _left = [_i for _i in range(len(_costs)) if _fits(_costs[_i], _budget)]
            return min(_left, key=lambda _i: _key(_costs[_i], _losses[_i])) if _left else -1

        return _chosen

    def _place(_function):
        """None means that nothing fits: -1 in the comparison."""

        def _found(*_arguments):
            _answer = _function(*_arguments)
            if _answer is None and _arguments[2] < min(_arguments[0]):
                return -1
            return _answer

        return _found

    result_2 = kit.check(
        "choose",
        _place(choose),
        [(_label, _arguments, _by_elimination(*_arguments)) for _label, _arguments in _given],
        tolerance=1e-6,
        mistakes=[
            ("That is the largest point that fits. Another one that fits loses less.", _choose_by(lambda _c, _l: -_c)),
            ("That point does not fit the budget.", _choose_by(lambda _c, _l: _l, lambda _c, _b: True)),
            ("A cost equal to the budget fits: at most.", _choose_by(lambda _c, _l: (_l, _c), lambda _c, _b: _c < _b)),
            ("Of equal losses, the cheaper one.", _choose_by(lambda _c, _l: _l)),
            ("That is the cheapest point.", _choose_by(lambda _c, _l: _c)),
        ],
    )
    result_2
    return (result_2,)


@app.cell(hide_code=True)
def help_2(result_2):
    help_for_2 = kit.help(
        result_2,
        hint="""
        First the places that fit, as a list. Then `min(places, key=...)`: pairs are compared by their first number, and
        by their second where the first ones are equal.
        """,
        solution="""
        def choose(costs, losses, budget):
            fitting = [i for i in range(len(costs)) if costs[i] <= budget]
            return min(fitting, key=lambda i: (losses[i], costs[i])) if fitting else None
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
        **Done, with this lesson and with the path.** From a scalar that remembers to a transformer that fits its
        budget: you have built the engine, the model, the factors and the exits, and read the code that runs them. All
        of it works on your own checkpoints: `tinykron info`, `tinykron compress`, `tinykron sort`.
        """,
    )
    lesson_done
    return


if __name__ == "__main__":
    app.run()
