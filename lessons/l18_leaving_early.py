import marimo

__generated_with = "0.25.2"
app = marimo.App(width="medium", app_title="18 Leaving early, with a promise")

with app.setup(hide_code=True):
    from math import comb

    import marimo as mo
    import numpy as np

    import tinykron as tk
    from tinykron import kit

    LESSON = 2
    EXITS = (2, 4, 6, 8)
    LEVELS = np.linspace(1.0, 0.1, 19)  # thresholds, from careful to bold
    EPSILON = 0.05


@app.cell(hide_code=True)
def title():
    mo.md(r"""
    # 18 · Leaving early, with a promise

    **You build** the rule by which a token leaves, and the test that says how far it can be trusted.

    **You see** which exits serve which share of the tokens, and how often a promise without a test is broken.

    **You need** lesson 17: every depth is a model.
    """)
    return


@app.cell(hide_code=True)
def step_1():
    mo.md(r"""
    ## 1. Easy tokens need few blocks

    After `for i`, the next token is obvious; elsewhere it is not. An exit that gives its best token a large
    probability is *sure*. So let each token climb through the exits, and leave at the first whose largest probability
    reaches a threshold. Sorted LLaMA does just this (section 4.3), and so does `tk.generate(..., confidence=...)`.

    A shipped GPT-2 was trained for a few seconds to speak at 2, 4, 6 and 8 blocks, then asked for the next token of
    prompts drawn from held-out text. Move the threshold that all exits have in common.
    """)
    return


@app.function(hide_code=True)
def trained():
    """Return the shipped GPT-2, its exits trained for some seconds, and held-out token ids."""
    model = tk.load(tk.data.weights_folder("gpt2-tiny"))
    training, held_out = tk.data.split(tk.data.language_reference())
    steps, batch, context = (1, 1, 8) if kit.fast() else (40, 8, 32)
    training = tk.data.encode(model.tokenizer, training[:1] if kit.fast() else training)
    settings = tk.train.Settings(steps, batch, context, lr=3e-4, weight_decay=0.0, measure_every=0)
    tk.train.fit(model, training, settings, distillation=tk.exits.SortedLoss(model, tk.exits.equal_weights(EXITS)))
    return model, tk.data.encode(model.tokenizer, held_out)


@app.function(hide_code=True)
def ask(count, length=12):
    """Return how sure each exit is of the next token, and which it says: (exits, prompts) each."""
    model, tokens = kit.once(trained)
    prompts, _ = tk.data.sample_batch(tokens, count, length, np.random.default_rng(0))
    with tk.no_grad():
        served = model(prompts, exits=EXITS, last_only=True).exits
    logits = [kit.host(served[exit])[:, -1] for exit in EXITS]
    return np.array([tk.exits.confidence(one) for one in logits]), np.array([one.argmax(axis=-1) for one in logits])


@app.cell(hide_code=True)
def ask_model():
    sure, says = kit.once(ask, 20 if kit.fast() else 800)
    leaves = np.array([np.where((sure[:-1] >= _level).any(0), (sure[:-1] >= _level).argmax(0), 3) for _level in LEVELS])
    changed = np.array([np.take_along_axis(says, _row[None], 0)[0] != says[-1] for _row in leaves])
    return changed, leaves


@app.cell(hide_code=True)
def slide_1():
    level = mo.ui.slider(0.1, 1.0, 0.05, value=0.5, label="threshold", show_value=True)
    level
    return (level,)


@app.cell(hide_code=True)
def see_1(changed, leaves, level):
    _at = int(abs(LEVELS - level.value).argmin())
    _shares = {f"{_exit} blocks": (leaves == _row).mean(axis=1)[::-1] for _row, _exit in enumerate(EXITS)}
    kit.row(
        kit.lines(
            _shares,
            "share of tokens that leave at each exit",
            x=LEVELS[::-1],
            x_label="threshold",
            mark=level.value,
        ),
        kit.bars(
            {
                "blocks, mean": np.array(EXITS)[leaves[_at]].mean(),
                "changed, percent": 100 * changed[_at].mean(),
            },
            f"at threshold {level.value:g}: work, and tokens that differ from those of all 8 blocks",
        ),
    )
    return


@app.cell(hide_code=True)
def ask_1():
    mo.md(r"""
    ### Exercise 1: who leaves where

    A row of confidences for each exit, a column for each token. The last row is the whole model: it takes whoever is
    left, sure or not.
    """)
    return


@app.function
# EXERCISE 1. `sure` is a NumPy array (exits, tokens): how sure each exit is, shallow to
# deep. Return an array (tokens,): the number 0, 1, ... of the first row that is at least as
# sure as `threshold`, of the last row where none is.
def leaves_at(sure, threshold):
    raise kit.Todo


@app.cell(hide_code=True)
def check_1():
    def _one_by_one(_sure, _threshold):
        _found = []
        for _token in range(_sure.shape[1]):
            _row = 0
            while _row < len(_sure) - 1 and _sure[_row, _token] < _threshold:
                _row += 1
            _found.append(_row)
        return np.array(_found)

    _draws = np.random.default_rng(1)
    _cases = []
    for _exits, _tokens, _threshold in [(4, 12, 0.5), (3, 1, 0.9), (1, 5, 0.5), (4, 9, 0.0), (4, 9, 1.0)]:
        _sure = _draws.random((_exits, _tokens)).astype(np.float32)
        _cases.append(
            (
                f"{_exits} exits, {_tokens} tokens, threshold {_threshold}",
                (_sure, _threshold),
                _one_by_one(_sure, _threshold),
            )
        )
    _even = np.array([[0.5, 0.25], [0.6, 0.5], [0.9, 0.6]])
    _cases.append(("as sure as the threshold", (_even, 0.5), _one_by_one(_even, 0.5)))

    def _last_sure(_sure, _threshold):
        _found = len(_sure) - 1 - (_sure >= _threshold)[::-1].argmax(axis=0)
        return np.where((_sure >= _threshold).any(axis=0), _found, len(_sure) - 1)

    def _above(_sure, _threshold):
        _open = _sure > _threshold
        _open[-1] = True
        return _open.argmax(axis=0)

    result_1 = kit.check(
        "leaves_at",
        leaves_at,
        _cases,
        mistakes=[
            (
                "Where no exit is sure, `argmax` of nothing but False is 0: the first exit. The last one takes them.",
                lambda _sure, _threshold: (_sure >= _threshold).argmax(axis=0),
            ),
            ("That is the surest exit, not the first that is sure enough.", lambda _sure, _: _sure.argmax(axis=0)),
            ("That is the last exit that is sure: a token would climb on after it could leave.", _last_sure),
            ("An exit exactly as sure as the threshold is sure enough.", _above),
        ],
    )
    result_1
    return (result_1,)


@app.cell(hide_code=True)
def help_1(result_1):
    help_for_1 = kit.help(
        result_1,
        hint="""
        `(sure >= threshold)` is a table of True and False. `argmax` along the exits finds the first True of each
        column. What must be True in the last row, always?
        """,
        solution="""
        def leaves_at(sure, threshold):
            may_leave = sure >= threshold
            may_leave[-1] = True
            return may_leave.argmax(axis=0)
        """,
    )
    help_for_1
    return


@app.cell(hide_code=True)
def step_2():
    mo.md(r"""
    ## 2. What a few prompts prove

    A bold threshold saves work and changes some answers. Which threshold may you use, if at most one prompt in ten may
    come out changed? You try a threshold on 100 prompts, and count. Call the share that you promise $\delta$, here 0.1,
    and the risk that you take of promising falsely $\epsilon$, here 0.05.
    """)
    return


@app.cell(hide_code=True)
def predict_2():
    options_2 = {
        "no: it may have been luck": """a threshold that changes a little more than one in ten shows 8 or fewer of
            100 quite often. The slider below says how often.""",
        "yes: 8 percent is less than 10": """8 percent *of these 100*. On the next 100 it may be 13: the promise is
            about all prompts to come.""",
        "no: only 0 changed prompts would prove it": """too strict. With 100 prompts a few changed ones are still very
            unlikely under a share of one in ten.""",
    }
    guess_2 = kit.predict(
        "8 of 100 prompts come out changed. May you promise that at most 10 percent of all prompts do?", options_2
    )
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
    seen = mo.ui.slider(0, 20, value=8, label="changed, of 100 prompts", show_value=True)
    seen
    return (seen,)


@app.cell(hide_code=True)
def see_2(seen):
    _counts = np.arange(25)
    _chance = np.array([comb(100, _k) * 0.1**_k * 0.9 ** (100 - _k) for _k in _counts.tolist()])
    kit.row(
        kit.lines(
            {"so many or fewer": np.where(_counts <= seen.value, _chance, np.nan), "in truth one in ten": _chance},
            "how likely each count of 100 is, if a threshold changes one prompt in ten",
            x=_counts,
            x_label="changed prompts",
            mark=seen.value,
            band="so many or fewer",
        ),
        kit.bars(
            {"p-value": _chance[: seen.value + 1].sum(), "epsilon": EPSILON},
            "so few by luck: the sum along the pale band",
        ),
    )
    return


@app.cell(hide_code=True)
def ask_2(step_2_done):
    step_2_done
    mo.md(r"""
    ## 3. The p-value

    Take the border: the true share is exactly $\delta$. How likely is a count as small as the one you saw, or smaller?
    Any larger share makes it less likely still. So if this, the **p-value**, is at most $\epsilon$, luck is a poor
    excuse, and you may promise. The probability of exactly $k$ changed ones among $n$ is
    $\binom{n}{k}\,\delta^k (1-\delta)^{n-k}$.

    ### Exercise 2: the exact binomial tail
    """)
    return


@app.function
# EXERCISE 2. Return the probability of at most `count` changed prompts among `prompts`, if
# each changes with probability `delta`. `comb(n, k)`, imported from the standard library, is
# the binomial coefficient.
def p_value(count, prompts, delta):
    raise kit.Todo


@app.cell(hide_code=True)
def check_2(step_2_done):
    step_2_done

    def _prompt_by_prompt(_count, _prompts, _delta):
        """The law of the count, grown by one prompt at a time."""
        _law = np.array([1.0])
        for _ in range(_prompts):
            _law = np.convolve(_law, [1 - _delta, _delta])
        return float(_law[: _count + 1].sum())

    def _exactly(_k, _n, _d):
        return comb(_n, _k) * _d**_k * (1 - _d) ** (_n - _k)

    _given = [(8, 100, 0.1), (0, 30, 0.1), (1, 1, 0.3), (3, 40, 0.2), (40, 40, 0.5)]
    result_2 = kit.check(
        "p_value",
        p_value,
        [(f"{_k} of {_n}, delta {_d}", (_k, _n, _d), _prompt_by_prompt(_k, _n, _d)) for _k, _n, _d in _given],
        tolerance=1e-6,
        mistakes=[
            ("That is exactly so many. Fewer would have convinced you too: add them.", _exactly),
            (
                "That leaves out the count itself: at most 8 includes 8.",
                lambda _k, _n, _d: sum(_exactly(_j, _n, _d) for _j in range(_k)),
            ),
            (
                "That is the probability of so many or more: the other tail.",
                lambda _k, _n, _d: sum(_exactly(_j, _n, _d) for _j in range(_k, _n + 1)),
            ),
            (
                "Of k prompts, there are many ways to be the changed ones: the binomial coefficient is missing.",
                lambda _k, _n, _d: sum(_d**_j * (1 - _d) ** (_n - _j) for _j in range(_k + 1)),
            ),
            ("That is the share you saw, which is no probability.", lambda _k, _n, _d: _k / _n),
        ],
    )
    result_2
    return (result_2,)


@app.cell(hide_code=True)
def help_2(result_2):
    help_for_2 = kit.help(
        result_2,
        hint="At most 8 means 0, or 1, or 2, ... or 8. What does Python's `range` leave out at its end?",
        solution="""
        def p_value(count, prompts, delta):
            return sum(comb(prompts, k) * delta**k * (1 - delta) ** (prompts - k) for k in range(count + 1))
        """,
    )
    help_for_2
    return


@app.cell(hide_code=True)
def step_4(step_2_done):
    step_2_done
    mo.md(r"""
    ## 4. Learn, then test: in a fixed order

    Many thresholds, many tests: one of them may pass by luck. There is a cheap way out (Angelopoulos et al. 2021; for
    early exits CALM, Schuster et al. 2022). Fix an order *before* looking, from careful to bold. Test in that order,
    and **stop at the first that fails**. To use a bad threshold, luck would have to fool you at the first bad one; that
    is one test, and luck passes it with probability $\epsilon$ at most.

    This is `tk.exits.promise`. Draw other prompts, or promise something else, and watch where it stops.
    """)
    return


@app.cell(hide_code=True)
def slide_4(step_2_done):
    step_2_done
    luck = mo.ui.slider(0, 30, value=0, label="another draw of 150 prompts", show_value=True)
    luck
    return (luck,)


@app.cell(hide_code=True)
def slide_delta(step_2_done):
    step_2_done
    delta = mo.ui.slider(0.05, 0.3, 0.05, value=0.1, label="delta: share that may change", show_value=True)
    delta
    return (delta,)


@app.cell(hide_code=True)
def calibrated_4(changed, delta, luck):
    ladder = tk.exits.ladder(EXITS[:-1], LEVELS.tolist())

    def calibrated(draw):
        drawn = np.random.default_rng(draw).integers(0, changed.shape[1], 150)
        failed = {_candidate[2]: _row[drawn] for _candidate, _row in zip(ladder, changed, strict=True)}
        return failed, tk.exits.promise(ladder, lambda candidate: failed[candidate[2]], delta.value, EPSILON)

    found = calibrated(luck.value)
    return calibrated, found


@app.cell(hide_code=True)
def see_4(changed, delta, found):
    _failed, _calibration = found
    _tested = [_one.p_value for _one in _calibration.tested]
    _chosen = 1.0 if _calibration.chosen is None else _calibration.chosen[2]
    _row = int(abs(LEVELS - _chosen).argmin())
    kit.row(
        kit.lines(
            {
                "p-value": _tested + [np.nan] * (len(LEVELS) - len(_tested)),
                "epsilon": [EPSILON] * len(LEVELS),
            },
            "thresholds tested in turn, until one fails; dashed: the last that passed",
            x=LEVELS,
            x_label="threshold, careful to bold",
            mark=_chosen,
        ),
        kit.bars(
            {
                "promised": 100 * delta.value,
                "in this draw": 100 * _failed[float(LEVELS[_row])].mean(),
                "all prompts": 100 * changed[_row].mean(),
            },
            f"changed at the chosen threshold {_chosen:.2f}, percent",
        ),
    )
    return


@app.cell(hide_code=True)
def step_5(step_2_done):
    step_2_done
    mo.md(r"""
    ## 5. Is it kept?

    We can ask that here, for we know all the prompts. Below, 150 prompts are drawn 200 times. Once the threshold comes
    from the test; once from what one would do without it: the boldest whose own count is still within $\delta$. The
    bars say how often the promise was broken for *all* prompts. The test may break it in a share $\epsilon$ of all
    draws that can happen, and no more.
    """)
    return


@app.cell(hide_code=True)
def see_5(calibrated, changed, delta):
    _truth = {float(_level): _share for _level, _share in zip(LEVELS, changed.mean(axis=1), strict=True)}
    _broken, _draws = {"with the test": 0, "without": 0}, 10 if kit.fast() else 200
    for _draw in range(_draws):
        _failed, _calibration = calibrated(1000 + _draw)
        _used = None
        for _level, _row in _failed.items():
            if _row.mean() > delta.value:
                break
            _used = _level
        _broken["without"] += _used is not None and _truth[_used] > delta.value
        _broken["with the test"] += _calibration.chosen is not None and _truth[_calibration.chosen[2]] > delta.value
    kit.bars(
        {_name: 100 * _count / _draws for _name, _count in _broken.items()} | {"allowed": 100 * EPSILON},
        "draws that broke the promise, percent",
    )
    return


@app.cell(hide_code=True)
def finish(result_1, result_2):
    lesson_done = kit.finish(
        result_1,
        result_2,
        text="""
        **Done.** A token leaves at the first exit that is sure enough; how sure is enough is a matter of evidence, and
        a test turns a count into a promise. But a promise with exceptions is not the same text. Can leaving early
        change *nothing*? Next: `tinykron lesson 19`.
        """,
    )
    lesson_done
    return


if __name__ == "__main__":
    app.run()
