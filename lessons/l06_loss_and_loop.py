import marimo

__generated_with = "0.25.2"
app = marimo.App(
    width="medium",
    app_title="6 A loss that does not overflow, a loop that learns",
)

with app.setup(hide_code=True):
    import marimo as mo
    import numpy as np

    import tinykron as tk
    from tinykron import kit

    LESSON = 3  # the version of this lesson
    xp = kit.array_module()


@app.cell(hide_code=True)
def title():
    mo.md(r"""
    # 6 · A loss that does not overflow, a loop that learns

    **You build** the loss of every language model, and the loop that makes it fall.

    **You see** a classifier learn, and what the step size does to it.

    **You need** lessons 3 to 5.
    """)
    return


@app.cell(hide_code=True)
def step_1():
    mo.md(r"""
    ## 1. Scores become shares

    A *classifier* says which of some classes a thing belongs to: which word of the vocabulary comes next, say. It
    gives each class a score, its *logit* $z_i$. The softmax makes shares of them: $p_i = e^{z_i} / \sum_j e^{z_j}$. The
    loss is how surprised it is by the class that was right, the logarithm of one over its share: $-\log
    p_{\text{right}} = \log \sum_j e^{z_j} - z_{\text{right}}$.

    The formula is right, and breaks as it stands: in float32, $e^{89}$ is infinite. Scale the three logits up and
    down, and watch where the curve that computes the formula as written ends: from there on it says infinity. The other
    one is what you are about to write.
    """)
    return


@app.cell(hide_code=True)
def slide_1():
    scale = mo.ui.slider(1, 200, value=100, label="scale of the logits", show_value=True)
    scale
    return (scale,)


@app.cell(hide_code=True)
def see_1(scale):
    _logits = np.array([1.0, 0.4, -0.6], np.float32)
    _scales = np.arange(1, 201, dtype=np.float32)
    _all = _scales[:, None] * _logits
    with np.errstate(all="ignore"):
        _written = np.log(np.exp(_all).sum(axis=1)) - _all[:, 1]
    _safe = tk.fused.log_softmax(tk.Tensor(_all)).numpy()[:, 1]
    _at = scale.value - 1
    kit.row(
        kit.lines(
            {"as it should be": -_safe, "as written": _written},
            "loss, where the second of the three classes is right",
            x=_scales,
            x_label="scale",
            mark=scale.value,
        ),
        kit.bars({"as it should be": -_safe[_at], "as written": _written[_at]}, "loss at this scale"),
    )
    return


@app.cell(hide_code=True)
def predict_1():
    options_1 = {
        "subtracting the largest logit from all of them": """$\\log\\sum e^{z} = m + \\log\\sum e^{z-m}$ for any $m$.
            With the largest as $m$, no exponent is above 0, and one is 0: no overflow, and no logarithm of nothing.""",
        "computing in float64": "that moves the wall from a logit of 88 to one of 709, and costs twice the memory.",
        "cutting logits off at 80": "then the loss cannot tell two large logits apart, and their gradient is 0.",
    }
    guess_1 = kit.predict("Which change makes it safe for every logit?", options_1)
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
    ### Exercise 1: cross-entropy

    The mean of the losses of all rows. For any $m$, $\log\sum e^{z} = m + \log\sum e^{z-m}$: the same $m$ subtracted
    from all logits of a row changes no loss. `logits[xp.arange(n), targets]` picks the right one of each row.
    """)
    return


@app.function
# EXERCISE 1. logits (n, classes) float32, targets (n,) whole numbers. Return the mean loss,
# for any logits at all.
def cross_entropy(logits, targets):
    raise kit.Todo


@app.cell(hide_code=True)
def check_1(step_1_done):
    step_1_done
    _draws = np.random.default_rng(0)
    _cases = []
    for _label, _logits, _targets in [
        ("small logits (4, 3)", _draws.normal(size=(4, 3)), [0, 2, 1, 1]),
        ("one row, one class", np.array([[5.0]]), [0]),
        ("logits of a thousand", np.array([[1000.0, 999.0], [-1000.0, -1001.0]]), [1, 0]),
        ("a right class of share 0", np.array([[-60.0, 60.0], [60.0, -60.0]]), [0, 1]),
        ("rows far apart", np.array([[900.0, 901.0, 899.0], [-300.0, -301.0, -300.5]]), [0, 1]),
    ]:
        _wanted = np.mean([np.logaddexp.reduce(_row) - _row[_t] for _row, _t in zip(_logits, _targets, strict=True)])
        _given = (xp.asarray(_logits.astype(np.float32)), xp.asarray(np.array(_targets)))
        _cases.append((_label, _given, float(_wanted)))

    def _rows(_z, _t):
        return xp.log(xp.exp(_z).sum(axis=1)) - _z[xp.arange(len(_z)), _t]

    def _top(_z, _t, _axis):
        _m = _z.max(axis=_axis, keepdims=True)
        _shifted = _z - _m
        return (xp.log(xp.exp(_shifted).sum(axis=1)) - _shifted[xp.arange(len(_z)), _t]).mean()

    def _half_shifted(_z, _t):
        _shifted = _z - _z.max(axis=1, keepdims=True)
        return (xp.log(xp.exp(_shifted).sum(axis=1)) - _z[xp.arange(len(_z)), _t]).mean()

    def _of_the_share(_z, _t):
        _powers = xp.exp(_z - _z.max(axis=1, keepdims=True))
        return -xp.log((_powers / _powers.sum(axis=1, keepdims=True))[xp.arange(len(_z)), _t]).mean()

    _underflows = "The share underflows to 0, and has no logarithm: take that of the sum, and subtract the logit."
    _per_row = "The largest of *all* logits was taken away. A row far below it underflows: each row needs its own."
    result_1 = kit.check(
        "cross_entropy",
        cross_entropy,
        _cases,
        tolerance=1e-4,
        mistakes=[
            ("That is the formula as written: it overflows.", lambda _z, _t: _rows(_z, _t).mean()),
            ("That is the sum over the rows; the mean is wanted.", lambda _z, _t: _rows(_z, _t).sum()),
            ("The sign is turned round: a loss is never below 0.", lambda _z, _t: -_rows(_z, _t).mean()),
            ("The largest was taken away in one place and not in the other.", _half_shifted),
            (_per_row, lambda _z, _t: _top(_z, _t, None)),
            (_underflows, _of_the_share),
            ("That is the share of the right class, not its logarithm.", lambda _z, _t: xp.exp(-_rows(_z, _t)).mean()),
        ],
    )
    result_1
    return (result_1,)


@app.cell(hide_code=True)
def help_1(result_1):
    help_for_1 = kit.help(
        result_1,
        hint="What changes in the loss if the same number is taken from all logits of a row? Which number helps most?",
        solution="""
        def cross_entropy(logits, targets):
            shifted = logits - logits.max(axis=1, keepdims=True)
            right = shifted[xp.arange(len(logits)), targets]
            return (xp.log(xp.exp(shifted).sum(axis=1)) - right).mean()
        """,
    )
    help_for_1
    return


@app.cell(hide_code=True)
def step_2(result_1):
    kit.gate(result_1, "Exercise 1 opens the next step.")
    mo.md(r"""
    ## 2. The gradient is a difference of shares

    The library has this loss as one node of the graph, `tk.fused.cross_entropy`, and its backward is as short as can
    be. For the logits of a row it is the shares the model gave, minus the shares that would have been right (1 for the
    right class, 0 elsewhere); of the mean of $n$ rows, that divided by $n$. Move the logit of the right class.
    """)
    return


@app.cell(hide_code=True)
def slide_2(result_1):
    kit.gate(result_1)
    logit = mo.ui.slider(-4.0, 6.0, 0.5, value=0.0, label="logit of the right class", show_value=True)
    logit
    return (logit,)


@app.cell(hide_code=True)
def see_2(logit):
    _z = tk.Tensor([[1.0, logit.value, -0.5]], requires_grad=True)
    _loss = tk.fused.cross_entropy(_z, np.array([1]))
    _loss.backward()
    _share = tk.fused.softmax(_z.detach()).numpy()[0]
    _slope = tk.backend.to_host(_z.grad)[0]
    _names = ("first class", "the right class", "third class")
    kit.row(
        kit.bars(dict(zip(_names, _share, strict=True)), "shares"),
        kit.bars(dict(zip(_names, _slope, strict=True)), "gradient of the loss"),
        kit.bars(
            {"loss": _loss.item(), "sum of the gradient": abs(float(_slope.sum().round(6)))},
            "the loss, and what its gradient adds up to",
        ),
    )
    return


@app.cell(hide_code=True)
def step_3(result_1):
    kit.gate(result_1)
    mo.md(r"""
    ## 3. The loop

    Training is four lines, over and over: compute the loss; go backward; take a small step against the gradient; begin
    the next round with a fresh gradient, or the old one is added to the new.

    ### Exercise 2: train a classifier

    The model is one matrix: `logits = x @ w`, with `w` of zeros to begin with. `loss.item()` is a Tensor's number;
    `w.data` and `w.grad` are arrays. What is computed from a Tensor is a node of the graph and gets no `.grad`: make
    the stepped `w` a new leaf, `tk.Tensor(an array, requires_grad=True)`.
    """)
    return


@app.function
# EXERCISE 2. x (n, features) and targets (n,) are NumPy arrays. Take `steps` steps w <- w -
# rate * gradient, with w = tk.Tensor(np.zeros((features, classes), np.float32),
# requires_grad=True) at first, tk.fused.cross_entropy and backward(). Return (the loss before
# each step as a list of numbers, the last w as a Tensor).
def train(x, targets, classes, steps, rate):
    raise kit.Todo


@app.cell(hide_code=True)
def check_2(result_1):
    kit.gate(result_1, "Exercise 1 comes first.")

    def _descent(_x, _t, _classes, _steps, _rate, _sign=-1.0, _keep=0.0, _late=False):
        """The same by hand, in float64: the gradient is x^T (shares - right shares) / n."""
        _w, _kept, _losses = np.zeros((_x.shape[1], _classes)), 0.0, []
        _right = np.eye(_classes)[_t]

        def _loss(_w):
            _z = _x @ _w
            return (np.logaddexp.reduce(_z, axis=1) - (_z * _right).sum(axis=1)).mean()

        for _ in range(_steps):
            _z = _x @ _w
            _share = np.exp(_z - np.logaddexp.reduce(_z, axis=1, keepdims=True))
            _kept = _keep * _kept + _x.T @ (_share - _right) / len(_x)
            _before = _loss(_w)
            _w = _w + _sign * _rate * _kept
            _losses.append(_loss(_w) if _late else _before)
        return _losses, _w.astype(np.float32)

    _draws = np.random.default_rng(0)
    _cases = []
    for _n, _features, _classes, _steps, _rate in [(12, 3, 4, 5, 0.5), (1, 2, 2, 3, 1.0), (30, 1, 2, 8, 0.1)]:
        _given = (
            _draws.normal(size=(_n, _features)).astype(np.float32),
            _draws.integers(0, _classes, _n),
            _classes,
            _steps,
            _rate,
        )
        _cases.append((f"{_n} rows, {_steps} steps", _given, _descent(*_given)))
    result_2 = kit.check(
        "train",
        train,
        _cases,
        tolerance=1e-4,
        mistakes=[
            ("The old gradient is still there when the new one is added.", lambda *_a: _descent(*_a, _keep=1.0)),
            ("That walks uphill: the step goes *against* the gradient.", lambda *_a: _descent(*_a, _sign=1.0)),
            ("The loss was taken after the step.", lambda *_a: _descent(*_a, _late=True)),
            ("`w` does not move, or each step begins at zero again.", lambda *_a: _descent(*_a, _sign=0.0)),
            ("The rate is missing.", lambda _x, _t, _c, _s, _r: _descent(_x, _t, _c, _s, 1.0)),
        ],
    )
    result_2
    return (result_2,)


@app.cell(hide_code=True)
def help_2(result_2):
    help_for_2 = kit.help(
        result_2,
        hint="""
        What must `w.grad` be when the next backward begins? A new Tensor has none yet: its data is `w.data - rate *
        w.grad`.
        """,
        solution="""
        def train(x, targets, classes, steps, rate):
            inputs, losses = tk.Tensor(x), []
            w = tk.Tensor(np.zeros((x.shape[1], classes), np.float32), requires_grad=True)
            for _ in range(steps):
                loss = tk.fused.cross_entropy(inputs @ w, targets)
                loss.backward()
                losses.append(loss.item())
                w = tk.Tensor(w.data - rate * w.grad, requires_grad=True)
            return losses, w
        """,
    )
    help_for_2
    return


@app.cell(hide_code=True)
def step_4(result_2):
    kit.gate(result_2, "Exercise 2 opens the last step.")
    mo.md(r"""
    ## 4. Your loop, learning

    Three clouds of points that overlap, 60 steps of *your* loop. The left picture is the plane, its colour the share
    that the model gives the first class, from blue (none) to orange (all); the curve is the loss. The slider is the
    power of ten of the rate: at -3 hardly anything happens in 60 steps, and at 1.5 and above the loss jumps about.
    """)
    return


@app.cell(hide_code=True)
def slide_4(result_2):
    kit.gate(result_2)
    rate_power = mo.ui.slider(-3.0, 2.0, 0.25, value=-0.5, label="rate: 10 to the power of", show_value=True)
    rate_power
    return (rate_power,)


@app.cell(hide_code=True)
def see_4(rate_power, result_2):
    _draws = np.random.default_rng(5)
    _centres = np.array([[1.2, 0.8], [-1.2, 0.6], [0.2, -1.3]])
    _targets = np.arange(90) % 3
    _points = _centres[_targets] + 0.9 * _draws.normal(size=(90, 2))
    _side = np.linspace(3, -3, 48)
    _plane = np.stack(np.meshgrid(_side[::-1], _side), axis=-1).reshape(-1, 2)

    def _with_one(_at):
        return np.concatenate([_at, np.ones((len(_at), 1))], axis=1).astype(np.float32)

    _losses, _w = train(_with_one(_points), _targets, 3, 60, 10**rate_power.value) if result_2 else ([0.0], None)
    _share = 0 * _plane[:, :1] if _w is None else tk.fused.softmax(tk.Tensor(_with_one(_plane)) @ _w).numpy()
    _right = 0.0 if _w is None else ((_with_one(_points) @ kit.host(_w)).argmax(axis=1) == _targets).mean()
    kit.row(
        kit.heat(_share[:, 0].reshape(48, 48) * 2 - 1, "share of the first class, over the plane", top=1, size=200),
        kit.lines({"loss": _losses}, f"loss at each step, at last {_losses[-1]:.3f}", x_label="step", low=0.0),
        kit.bars({"right": 90 * _right, "wrong": 90 * (1 - _right)}, "of 90 points, after 60 steps"),
    )
    return


@app.cell(hide_code=True)
def finish(result_1, result_2):
    lesson_done = kit.finish(
        result_1,
        result_2,
        text="""
        **Done.** The loss of every language model is the surprise at the right token, computed so that nothing
        overflows; training is a loop of four lines. The library's loop adds a better step (`tinykron/optim.py`), a
        schedule and checkpoints (`tinykron/train/loop.py`). Next: `tinykron lesson 7`.
        """,
    )
    lesson_done
    return


if __name__ == "__main__":
    app.run()
