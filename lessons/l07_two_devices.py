import marimo

__generated_with = "0.25.2"
app = marimo.App(width="medium", app_title="7 One code, two devices")

with app.setup(hide_code=True):
    import marimo as mo
    import numpy as np

    import tinykron as tk
    from tinykron import kit

    LESSON = 2


@app.cell(hide_code=True)
def title():
    mo.md(r"""
    # 7 · One code, two devices

    **You build** array code that runs on CPU and GPU alike, and that waits only when it must.

    **You see**, on your laptop, what would break on a GPU.

    **You need** NumPy, and lesson 6.
    """)
    return


@app.cell(hide_code=True)
def step_1():
    mo.md(r"""
    ## 1. An array lives somewhere

    CuPy is NumPy on a GPU: the same names, but the numbers lie in the GPU's own memory. tinykron is written once. It
    asks each array for its module, `xp = tk.backend.xp_of(array)`, and calls `xp.exp`, `xp.zeros`, ...

    You need no GPU for this lesson: `kit.pretend_device()` makes a device whose arrays refuse what arrays on a GPU
    refuse. (It is stricter than CuPy, which hands a few of NumPy's functions on to the GPU by itself.) Run the three
    functions on either device.
    """)
    return


@app.function
def shares_by_numpy(x):
    powers = np.exp(x)
    return powers / powers.sum()


@app.function
def shares_with_a_constant(x):
    xp = tk.backend.xp_of(x)
    powers = xp.exp(x)
    return powers / (powers * np.ones(3, np.float32)).sum()


@app.function
def shares(x):
    xp = tk.backend.xp_of(x)
    powers = xp.exp(x)
    return powers / powers.sum()


@app.cell(hide_code=True)
def choose_1():
    where = mo.ui.radio(["cpu", "pretend"], value="pretend", label="x lies on", inline=True)
    where
    return (where,)


@app.cell(hide_code=True)
def slide_1():
    first = mo.ui.slider(-3.0, 3.0, 0.5, value=0.5, label="first number of x", show_value=True)
    first
    return (first,)


@app.cell(hide_code=True)
def see_1(first, where):
    kit.pretend_device()
    _x = tk.backend.to_device(np.array([first.value, -1.0, 2.0], np.float32), where.value)
    _rows = []
    for _function in (shares_by_numpy, shares_with_a_constant, shares):
        try:
            _found = f"runs: {np.round(tk.backend.to_host(_function(_x)), 3)}"
        except TypeError as _error:
            _found = f"**TypeError**: {_error}"
        _rows.append(f"| `{_function.__name__}` | {_found} |")
    mo.vstack(
        [
            kit.row(kit.table(_x, "x"), kit.table(shares(_x), "shares(x)", digits=3)),
            mo.md("| | |\n|:---|:---|\n" + "\n".join(_rows)),
        ]
    )
    return


@app.cell(hide_code=True)
def predict_1():
    options_1 = {
        "a NumPy array that is made on the way": """zeros, masks, ids, random draws: `np.zeros(n)` is an array of the
            host, and an operation with an array of the device is refused.""",
        "the Python number 2.0": "a number has no place; it goes along with the call. `x * 2.0` is fine everywhere.",
        "the method x.sum()": "a method belongs to its array, and runs where that is.",
    }
    guess_1 = kit.predict("`x` lies on the GPU. What breaks an expression with `x` in it?", options_1)
    guess_1
    return guess_1, options_1


@app.cell(hide_code=True)
def reveal_1(guess_1, options_1):
    step_1_done = kit.reveal(guess_1, options_1)
    step_1_done
    return (step_1_done,)


@app.cell(hide_code=True)
def ask_1(step_1_done):
    step_1_done
    mo.md(r"""
    ### Exercise 1: one-hot, anywhere

    Row $i$ is 0 everywhere and 1 at `ids[i]`. The check runs it on the CPU and on the pretend device.
    """)
    return


@app.function
# EXERCISE 1. ids (n,) whole numbers, on any device. Return (n, classes) in float32, on the
# device of ids.
def one_hot(ids, classes):
    raise kit.Todo


@app.cell(hide_code=True)
def check_1(step_1_done):
    step_1_done
    kit.pretend_device()
    _cases = []
    for _device in ("cpu", "pretend"):
        for _ids, _classes in [([2, 0, 1, 2], 3), ([0], 1), ([1, 1], 4)]:
            _wanted = np.zeros((len(_ids), _classes), np.float32)
            for _row, _id in enumerate(_ids):
                _wanted[_row, _id] = 1
            _given = (tk.backend.to_device(np.array(_ids), _device), _classes)
            _cases.append((f"{_ids} of {_classes}, on {_device}", _given, tk.backend.to_device(_wanted, _device)))

    def _judge(_found, _ids, _classes):
        _name = getattr(getattr(_found, "dtype", None), "name", "no array")
        return _found, f"dtype {_name}"

    result_1 = kit.check(
        "one_hot",
        one_hot,
        [(_label, _given, (_wanted, "dtype float32")) for _label, _given, _wanted in _cases],
        mistakes=[
            (
                "Rows and columns are exchanged.",
                lambda _ids, _classes: (tk.backend.xp_of(_ids).arange(_classes)[:, None] == _ids[None, :]).astype(
                    np.float32
                ),
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
        hint="Compare a column of ids with a row of all classes: what does a broadcast make of `==`?",
        solution="""
        def one_hot(ids, classes):
            xp = tk.backend.xp_of(ids)
            return (ids[:, None] == xp.arange(classes)).astype(xp.float32)
        """,
    )
    help_for_1
    return


@app.cell(hide_code=True)
def step_2(result_1):
    kit.gate(result_1, "Exercise 1 opens the next step.")
    mo.md(r"""
    ## 2. Reading a number is waiting for it

    A GPU works through a queue. `a + b` only puts an addition into it, and Python goes on at once. But `float(loss)`
    needs the number itself: Python waits until all that was queued is done, and the GPU then waits for Python. A
    training loop that looks at its loss at every step does this at every step.

    Here three weights are fitted to 30 points, 60 steps on the pretend device, which counts how often a value is
    fetched. Choose how often the loop looks at its loss.
    """)
    return


@app.cell(hide_code=True)
def slide_2(result_1):
    kit.gate(result_1)
    every = mo.ui.slider(1, 30, value=1, label="read the loss every ... steps", show_value=True)
    every
    return (every,)


@app.cell(hide_code=True)
def see_2(every):
    _device = kit.pretend_device()
    _draws = np.random.default_rng(0)
    with tk.device("pretend"):
        _points = _draws.normal(size=(30, 3)).astype(np.float32)
        _x, _y = tk.Tensor(_points), tk.Tensor(_points @ np.array([[1.0], [-0.5], [0.3]], np.float32))
        _w = tk.Tensor(np.zeros((3, 1), np.float32), requires_grad=True)
        _device.transfers, _read = 0, []
        for _step in range(60):
            _error = _x @ _w - _y
            _loss = (_error * _error).mean()
            _loss.backward()
            if _step % every.value == 0:
                _read.append(_loss.item())
            _w = tk.Tensor(_w.data - 0.1 * _w.grad, requires_grad=True)
    kit.row(
        kit.bars({"steps": 60, "times Python waited": _device.transfers}, "60 steps of training"),
        kit.lines(
            {"loss": _read if len(_read) > 1 else _read * 2}, "the loss as it was read", x_label="reading", low=0.0
        ),
    )
    return


@app.cell(hide_code=True)
def ask_2(result_1):
    kit.gate(result_1, "Exercise 1 comes first.")
    mo.md(r"""
    ### Exercise 2: one wait, not a hundred

    Keep the losses on the device, and fetch once. Each is an array of shape `()`. So is their sum, and nothing waits
    for it.
    """)
    return


@app.function
# EXERCISE 2. `losses` is a list of arrays of one number each, on a device. Return their mean
# as a Python float, with one transfer.
def mean_loss(losses):
    raise kit.Todo


@app.cell(hide_code=True)
def check_2(result_1):
    kit.gate(result_1, "Exercise 1 comes first.")
    _device = kit.pretend_device()
    _draws = np.random.default_rng(2)

    def _fresh(_values):
        def _make():
            _losses = [_device.asarray(_value) for _value in _values]
            _device.transfers = 0
            return (_losses,)

        return _make

    def _judge(_found, _losses):
        _count = _device.transfers
        if not isinstance(_found, float):
            return f"a {type(_found).__name__}", f"{_count} transfers"
        return _found, f"{_count} transfers"

    _cases = []
    for _n in (5, 1, 100):
        _values = _draws.normal(size=_n).astype(np.float32)
        _cases.append((f"{_n} losses", _fresh(_values), (float(_values.astype(np.float64).mean()), "1 transfers")))
    _one_by_one = "The mean is right, but every loss was fetched by itself."
    result_2 = kit.check(
        "mean_loss",
        mean_loss,
        _cases,
        tolerance=1e-4,
        mistakes=[
            (_one_by_one, lambda _losses: sum(float(_loss) for _loss in _losses) / len(_losses)),
            ("That is still an array on the device: fetch its number.", lambda _losses: sum(_losses) / len(_losses)),
            ("That is the sum.", lambda _losses: float(sum(_losses))),
            ("That is the last loss.", lambda _losses: float(_losses[-1])),
        ],
        judge=_judge,
    )
    result_2
    return (result_2,)


@app.cell(hide_code=True)
def help_2(result_2):
    help_for_2 = kit.help(
        result_2,
        hint="`sum(losses)` adds arrays, on the device. When must the number come to the host, at the earliest?",
        solution="""
        def mean_loss(losses):
            return float(sum(losses) / len(losses))
        """,
    )
    help_for_2
    return


@app.cell(hide_code=True)
def step_3(result_2):
    kit.gate(result_2, "Exercise 2 opens the last step.")
    mo.md(r"""
    ## 3. What the engine refuses

    Two more mistakes cost hours on a GPU, and tinykron refuses both at once, on every device. Mixing devices is an
    error that names them. And float64 that slips in, from `np.ones(3)` say, would make all that follows float64, which
    most GPUs compute more slowly. Below, `here` is a Tensor on the CPU and `there` one on the pretend device.
    """)
    return


@app.cell(hide_code=True)
def see_3(result_2):
    kit.gate(result_2)
    kit.pretend_device()
    _here = tk.Tensor([1.0, 2.0, 3.0]).to("cpu")
    _there = _here.to("pretend")
    _rows = []
    for _text, _try in [
        ("here * there", lambda: _here * _there),
        ("here * np.ones(3)", lambda: _here * np.ones(3)),
        ("here * 2.0", lambda: _here * 2.0),
        ('here.to("pretend") * there', lambda: _here.to("pretend") * _there),
    ]:
        try:
            _result = _try()
            _said = f"runs, {_result.dtype} on {_result.device}"
        except tk.TinykronError as _error:
            _said = f"**{type(_error).__name__}**: {_error}"
        _rows.append(f"| `{_text}` | {_said} |")
    mo.md("| | |\n|:---|:---|\n" + "\n".join(_rows))
    return


@app.cell(hide_code=True)
def finish(result_1, result_2):
    lesson_done = kit.finish(
        result_1,
        result_2,
        text="""
        **Done, and with it the engine.** Arrays are asked for their module, constants are Python numbers, a number is
        read when it is needed. On a machine with a GPU, `--device cuda` runs any lesson there: `tinykron lesson 4
        --device cuda`. Read `tinykron/backend.py`: it is the only file that imports CuPy. Next, a transformer:
        `tinykron lesson 8`.
        """,
    )
    lesson_done
    return


if __name__ == "__main__":
    app.run()
