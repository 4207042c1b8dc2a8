import marimo

__generated_with = "0.25.2"
app = marimo.App(
    width="medium",
    app_title="16 Distillation: KnGPT2 and KroneckerBERT in small",
)

with app.setup(hide_code=True):
    from math import log

    import marimo as mo
    import numpy as np

    import tinykron as tk
    from tinykron import kit
    from tinykron.distill.distances import attention_kl, attention_mse
    from tinykron.distill.losses import Losses
    from tinykron.measure.perplexity import perplexity

    LESSON = 3
    xp = kit.array_module()
    PROMPT = "The with statement is used to wrap the execution of a block"


@app.cell(hide_code=True)
def title():
    mo.md(r"""
    # 16 · Distillation: KnGPT2 and KroneckerBERT in small

    **You build** two of the distances by which a compressed model is pulled back to the one it came from.

    **You see** where student and teacher part, and two papers' recipes race against plain training.

    **You need** lesson 14 (the nearest Kronecker product), lesson 8 (attention) and lesson 6 (softmax and its loss).
    """)
    return


@app.cell(hide_code=True)
def step_1():
    mo.md(r"""
    ## 1. The nearest matrices do not make the nearest model

    Every matrix in the blocks of a shipped GPT-2 is replaced by the nearest Kronecker product of half its size. Each is
    as near as it can be, and yet the error mostly piles up from block to block: each gets inputs that are already off.

    The original is the **teacher**, the copy the **student**. They have the same depth and width, so each block of the
    student has its own block to follow. Choose one: the pictures are the attention of its first head, of each token of
    the prompt to itself and those before it. (What the last block gives is left out of the curve: it is kept normed.)
    """)
    return


@app.function(hide_code=True)
def pair():
    """Return the shipped GPT-2, and a copy: every matrix of its blocks is a Kronecker product of half the size."""
    model = tk.load(tk.data.weights_folder("gpt2-tiny"))
    plan = {}
    for name, (rows, columns) in tk.kron.dense_shapes(model).items():
        if name.startswith("blocks."):
            a_shape = (rows // 2, columns) if rows >= columns else (rows, columns // 2)
            plan[name] = tk.kron.Choice((rows, columns), a_shape)
    return model, tk.kron.factorise(model, plan)


@app.cell(hide_code=True)
def load_1():
    teacher, student = kit.once(pair)
    ids = [teacher.tokenizer.encode(PROMPT).ids]
    with tk.no_grad():
        of_teacher, of_student = (_model(ids, attention_scores=True) for _model in (teacher, student))
    return of_student, of_teacher, student, teacher


@app.cell(hide_code=True)
def slide_1():
    block = mo.ui.slider(1, 8, value=4, label="block", show_value=True)
    block
    return (block,)


@app.cell(hide_code=True)
def see_1(block, of_student, of_teacher):
    def _attends(_out):
        _scores = kit.host(_out.attention_scores[block.value - 1])[0, 0]
        _scores = np.where(np.tri(len(_scores), dtype=bool), _scores, -np.inf)
        _powers = np.exp(_scores - _scores.max(axis=-1, keepdims=True))
        return _powers / _powers.sum(axis=-1, keepdims=True)

    _apart = [
        float(((kit.host(_ours) - kit.host(_theirs)) ** 2).mean())
        for _ours, _theirs in zip(of_student.hidden, of_teacher.hidden, strict=True)
    ]
    kit.row(
        kit.heat(_attends(of_teacher), f"teacher, block {block.value}: attention", size=150, top=1.0),
        kit.heat(_attends(of_student), "student: attention", size=150, top=1.0),
        kit.lines(
            {"hidden states, after so many blocks": _apart[:-1]},
            "mean squared error",
            x_label="blocks",
            mark=block.value if block.value < len(_apart) - 1 else None,
        ),
    )
    return


@app.cell(hide_code=True)
def step_2():
    mo.md(r"""
    ## 2. What the teacher says beyond the answer

    The text says: the next token is this one. The teacher says more: this one is likely, those two would do, that one
    never. Divide the logits by a **temperature** before the softmax, and the small probabilities show. The student is
    to have the same *law*, the same distribution over all tokens (Hinton et al. 2015):

    $$T^2\;\mathrm{KL}(\mathrm{softmax}(t/T)\,\|\,\mathrm{softmax}(s/T))
    = T^2\sum_v p_v\,(\log p_v - \log q_v)$$

    $p$ is the teacher's law, $q$ the student's. The factor $T^2$ keeps the size of the gradient: softer laws give
    gradients about $T^2$ times smaller, once for the division and once for the smaller difference $p - q$.
    """)
    return


@app.cell(hide_code=True)
def slide_2():
    temperature = mo.ui.slider(0.5, 4.0, 0.5, value=1.0, label="temperature", show_value=True)
    temperature
    return (temperature,)


@app.cell(hide_code=True)
def see_2(of_student, of_teacher, teacher, temperature):
    def _law(_out):
        _logits = kit.host(_out.logits)[0, -1].astype(float) / temperature.value
        _powers = np.exp(_logits - _logits.max())
        return _powers / _powers.sum()

    _p, _q = _law(of_teacher), _law(of_student)
    _best = np.argsort(-_p)[:6].tolist()
    _words = {_token: repr(teacher.tokenizer.decode([_token])) for _token in _best}
    kit.row(
        kit.bars({_words[_token]: 100 * _p[_token] for _token in _best}, '"... of a block": the teacher, percent'),
        kit.bars({_words[_token]: 100 * _q[_token] for _token in _best}, "the student, percent"),
    )
    return


@app.cell(hide_code=True)
def ask_1():
    mo.md(r"""
    ### Exercise 1: the teacher's law

    Logits may be large: `exp` of them overflows. Lesson 6 said what to subtract.
    """)
    return


@app.function
# EXERCISE 1. `student` and `teacher` are logits (positions, tokens), NumPy arrays. Return
# the formula above, the mean over positions: a number.
def soft_loss(student, teacher, temperature):
    raise kit.Todo


@app.cell(hide_code=True)
def check_1():
    def _law(_row, _t):
        """One softmax in whole numbers of log space, one word after the other."""
        _row = [float(_x) / _t for _x in _row]
        _top = max(_row)
        _whole = log(sum(np.exp(_x - _top) for _x in _row)) + _top
        return [_x - _whole for _x in _row]

    def _by_hand(_student, _teacher, _t, _reverse=False):
        _sum = 0.0
        for _s, _r in zip(_student, _teacher, strict=True):
            _q, _p = _law(_s, _t), _law(_r, _t)
            _q, _p = (_p, _q) if _reverse else (_q, _p)
            _sum += sum(np.exp(_a) * (_a - _b) for _a, _b in zip(_p, _q, strict=True))
        return _sum * _t * _t / len(_student)

    _draws = np.random.default_rng(4)
    _cases = []
    for _label, _positions, _words, _t, _size in [
        ("3 positions, 5 words, T = 2", 3, 5, 2.0, 1.0),
        ("one position, T = 1", 1, 4, 1.0, 1.0),
        ("logits in the hundreds", 2, 3, 1.0, 300.0),
        ("equal logits", 4, 2, 3.0, 0.0),
    ]:
        _s, _r = (_size * _draws.normal(size=(2, _positions, _words))).astype(np.float32)
        _cases.append((_label, (_s, _r, _t), _by_hand(_s, _r, _t)))

    def _entropy_too(_student, _teacher, _t):
        _sum = 0.0
        for _s, _r in zip(_student, _teacher, strict=True):
            _sum -= sum(np.exp(_a) * _b for _a, _b in zip(_law(_r, _t), _law(_s, _t), strict=True))
        return _sum * _t * _t / len(_student)

    result_1 = kit.check(
        "soft_loss",
        soft_loss,
        _cases,
        tolerance=1e-4,
        mistakes=[
            (
                "That is KL(student || teacher): the sum is weighed with the teacher's law.",
                lambda _s, _r, _t: _by_hand(_s, _r, _t, _reverse=True),
            ),
            ("The factor T² is missing.", lambda _s, _r, _t: _by_hand(_s, _r, _t) / _t**2),
            ("That is the sum over positions, not their mean.", lambda _s, _r, _t: _by_hand(_s, _r, _t) * len(_s)),
            (
                "The logits were not divided by the temperature.",
                lambda _s, _r, _t: _by_hand(_s, _r, 1.0) * _t**2,
            ),
            ("That is the cross-entropy: the teacher's own entropy is in it.", _entropy_too),
        ],
    )
    result_1
    return (result_1,)


@app.cell(hide_code=True)
def help_1(result_1):
    help_for_1 = kit.help(
        result_1,
        hint="""
        Write a function for the logarithm of a softmax first: `x - x.max(...)`, then minus the logarithm of the sum of
        its `exp`. With `log p` and `log q` at hand, what is $p$?
        """,
        solution="""
        def soft_loss(student, teacher, temperature):
            def log_softmax(x):
                x = x / temperature
                x = x - x.max(axis=-1, keepdims=True)
                return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))

            log_p, log_q = log_softmax(teacher), log_softmax(student)
            return temperature**2 * (np.exp(log_p) * (log_p - log_q)).sum(axis=-1).mean()
        """,
    )
    help_for_1
    return


@app.cell(hide_code=True)
def step_3():
    mo.md(r"""
    ## 3. Comparing inside

    What comes out of a block is a matrix of the same shape in both models: the squared error will do, and both papers
    take it. Attention is where they differ. With the scores $O = QK^\top/\sqrt{d}$ of a head of width $d$, and $A$
    their softmax:

    - **KnGPT2** (Edalati et al. 2022) compares what each token attends to, *after* the softmax:
      $\mathrm{KL}(A_{\text{teacher}}\|A_{\text{student}})$;
    - **KroneckerBERT** (Tahaei et al. 2022) compares the scores themselves, *before* it: the mean of
      $(O_{\text{student}} - O_{\text{teacher}})^2$.
    """)
    return


@app.cell(hide_code=True)
def predict_3():
    options_3 = {
        "KnGPT2's stays 0, KroneckerBERT's rises": """a softmax does not change when all its inputs rise alike; the
            scores do. So the scores ask the student for something that no output depends on.""",
        "both rise": """the softmax divides by the sum: a number that is added to all scores of a query cancels.""",
        "both stay 0": """after the softmax nothing has changed, but the second one never takes a softmax.""",
    }
    guess_3 = kit.predict(
        "A student is perfect, but all scores of each query are a constant too large. The two distances?", options_3
    )
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
    added = mo.ui.slider(0.0, 2.0, 0.25, value=1.0, label="added to every score that is seen", show_value=True)
    added
    return (added,)


@app.cell(hide_code=True)
def see_3(added):
    _scores = np.random.default_rng(2).normal(size=(1, 1, 4, 4)).astype(np.float32)
    _ours, _theirs = tk.Tensor(xp.asarray(_scores + np.float32(added.value))), xp.asarray(_scores)
    _seen = np.where(np.tri(4, dtype=bool), _scores[0, 0], np.nan)
    kit.row(
        kit.table(np.nan_to_num(_seen), "the teacher's scores; 0.00 above the diagonal: not seen", top=3.0),
        kit.table(np.nan_to_num(_seen + added.value * np.tri(4)), "the student's", top=3.0),
        kit.bars(
            {
                "KnGPT2: KL": round(attention_kl(_ours, _theirs, causal=True).item(), 6),
                "KroneckerBERT: MSE": attention_mse(_ours, _theirs, causal=True).item(),
            },
            "distances",
        ),
    )
    return


@app.cell(hide_code=True)
def ask_2(step_3_done):
    step_3_done
    mo.md(r"""
    ### Exercise 2: KroneckerBERT's distance in a decoder

    BERT's tokens see each other all; GPT-2's see only what came before. The scores of later keys exist, but the mask
    throws them away, so they may be anything. A distance must not ask for them.
    """)
    return


@app.function
# EXERCISE 2. `student` and `teacher` are scores (heads, time, time), NumPy arrays: row i is
# query i. Key j counts for query i where j <= i. Return the mean of the squared difference
# over all heads and all pairs that count: a number.
def score_loss(student, teacher):
    raise kit.Todo


@app.cell(hide_code=True)
def check_2(step_3_done):
    step_3_done

    def _pair_by_pair(_s, _t):
        _sum, _count = 0.0, 0
        for _head, _query, _key in np.ndindex(*_s.shape):
            if _key <= _query:
                _sum += float(_s[_head, _query, _key] - _t[_head, _query, _key]) ** 2
                _count += 1
        return _sum / _count

    _draws = np.random.default_rng(8)
    _cases = []
    for _label, _heads, _time in [
        ("2 heads, 5 tokens", 2, 5),
        ("one head, one token", 1, 1),
        ("3 heads, 2 tokens", 3, 2),
    ]:
        _s, _t = _draws.normal(size=(2, _heads, _time, _time)).astype(np.float32)
        _cases.append((_label, (_s, _t), _pair_by_pair(_s, _t)))
    _s, _t = _draws.normal(size=(2, 1, 4, 4)).astype(np.float32)
    _s[:, ~np.tri(4, dtype=bool)] = 1e6
    _cases.append(("later keys are far off", (_s, _t), _pair_by_pair(_s, _t)))

    def _lower(_s, _t):
        return ((_s - _t) ** 2) * np.tri(_s.shape[-1])

    result_2 = kit.check(
        "score_loss",
        score_loss,
        _cases,
        tolerance=1e-4,
        mistakes=[
            ("Later keys count there: no output depends on them.", lambda _s, _t: ((_s - _t) ** 2).mean()),
            (
                "The later keys are zeros now, but they are still counted: divide by the pairs that are seen.",
                lambda _s, _t: _lower(_s, _t).mean(),
            ),
            ("That is the sum, not the mean.", lambda _s, _t: _lower(_s, _t).sum()),
            (
                "That is the mean over pairs, summed over heads.",
                lambda _s, _t: _lower(_s, _t).sum() / np.tri(_s.shape[-1]).sum(),
            ),
            (
                "That is the mean over queries of their own means: early queries have fewer pairs, and count too much.",
                lambda _s, _t: (_lower(_s, _t).sum(axis=-1) / np.arange(1, _s.shape[-1] + 1)).mean(),
            ),
            (
                "The diagonal counts: a token sees itself.",
                lambda _s, _t: ((_s - _t)[:, np.tri(_s.shape[-1], k=-1, dtype=bool)] ** 2).mean(),
            ),
        ],
    )
    result_2
    return (result_2,)


@app.cell(hide_code=True)
def help_2(result_2):
    help_for_2 = kit.help(
        result_2,
        hint="`np.tri(n, dtype=bool)` is True on and below the diagonal. What does `scores[:, mask]` give?",
        solution="""
        def score_loss(student, teacher):
            seen = np.tri(student.shape[-1], dtype=bool)
            return ((student - teacher)[:, seen] ** 2).mean()
        """,
    )
    help_for_2
    return


@app.cell(hide_code=True)
def step_4(step_3_done):
    step_3_done
    mo.md(r"""
    ## 4. The race

    Three times the same student, the same small batches, the same number of steps. One learns from the text alone. One
    has KnGPT2's loss: embeddings, attention, hidden states, text. One has KroneckerBERT's: the same with scores, and
    the teacher's logits besides. Slide through the training; the three recipes are lines of `race` in this lesson's
    file.

    It is a race of seconds on a tiny model. What is asked of a student beyond the text costs steps before it pays, and
    may lie behind the text alone here. Which recipe wins, and by how much, is a question for `tinykron run kngpt2` on
    your own checkpoint.
    """)
    return


@app.function(hide_code=True)
def race(teacher, student, steps, batch, context):
    """Train three copies of a student; return ({name: held-out losses in nats}, the teacher's)."""
    training, held_out = tk.data.split(tk.data.language_reference())
    training = tk.data.encode(teacher.tokenizer, training[:1] if kit.fast() else training)
    held_out = tk.data.encode(teacher.tokenizer, held_out)[: 4 * context + 1 if kit.fast() else 1025]
    recipes = {
        "text alone": Losses(embedding=0.0, attention=0.0, hidden=0.0, cross_entropy=1.0),
        "KnGPT2": Losses(),
        "KroneckerBERT": Losses(attention_form="scores", logits=1.0),
    }
    settings = tk.train.Settings(
        steps, batch, context, lr=1e-3, weight_decay=0.0, measure_every=0, evaluate_every=max(1, steps // 4)
    )
    first, found = log(perplexity(student, held_out, context)), {}
    for name, losses in recipes.items():
        copy = tk.kron.factorise(student, {})  # its own parameters
        follows = teacher if losses.needs_teacher else None
        history = tk.train.fit(
            copy, training, settings, teacher=follows, losses=losses, held_out=held_out, title=f"training: {name}"
        )
        found[name] = [first] + [log(value) for _, value in history.perplexities]
    return found, log(perplexity(teacher, held_out, context))


@app.cell(hide_code=True)
def race_4(step_3_done, student, teacher):
    step_3_done
    _steps, _batch, _context = (1, 1, 8) if kit.fast() else (24, 8, 32)
    curves, goal = kit.once(race, teacher, student, _steps, _batch, _context)
    steps_4 = np.linspace(0, _steps, len(curves["KnGPT2"]))
    return curves, goal, steps_4


@app.cell(hide_code=True)
def slide_4(step_3_done):
    step_3_done
    quarter = mo.ui.slider(0, 4, value=4, label="how long trained, in quarters", show_value=True)
    quarter
    return (quarter,)


@app.cell(hide_code=True)
def see_4(curves, goal, quarter, steps_4):
    _at = min(quarter.value, len(steps_4) - 1)
    kit.row(
        kit.lines(
            curves | {"teacher": [goal] * len(steps_4)},
            "held-out loss, nats a token",
            x=steps_4,
            x_label="steps",
            mark=steps_4[_at],
        ),
        kit.bars(
            {_name: _values[_at] - goal for _name, _values in curves.items()},
            f"nats behind the teacher after {steps_4[_at]:.0f} steps",
        ),
    )
    return


@app.cell(hide_code=True)
def finish(result_1, result_2):
    lesson_done = kit.finish(
        result_1,
        result_2,
        text="""
        **Done.** A student is pulled at its logits, its hidden states and its attention; each pull is a distance, and
        each distance decides what the student may do otherwise. `tinykron/distill/distances.py` has them all, with
        their backwards. Next: `tinykron lesson 17`.
        """,
    )
    lesson_done
    return


if __name__ == "__main__":
    app.run()
