import marimo

__generated_with = "0.25.2"
app = marimo.App(
    width="medium",
    app_title="19 Speculation that changes nothing",
)

with app.setup(hide_code=True):
    from html import escape

    import marimo as mo
    import numpy as np

    import tinykron as tk
    from tinykron import kit
    from tinykron.decode.speculate import acceptance, residual
    from tinykron.exits import analysis

    LESSON = 3
    EXITS = (2, 4, 6, 8)
    PROMPT = "The import statement"
    LENGTH = 6 if kit.fast() else 24


@app.cell(hide_code=True)
def title():
    mo.md(r"""
    # 19 · Speculation that changes nothing

    **You build** the two rules that let a small model write ahead, while every token stays the large model's own.

    **You see** drafts come and go, and when they are worth it.

    **You need** lessons 10 (the KV cache) and 17 (every depth a model).
    """)
    return


@app.cell(hide_code=True)
def step_1():
    mo.md(r"""
    ## 1. Checking is cheaper than writing

    A model writes one token per pass, because each token needs the one before it. But a *finished* text is read in a
    single pass, with an opinion at every place. So let something cheap write a few tokens ahead, and let the model read
    them all at once. What it would have written too may stay; at the first other token, the model's own word counts.

    Here the draft is an early exit of the same model (LayerSkip, Elhoushi et al. 2024). Step through the rounds:
    <b style="color:#3a9a4a">accepted</b>, <s style="color:#d1602a">refused</s>, and
    <u style="color:#2f81c7">the model's own token</u>, which comes with every check.
    """)
    return


@app.function(hide_code=True)
def trained():
    """Return the shipped GPT-2, its exits trained for some seconds."""
    model = tk.load(tk.data.weights_folder("gpt2-tiny"))
    steps, batch, context = (1, 1, 8) if kit.fast() else (40, 8, 32)
    documents = tk.data.split(tk.data.language_reference())[0]
    tokens = tk.data.encode(model.tokenizer, documents[:1] if kit.fast() else documents)
    settings = tk.train.Settings(steps, batch, context, lr=3e-4, weight_decay=0.0, measure_every=0)
    tk.train.fit(model, tokens, settings, distillation=tk.exits.SortedLoss(model, tk.exits.equal_weights(EXITS)))
    return model


@app.cell(hide_code=True)
def train_1():
    model = kit.once(trained)
    prompt = model.tokenizer.encode(PROMPT).ids
    return model, prompt


@app.function(hide_code=True)
def written_in_rounds(draft, ahead):
    """Return each round: the text before it, the drafted tokens, how many of them the model says too, its own token."""
    model = kit.once(trained)
    prompt = model.tokenizer.encode(PROMPT).ids
    text, rounds = list(prompt), []
    while len(text) < len(prompt) + LENGTH:
        drafted = tk.generate(model, text, ahead, exit=draft, stop=())[0, len(text) :].tolist()
        with tk.no_grad():
            logits = kit.host(model([text + drafted]).logits)[0]
        says = logits[len(text) - 1 :].argmax(axis=-1).tolist()
        good = 0
        while good < len(drafted) and drafted[good] == says[good]:
            good += 1
        rounds.append((list(text), drafted, good, says[good]))
        text += [*drafted[:good], says[good]]
    return rounds


@app.function(hide_code=True)
def agreement_of_exits():
    """Return the share of tokens that each exit says as the model does."""
    model = kit.once(trained)
    prompts = [model.tokenizer.encode(text).ids for text in (PROMPT, "An expression is", "If the name")]
    found = analysis.drift(model, prompts[: 1 if kit.fast() else 3], EXITS[:-1], LENGTH)
    return dict(zip(found.exits, found.agreement_E.tolist(), strict=True))


@app.cell(hide_code=True)
def slide_1():
    moment = mo.ui.slider(1, 6, value=3, label="round", show_value=True)
    moment
    return (moment,)


@app.cell(hide_code=True)
def see_1(model, moment):
    _rounds = kit.once(written_in_rounds, 4, 4)
    _before, _drafted, _good, _own = _rounds[min(moment.value, len(_rounds)) - 1]

    _newline = "↵\n"

    def _text(_tokens):
        return escape(model.tokenizer.decode(_tokens)).replace("\n", _newline)

    _marked = _text(_before)
    _marked += f'<b style="color:#3a9a4a">{_text(_drafted[:_good])}</b>' if _good else ""
    _marked += (
        f'<s style="color:#d1602a">{_text(_drafted[_good:]).replace(_newline, "↵")}</s>'
        if _good < len(_drafted)
        else ""
    )
    _marked += f'<u style="color:#2f81c7">{_text([_own])}</u>'
    mo.md(f'<pre style="white-space:pre-wrap;font-size:.95em">{_marked}</pre>')
    return


@app.cell(hide_code=True)
def count_1(moment, prompt):
    _rounds = kit.once(written_in_rounds, 4, 4)
    _round = min(moment.value, len(_rounds))
    _before, _, _good, _ = _rounds[_round - 1]
    kit.bars(
        {"tokens written": len(_before) - len(prompt) + _good + 1, "passes of all blocks": _round},
        f"after round {_round}, with drafts of 4 tokens by 4 blocks",
    )
    return


@app.cell(hide_code=True)
def ask_1():
    mo.md(r"""
    ### Exercise 1: what is written after a round

    A draft of $k$ tokens was read. The model has said what it would write at $k+1$ places: at the first place of the
    draft, at the second *if the first drafted token stands*, and so on, and behind the last one.

    The cases are made by a tiny language model that is a formula. What it writes by itself, one token at a time, is
    what must come out.
    """)
    return


@app.function
# EXERCISE 1. `drafted` is a list of k tokens; `says` a list of k + 1: says[i] is the
# model's token after the text and drafted[:i]. Return the list of tokens that are written
# in this round: at least one, and none that the model would not have written by itself.
def written(drafted, says):
    raise kit.Todo


@app.cell(hide_code=True)
def check_1():
    def _formula(_text):
        return (sum((_place + 1) * _token for _place, _token in enumerate(_text)) * 7 + 3) % 11

    def _alone(_text, _count):
        """Write without any draft."""
        _text, _new = list(_text), []
        for _ in range(_count):
            _new.append(_formula(_text))
            _text.append(_new[-1])
        return _new

    _cases = []
    for _label, _start, _length, _wrong in [
        ("the third of four is wrong", [5, 1], 4, 2),
        ("the first is wrong", [3], 3, 0),
        ("all are right", [2, 8], 4, None),
        ("a draft of one, right", [1], 1, None),
        ("a draft of one, wrong", [4, 4], 1, 0),
        ("no draft at all", [9], 0, None),
    ]:
        _drafted = _alone(_start, _length)
        if _wrong is not None:
            _drafted[_wrong] = (_drafted[_wrong] + 1) % 11
        _says = [_formula([*_start, *_drafted[:_i]]) for _i in range(_length + 1)]
        if _label == "the third of four is wrong":
            _says[3] = _drafted[3]  # by chance the model agrees again behind a wrong token
        _agreed = _length if _wrong is None else _wrong
        _cases.append((_label, (_drafted, _says), _alone(_start, _agreed + 1)))

    def _judge(_tokens, _drafted, _says):
        if not isinstance(_tokens, (list, tuple)):
            raise TypeError("expected a list of tokens")
        return [int(_token) for _token in _tokens]

    def _all_agreeing(_drafted, _says):
        return [_a for _a, _b in zip(_drafted, _says, strict=False) if _a == _b]

    def _prefix(_drafted, _says):
        _good = 0
        while _good < len(_drafted) and _drafted[_good] == _says[_good]:
            _good += 1
        return _good

    result_1 = kit.check(
        "written",
        written,
        _cases,
        tolerance=1e-6,
        mistakes=[
            (
                "A token behind a wrong one was checked against another text: stop at the first wrong one.",
                _all_agreeing,
            ),
            (
                "The model's own token is missing: the check has told it already, so it is free.",
                lambda _drafted, _says: _drafted[: _prefix(_drafted, _says)],
            ),
            (
                "That keeps the first wrong token of the draft.",
                lambda _drafted, _says: _drafted[: _prefix(_drafted, _says) + 1],
            ),
            (
                "That is all the model said. What it says behind a wrong token answers a text that will not stand.",
                lambda _drafted, _says: list(_says),
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
        As long as a drafted token is the model's, appending one or the other is the same. So append what the *model*
        says, place by place. When must you stop?
        """,
        solution="""
        def written(drafted, says):
            tokens = []
            for place, own in enumerate(says):
                tokens.append(own)
                if place == len(drafted) or drafted[place] != own:
                    break
            return tokens
        """,
    )
    help_for_1
    return


@app.cell(hide_code=True)
def step_2():
    mo.md(r"""
    ## 2. When tokens are drawn

    With a temperature tokens are drawn, and none is *the* right one: the model has a **law** $p$, a probability for
    each token, the draft a law $q$, and the draft *drew* a token $x$ from $q$. If $q$ likes $x$ more than $p$ does, it
    comes too often; so it is kept only with probability $\min(1, p(x)/q(x))$. Refused, another token must be drawn in
    its place.
    """)
    return


@app.cell(hide_code=True)
def predict_2():
    options_2 = {
        "tokens that the draft likes better come too often": """they were kept as often as p allows already; every
            further draw of them from p is too much.""",
        "nothing is wrong: p is the model's law": """it would be, if nothing had been kept before. But the kept ones
            count too, and they are not spread like p.""",
        "tokens that the draft likes better come too rarely": """they have had their share among the kept ones, all
            that p allows. The second draw only adds.""",
    }
    guess_2 = kit.predict("Suppose that in place of a refused token we draw from p. What is wrong?", options_2)
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
    off = mo.ui.slider(0.0, 1.0, 0.1, value=0.8, label="how far the draft is off", show_value=True)
    off
    return (off,)


@app.cell(hide_code=True)
def see_2(off):
    _p = np.array([0.5, 0.3, 0.15, 0.05])
    _q = (1 - off.value) * _p + off.value * np.array([0.1, 0.1, 0.2, 0.6])
    _kept = np.array([_qx * acceptance(_px, _qx) for _px, _qx in zip(_p, _q, strict=True)])
    _refused = 1 - _kept.sum()
    _from_p = _kept + _refused * _p
    kit.row(
        kit.table(
            np.stack([_p, _q, _kept, _kept + _refused * residual(_p, _q), _from_p]),
            "rows: p; q; kept; written, right; written, from p",
            top=0.6,
        ),
        kit.bars(
            {
                "accepted": _kept.sum(),
                "right rule": abs(_kept + _refused * residual(_p, _q) - _p).sum() / 2,
                "drawing from p": abs(_from_p - _p).sum() / 2,
            },
            "share accepted; how far from p each rule ends",
        ),
    )
    return


@app.cell(hide_code=True)
def ask_2(step_2_done):
    step_2_done
    mo.md(r"""
    ### Exercise 2: the law of the second draw

    Token $x$ is drafted *and* kept with probability $q(x)\min(1,p(x)/q(x)) = \min(p(x), q(x))$. What is lacking to
    $p(x)$ must come from the second draw. The check computes the law of what is written with your answer, and compares
    it with $p$: there is only one law that passes (Leviathan et al. 2023, algorithm 1).
    """)
    return


@app.function
# EXERCISE 2. `p` and `q` are the laws of the model and of the draft, NumPy arrays (tokens,)
# that are not equal. Return the law, adding up to 1, from which a token is drawn in place
# of a refused one.
def second_law(p, q):
    raise kit.Todo


@app.cell(hide_code=True)
def check_2(step_2_done):
    step_2_done

    def _judge(_law, _p, _q):
        """The law of what is written, summed over each token that may be drafted."""
        _law = np.asarray(_law, dtype=float)
        if _law.shape != _p.shape:
            raise ValueError(f"expected one probability for each token, {_p.shape}, found {_law.shape}")
        _total = np.zeros(len(_p))
        for _drafted in range(len(_p)):
            _keep = min(1.0, _p[_drafted] / _q[_drafted]) if _q[_drafted] else 0.0
            _total[_drafted] += _q[_drafted] * _keep
            _total += _q[_drafted] * (1 - _keep) * _law
        return _total

    _cases = []
    for _label, _p, _q in [
        ("four tokens", [0.5, 0.3, 0.15, 0.05], [0.18, 0.14, 0.19, 0.49]),
        ("two tokens", [0.9, 0.1], [0.4, 0.6]),
        ("nothing in common", [0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.25, 0.75]),
        ("a model that is certain", [0.0, 1.0, 0.0], [0.3, 0.4, 0.3]),
    ]:
        _p, _q = np.array(_p), np.array(_q)
        _cases.append((f"{_label}: what is written", (_p, _q), _p))
    result_2 = kit.check(
        "second_law",
        second_law,
        _cases,
        tolerance=1e-6,
        mistakes=[
            ("Drawn from p, tokens that the draft likes better come too often.", lambda _p, _q: _p),
            (
                "That does not add up to 1: divide by its sum.",
                lambda _p, _q: np.maximum(_p - _q, 0),
            ),
            (
                "Where the draft had more than p, nothing is lacking: a difference below 0 counts as 0.",
                lambda _p, _q: abs(_p - _q) / abs(_p - _q).sum(),
            ),
            (
                "That is what q has over p: the tokens that came too often already.",
                lambda _p, _q: np.maximum(_q - _p, 0) / np.maximum(_q - _p, 0).sum(),
            ),
            ("That draws from the draft again.", lambda _p, _q: _q),
        ],
        judge=_judge,
    )
    result_2
    return (result_2,)


@app.cell(hide_code=True)
def help_2(result_2):
    help_for_2 = kit.help(
        result_2,
        hint="What does `p - np.minimum(p, q)` say of each token? And what must a law add up to?",
        solution="""
        def second_law(p, q):
            lacking = np.maximum(p - q, 0)
            return lacking / lacking.sum()
        """,
    )
    help_for_2
    return


@app.cell(hide_code=True)
def step_3(step_2_done):
    step_2_done
    mo.md(r"""
    ## 3. What it is worth

    If each drafted token is accepted with probability $a$, a round of $k$ drafts writes
    $1 + a + a^2 + \dots + a^k$ tokens on average. It takes $k$ steps through the $e$ blocks of the draft. Then comes a
    check; it shares the cache with the draft, so that only the last token still has to go through those $e$, and all of
    them through the $8-e$ above. A small step is spent on fetching weights: one token or five make little difference.
    So a round costs $k\,e + 8$ blocks in a row; without drafts, each token costs 8.
    """)
    return


@app.cell(hide_code=True)
def predict_3(step_2_done):
    step_2_done
    options_3 = {
        "8 / 6: each token still climbs 6 blocks alone": """a round of k drafts writes k + 1 tokens and costs 6 k + 8
            blocks: for long drafts, 8 / 6 at most. A good draft must be cheap above all.""",
        "any number, if drafts are long": """each drafted token costs 6 blocks of its own, however long the draft.""",
        "2: half of the passes are saved": """nearly all passes of 8 blocks are saved. But passes of 6 blocks came in
            their place.""",
    }
    guess_3 = kit.predict(
        "A draft by 6 of 8 blocks, whose tokens are always accepted: how much faster, at most?", options_3
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
    ahead = mo.ui.slider(1, 12, value=3, label="tokens drafted ahead", show_value=True)
    ahead
    return (ahead,)


@app.cell(hide_code=True)
def see_3(ahead):
    _agreement = kit.once(agreement_of_exits)
    _lengths = np.arange(1, 13)
    _faster = {
        f"{_e} blocks": np.array([8 * sum(_a**_i for _i in range(_k + 1)) / (_k * _e + 8) for _k in _lengths])
        for _e, _a in _agreement.items()
    }
    kit.row(
        kit.lines(
            _faster | {"no draft": np.ones(12)},
            "times as fast, by the formula",
            x=_lengths,
            x_label="tokens drafted ahead",
            mark=ahead.value,
        ),
        kit.bars(
            {f"{_e} blocks": 100 * _a for _e, _a in _agreement.items()},
            "drafts that the model would write too, percent: the a of the curves",
        ),
    )
    return


@app.cell(hide_code=True)
def step_4(step_3_done):
    step_3_done
    mo.md(r"""
    ## 4. Nothing changed

    `tk.generate(model, ids, draft=n)` is the real thing: a shared cache, checks that run the upper blocks only, your
    two rules in `tinykron/decode/speculate.py`. Choose a draft, good or bad. It decides how fast the text comes, never
    what it says.

    One thing can: a pass of five tokens may round otherwise in the last bit than a pass of one, and two tokens may be
    as close as that. Where even this must not be, `tk.bit_exact(model)` computes every token alike.
    """)
    return


@app.cell(hide_code=True)
def slide_4(step_3_done):
    step_3_done
    draft = mo.ui.slider(1, 7, value=2, label="blocks of the draft", show_value=True)
    draft
    return (draft,)


@app.cell(hide_code=True)
def plain_4(model, prompt, step_3_done):
    step_3_done
    plain = tk.generate(model, prompt, LENGTH, stop=())
    return (plain,)


@app.cell(hide_code=True)
def see_4(draft, model, plain, prompt):
    _trace = tk.Trace()
    _text = tk.generate(model, prompt, LENGTH, draft=draft.value, draft_length=3, stop=(), trace=_trace)
    kit.bars(
        {
            "tokens written": LENGTH,
            "rounds": _trace.rounds,
            "drafted": int(_trace.drafted.sum()),
            "accepted": int(_trace.accepted.sum()),
            "tokens that differ": int((_text != plain).sum()),
        },
        f"a draft of {draft.value} blocks, three tokens ahead",
    )
    return


@app.cell(hide_code=True)
def finish(result_1, result_2):
    lesson_done = kit.finish(
        result_1,
        result_2,
        text="""
        **Done.** A draft may be wrong as often as it likes: checked tokens are the model's own, one by one or in law.
        Good drafts are cheap first, and right second. You have now made a model shallower and its matrices smaller.
        Next, both at once: `tinykron lesson 20`.
        """,
    )
    lesson_done
    return


if __name__ == "__main__":
    app.run()
