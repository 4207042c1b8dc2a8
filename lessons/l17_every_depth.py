import marimo

__generated_with = "0.25.2"
app = marimo.App(width="medium", app_title="17 Every depth a model")

with app.setup(hide_code=True):
    import copy

    import marimo as mo
    import numpy as np

    import tinykron as tk
    from tinykron import kit
    from tinykron.exits import analysis

    LESSON = 3
    xp = kit.array_module()
    EXITS = (2, 4, 6, 8)


@app.cell(hide_code=True)
def title():
    mo.md(r"""
    # 17 · Every depth a model

    **You build** the loss that makes every chosen depth of one transformer a usable model, and its cheap version, which
    looks at one depth at a time.

    **You see** the exits of a shipped GPT-2 learn to speak in a few seconds of training.

    **You need** cross-entropy (lesson 6) and the block (lesson 9).
    """)
    return


@app.cell(hide_code=True)
def step_1():
    mo.md(r"""
    ## 1. A transformer can be read after any block

    Each block adds something to the same vector of width $D$. So nothing stops us from reading it early: after $n$
    blocks, take the final norm and the output head (the matrix that turns $x$ into scores of tokens), which serve the
    last block too. That is `model(ids, exit=n)`.

    Choose a depth. The bars are what this depth thinks comes next; the curve is the loss of every depth on text that
    was held out. This GPT-2 was trained through its last block alone.
    """)
    return


@app.function(hide_code=True)
def shipped():
    """Return the shipped GPT-2, and token ids of Python's language reference: to train on, and held out."""
    model = tk.load(tk.data.weights_folder("gpt2-tiny"))
    training, held_out = tk.data.split(tk.data.language_reference())
    training = training[:1] if kit.fast() else training
    training, held_out = (tk.data.encode(model.tokenizer, part) for part in (training, held_out))
    return model, training, held_out[: 9 if kit.fast() else 513]


@app.function(hide_code=True)
def losses_of_depths():
    model, _, held_out = kit.once(shipped)
    return analysis.losses(model, held_out, 32, range(1, 9))


@app.cell(hide_code=True)
def slide_1():
    depth = mo.ui.slider(1, 8, value=2, label="blocks", show_value=True)
    depth
    return (depth,)


@app.cell(hide_code=True)
def measure_1():
    model, training, _ = kit.once(shipped)
    PROMPT = "The with statement is used to"
    prompt = model.tokenizer.encode(PROMPT).ids
    loss_of_depth = kit.once(losses_of_depths)
    return PROMPT, loss_of_depth, model, prompt, training


@app.cell(hide_code=True)
def see_1(PROMPT, depth, loss_of_depth, model, prompt):
    with tk.no_grad():
        _logits = kit.host(model([prompt], exit=depth.value, last_only=True).logits)[0, -1].astype(float)
    _share = np.exp(_logits - _logits.max())
    _share /= _share.sum()
    _best = np.argsort(-_share)[:6]
    kit.row(
        kit.bars(
            {repr(model.tokenizer.decode([_token])): 100 * _share[_token] for _token in _best.tolist()},
            f'"{PROMPT} ..." after {depth.value} blocks: what comes next, percent',
        ),
        kit.lines(
            {"loss": list(loss_of_depth.values())},
            "held-out loss of every depth, nats a token",
            x=list(loss_of_depth),
            x_label="blocks",
            mark=depth.value,
        ),
    )
    return


@app.cell(hide_code=True)
def step_2():
    mo.md(r"""
    ## 2. One loss for all depths

    A model that answers well after 2, 4, 6 *and* 8 blocks is four models for the price of one: you choose the depth
    when you serve it. Sorted LLaMA (Kavehzadeh et al. 2023) asks for exactly that, and no more, in its equation 1:

    $$\mathcal{L} = \frac{1}{|N|}\sum_{n\in N} \mathcal{L}_n(x;\theta_n)$$

    $N$ is the set of exits, $x$ the text, $\theta_n$ the parameters of the first $n$ blocks and of the head, and
    $\mathcal{L}_n$ the cross-entropy of what is read after $n$ blocks. One pass through all blocks gives all the exits:
    each is read on the way. The sets of parameters are nested, as Russian dolls are.
    """)
    return


@app.cell(hide_code=True)
def predict_2():
    options_2 = {
        "all four, for block 1; one alone, for block 8": """what an exit says depends on the blocks below it and on no
            other. Block 1 is below all four exits, block 8 below the last only.""",
        "one alone, for block 1; all four, for block 8": """the other way round: the loss of exit 2 is computed from
            blocks 1 and 2, and never sees block 8.""",
        "all four, for every block": """block 8 has not run yet when exit 2 is read: change a number in it, and exit 2
            says what it said before.""",
    }
    guess_2 = kit.predict("Exits after 2, 4, 6 and 8 blocks: how many of their losses move a block?", options_2)
    guess_2
    return guess_2, options_2


@app.cell(hide_code=True)
def reveal_2(guess_2, options_2):
    step_2_done = kit.reveal(guess_2, options_2)
    step_2_done
    return (step_2_done,)


@app.cell(hide_code=True)
def see_2(model, step_2_done, training):
    step_2_done
    _model = copy.deepcopy(model)
    _inputs, _targets = tk.data.sample_batch(training, 2, 16, np.random.default_rng(0))
    _norms = np.zeros((len(EXITS), len(_model.blocks)))
    for _row, _exit in enumerate(EXITS):
        _model.zero_grad()
        tk.fused.cross_entropy(_model(_inputs, exit=_exit).logits, _targets).backward()
        for _column, _block in enumerate(_model.blocks):
            _grads = [_p.grad for _p in _block.parameters() if _p.grad is not None]
            _norms[_row, _column] = sum(float((_grad * _grad).sum()) for _grad in _grads) ** 0.5
    kit.table(_norms, "size of the gradient: a row for each exit's loss, a column for each block")
    return


@app.cell(hide_code=True)
def ask_1(step_2_done):
    step_2_done
    mo.md(r"""
    ### Exercise 1: the sorted loss

    `model(inputs, exits=(2, 4, 6, 8)).exits` is a dictionary: the logits of each exit, from one pass.
    `tk.fused.cross_entropy(logits, targets)` is the loss of one of them, a Tensor.
    """)
    return


@app.function
# EXERCISE 1. `served` is {blocks: logits (B, T, V)}, `targets` (B, T). Return the loss of
# equation 1: one Tensor, which still knows how it was made, so that .backward() reaches
# every exit.
def sorted_loss(served, targets):
    raise kit.Todo


@app.cell(hide_code=True)
def check_1(step_2_done):
    step_2_done

    def _by_hand(_logits, _targets):
        """The loss and its gradients, one position after the other."""
        _total, _grads = 0.0, {}
        for _exit, _array in _logits.items():
            _grads[_exit] = np.zeros(_array.shape)
            for _place in np.ndindex(*_targets.shape):
                _p = np.exp(_array[_place].astype(float))
                _p /= _p.sum()
                _share = 1 / (len(_logits) * _targets.size)
                _total -= np.log(_p[_targets[_place]]) * _share
                _p[_targets[_place]] -= 1
                _grads[_exit][_place] = _p * _share
        return (np.float32(_total), *(_grad.astype(np.float32) for _grad in _grads.values()))

    def _judge(_loss, _served, _targets):
        if not isinstance(_loss, tk.Tensor):
            raise TypeError("expected a Tensor: a plain number forgot how it was made, and cannot go backward")
        _loss.backward()
        return (kit.host(_loss), *(_missing(_tensor) for _tensor in _served.values()))

    def _missing(_tensor):
        return np.zeros(_tensor.shape, np.float32) if _tensor.grad is None else kit.host(_tensor.grad)

    def _given(_logits, _targets):
        return lambda: (
            {_exit: tk.Tensor(xp.asarray(_array), requires_grad=True) for _exit, _array in _logits.items()},
            _targets,
        )

    _draws = np.random.default_rng(3)
    _cases = []
    for _exits, _batch, _time, _words in [((2, 4, 8), 2, 3, 5), ((1, 2), 1, 1, 4), ((6,), 3, 2, 2)]:
        _logits = {_exit: _draws.normal(size=(_batch, _time, _words)).astype(np.float32) for _exit in _exits}
        _targets = _draws.integers(0, _words, (_batch, _time))
        _cases.append((f"exits {_exits}", _given(_logits, _targets), _by_hand(_logits, _targets)))
    _cross = tk.fused.cross_entropy

    def _of_mean_logits(_served, _targets):
        return _cross(sum(_served.values(), tk.Tensor(xp.float32(0.0))) * (1 / len(_served)), _targets)

    result_1 = kit.check(
        "sorted_loss",
        sorted_loss,
        _cases,
        mistakes=[
            (
                "That is the sum. Equation 1 is the mean: the size of a step must not depend on the number of exits.",
                lambda _served, _targets: tk.distill.total([_cross(_one, _targets) for _one in _served.values()]),
            ),
            (
                "Only the last exit is asked: that is plain training.",
                lambda _served, _targets: _cross(_served[max(_served)], _targets),
            ),
            (
                "Only the first exit is asked.",
                lambda _served, _targets: _cross(_served[min(_served)], _targets),
            ),
            ("That is the loss of the averaged logits: a single model made of all exits.", _of_mean_logits),
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
        How many losses are there, and what is each divided by? Tensors add with `+`, and are divided by a number by
        multiplying: `loss * (1 / n)`.
        """,
        solution="""
        def sorted_loss(served, targets):
            losses = [tk.fused.cross_entropy(logits, targets) for logits in served.values()]
            mean = losses[0]
            for loss in losses[1:]:
                mean = mean + loss
            return mean * (1 / len(losses))
        """,
    )
    help_for_1
    return


@app.cell(hide_code=True)
def step_3(step_2_done):
    step_2_done
    mo.md(r"""
    ## 3. A few seconds of it

    Below, the shipped GPT-2 is trained with this loss (in the library: `tk.exits.exit_loss`), on batches so small that
    it takes seconds. Pull the slider from left to right: training time.

    Two things to look for. The early exits fall fast: the same head reads them, and the blocks below have learned to
    say early what they know. And the last exit, whose blocks now serve four masters: how much it pays is the
    first question to ask of any sorted model.
    """)
    return


@app.function
def train_every_depth(steps, batch, context):
    """Train the exits of a copy of a model; return the held-out loss of every depth, in each quarter of the way."""
    model, training, held_out = kit.once(shipped)
    model = copy.deepcopy(model)
    optimiser = tk.optim.AdamW(model.parameters(), 3e-4)
    history = [analysis.losses(model, held_out, 32, range(1, 9))]
    for step in range(steps):
        drawn = tk.data.sample_batch(training, batch, context, np.random.default_rng(step))
        model.zero_grad()
        loss, _ = tk.exits.exit_loss(model, drawn, tk.exits.equal_weights(EXITS))
        loss.backward()
        optimiser.step()
        if (step + 1) % (steps // 4) == 0:
            history.append(analysis.losses(model, held_out, 32, range(1, 9)))
    return history


@app.cell(hide_code=True)
def train_3(step_2_done):
    step_2_done
    steps, _batch, _context = (4, 1, 8) if kit.fast() else (40, 8, 32)
    history = kit.once(train_every_depth, steps, _batch, _context)
    return history, steps


@app.cell(hide_code=True)
def slide_3(step_2_done):
    step_2_done
    moment = mo.ui.slider(0, 4, value=4, label="how long trained, in quarters", show_value=True)
    moment
    return (moment,)


@app.cell(hide_code=True)
def see_3(history, moment, steps):
    _now, _before = history[moment.value], history[0]
    kit.row(
        kit.lines(
            {"before": list(_before.values()), "now": list(_now.values())},
            f"held-out loss of every depth after {moment.value * steps // 4} steps",
            x=list(_now),
            x_label="blocks",
        ),
        kit.bars(
            {f"exit {_exit}": _now[_exit] - _before[_exit] for _exit in EXITS},
            "what training changed, nats (left: better)",
        ),
    )
    return


@app.cell(hide_code=True)
def step_4(step_2_done):
    step_2_done
    mo.md(r"""
    ## 4. One exit at a time

    Reading all the exits in every step costs: each needs the head, and the head is a large matrix. SortedNet (Valipour
    et al. 2023), the parent of the idea, draws a few exits at random in each step, and runs no deeper than it must.

    That is allowed if the *expected* loss is the same: then the gradient is right on average, and many steps take the
    noise out. Let each exit have a weight $w_n$; in equation 1 all are $1/|N|$. If an exit is drawn as often as its
    weight says, what must its loss be multiplied by?

    ### Exercise 2: an estimate without bias

    The check tries **every** draw that can happen, weighs each with its probability, and compares with the weighted sum
    $\sum_n w_n \mathcal{L}_n$. The weights need not add up to one.
    """)
    return


@app.function
# EXERCISE 2. `losses` {exit: number}, `weights` {exit: number above 0}. `drawn` is a list
# of exits, each drawn, with repeats, with probability weight / (sum of all weights). Return
# an estimate of sum(weights[n] * losses[n] for all n) that uses the losses of drawn exits
# alone and is right on average.
def sampled_loss(losses, weights, drawn):
    raise kit.Todo


@app.cell(hide_code=True)
def check_2(step_2_done):
    step_2_done

    def _on_average(_estimate):
        """An estimate's mean over all draws that can happen."""

        def _mean(_losses, _weights, _draws):
            _chances, _total = {(): 1.0}, sum(_weights.values())
            for _ in range(_draws):
                _chances = {
                    (*_drawn, _exit): _chance * _weight / _total
                    for _drawn, _chance in _chances.items()
                    for _exit, _weight in _weights.items()
                }
            _found = 0.0
            for _drawn, _chance in _chances.items():
                _seen = {_exit: _losses[_exit] for _exit in set(_drawn)}
                _one = _estimate(_seen, dict(_weights), list(_drawn))
                if _one is None:
                    return None
                _found += _chance * _one
            return _found

        return _mean

    _cases = []
    for _label, _losses, _weights, _draws in [
        ("equal weights, one draw", {2: 5.0, 8: 4.0}, {2: 0.5, 8: 0.5}, 1),
        ("weights that grow, two draws", {2: 5.0, 4: 4.5, 8: 3.0}, {2: 0.2, 4: 0.3, 8: 0.5}, 2),
        ("weights that add up to 3", {2: 5.0, 4: 1.0}, {2: 1.0, 4: 2.0}, 3),
        ("a single exit", {8: 3.0}, {8: 0.7}, 2),
    ]:
        _wanted = sum(_weights[_exit] * _losses[_exit] for _exit in _weights)
        _cases.append((_label, (_losses, _weights, _draws), _wanted))
    result_2 = kit.check(
        "sampled_loss",
        _on_average(sampled_loss),
        _cases,
        tolerance=1e-6,
        mistakes=[
            (
                "The weight counts twice: an exit with a large weight is already drawn more often.",
                _on_average(lambda _l, _w, _drawn: sum(_w[_n] * _l[_n] for _n in _drawn) / len(_drawn)),
            ),
            (
                "Weights and losses are right, but an exit is not drawn every time: its weight is its chance already.",
                _on_average(lambda _l, _w, _drawn: sum(_w[_n] * _l[_n] for _n in _drawn)),
            ),
            (
                "More draws must not make it larger: take their mean.",
                _on_average(lambda _l, _w, _drawn: sum(_w.values()) * sum(_l[_n] for _n in _drawn)),
            ),
            (
                "That is right where the weights add up to one. Where they add up to 3, the loss is 3 times as large.",
                _on_average(lambda _l, _w, _drawn: sum(_l[_n] for _n in _drawn) / len(_drawn)),
            ),
        ],
    )
    result_2
    return (result_2,)


@app.cell(hide_code=True)
def help_2(result_2):
    help_for_2 = kit.help(
        result_2,
        hint="""
        With one draw, exit $n$ comes with probability $w_n / W$. Multiply its loss by $c_n$: on average that gives
        $\\sum_n (w_n / W)\\, c_n \\mathcal{L}_n$. Which $c_n$ makes $w_n$ of that? Does it depend on $n$?
        """,
        solution="""
        def sampled_loss(losses, weights, drawn):
            return sum(weights.values()) * sum(losses[exit] for exit in drawn) / len(drawn)
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
        **Done.** One pass, one loss for each exit, their mean: every depth is a model. `tk.exits.SortedLoss` is both of
        your functions as an objective of `tk.train.fit`, and `tinykron sort` runs it on a checkpoint. But which token
        needs which depth? Next: `tinykron lesson 18`.
        """,
    )
    lesson_done
    return


if __name__ == "__main__":
    app.run()
