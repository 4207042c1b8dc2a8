import marimo

__generated_with = "0.25.2"
app = marimo.App(width="medium", app_title="8 Attention, a head at a time")

with app.setup(hide_code=True):
    import marimo as mo
    import numpy as np

    import tinykron as tk
    from tinykron import kit
    from tinykron.data.shipped import weights_folder

    LESSON = 3  # the version of this lesson
    xp = kit.array_module()


@app.cell(hide_code=True)
def title():
    mo.md(r"""
    # 8 · Attention, a head at a time

    **You build** one head of attention, and the mask that hides the future.

    **You see** where the heads of a real little GPT-2 look, and your function take their place.

    **You need** matrix products and the softmax (lessons 4 and 6).
    """)
    return


@app.cell(hide_code=True)
def step_1():
    mo.md(r"""
    ## 1. A soft look-up

    Each position of a text carries a **key**, which says what it is, and a **value**, which is what it has to give. One
    that wants to know something sends a **query**. Query times key is a *score*: large where the two point the same
    way. The softmax turns scores into weights, and the answer is the values' mean under these weights.

    Turn the query, and watch which value it picks up.
    """)
    return


@app.cell(hide_code=True)
def slide_1():
    angle = mo.ui.slider(0, 360, 15, value=30, label="direction of the query, in degrees", show_value=True)
    angle
    return (angle,)


@app.cell(hide_code=True)
def see_1(angle):
    _turn = np.deg2rad(angle.value)
    _query = xp.asarray(np.array([[3 * np.cos(_turn), 3 * np.sin(_turn)]], np.float32))
    _keys = xp.asarray(np.array([[1, 0], [0, 1], [-1, 0], [0, -1]], np.float32))
    _values = xp.asarray(np.array([[10], [20], [30], [40]], np.float32))
    _weights = kit.host(softmax(_query @ _keys.T))[0]
    _answer = float(_weights @ kit.host(_values)[:, 0])
    kit.row(
        kit.table(_query, "the query"),
        kit.table(_keys, "keys, one a row"),
        kit.table(_values, "their values", digits=0),
        kit.bars(
            {f"weight of key {_i}": _w for _i, _w in enumerate(_weights)}, "softmax of query times key", width=300
        ),
        kit.bars({"the mean of the values": _answer, "largest value": 40.0}, "the answer", width=320),
    )
    return


@app.function
def softmax(x):
    """The softmax of each row: the library's, which lesson 6 built."""
    return tk.fused.softmax(x).data


@app.cell(hide_code=True)
def step_2():
    mo.md(r"""
    ## 2. Why scores are divided

    A score is a sum of $K$ products, $K$ the width of a head. Random queries and keys of many numbers have large
    scores, by chance alone.
    """)
    return


@app.cell(hide_code=True)
def predict_2():
    options_2 = {
        "nearly all weight goes to one key": "the softmax sees differences, and these grow with the scores.",
        "the weights stay as they are": """the softmax ignores what is *added* to all scores. A factor it does not
            ignore.""",
        "all keys get the same weight": "that happens when all scores shrink toward zero, not when they grow.",
    }
    guess_2 = kit.predict("All scores become ten times as large. What do the weights do?", options_2)
    guess_2
    return guess_2, options_2


@app.cell(hide_code=True)
def reveal_2(guess_2, options_2):
    step_2_done = kit.reveal(guess_2, options_2)
    step_2_done
    return (step_2_done,)


@app.cell(hide_code=True)
def tell_2(step_2_done):
    step_2_done
    mo.md(r"""
    A head whose weight sits on one key hardly learns: the softmax is flat there, its gradient nearly zero. The sum of
    $K$ products of random numbers around 0, each about 1 in size, is about $\sqrt{K}$ large. So attention divides by
    that. Drag the width, and compare; each step to the right doubles it.
    """)
    return


@app.cell(hide_code=True)
def slide_2(step_2_done):
    step_2_done
    head_width = mo.ui.slider(steps=[1, 2, 4, 8, 16, 32, 64, 128, 256], value=64, label="head width K", show_value=True)
    head_width
    return (head_width,)


@app.cell(hide_code=True)
def see_2(head_width):
    _draws = np.random.default_rng(3)
    _queries, _keys = (_draws.normal(size=_shape).astype(np.float32) for _shape in ((100, 256), (8, 256)))
    _widths = [1, 2, 4, 8, 16, 32, 64, 128, 256]
    _largest = {"as they are": [], "divided by √K": []}
    for _k in _widths:
        _scores = xp.asarray(_queries[:, :_k] @ _keys[:, :_k].T)
        for _name, _scale in (("as they are", 1.0), ("divided by √K", _k**-0.5)):
            _weights = kit.host(softmax(_scores * _scale))
            _largest[_name].append(_weights.max(axis=1).mean())
    _scores = xp.asarray(_queries[:16, : head_width.value] @ _keys[:, : head_width.value].T)
    kit.row(
        kit.heat(softmax(_scores), "weights: scores as they are", top=1.0),
        kit.heat(softmax(_scores * head_width.value**-0.5), "weights: scores divided by √K", top=1.0),
        kit.lines(
            _largest,
            "the largest of 8 weights, on average",
            x=_widths,
            x_label="head width K",
            log_x=True,
            mark=head_width.value,
        ),
    )
    return


@app.cell(hide_code=True)
def step_3(step_2_done):
    step_2_done
    mo.md(r"""
    ## 3. One head is two products

    All queries at once: stack them as rows. Then all scores are one product of matrices, and all answers another:

    $$\mathrm{softmax}\left(\frac{q\,k^\top}{\sqrt{K}}\right) v$$

    The names say the shapes: `q_TK` has `T` queries of `K` numbers, `k_SK` and `v_SK` have `S` keys and values.

    ### Exercise 1: a head
    """)
    return


@app.function
# EXERCISE 1. Return the answers to all queries, (T, K). `softmax(x)` above takes the softmax
# of each row of a matrix.
def attend(q_TK, k_SK, v_SK):
    raise kit.Todo


@app.cell(hide_code=True)
def check_1(step_2_done):
    step_2_done

    def _one_by_one(_q, _k, _v):
        """Answer every query alone, key by key."""
        _q, _k, _v = (_array.astype(np.float64) for _array in (_q, _k, _v))
        _answers = np.zeros((len(_q), _v.shape[1]))
        for _t, _query in enumerate(_q):
            _shares = [np.exp(sum(_query * _key) / _q.shape[1] ** 0.5) for _key in _k]
            for _share, _value in zip(_shares, _v, strict=True):
                _answers[_t] += _share / sum(_shares) * _value
        return _answers.astype(np.float32)

    _draws = np.random.default_rng(8)
    _cases = []
    for _t, _s, _k in [(3, 5, 4), (1, 4, 2), (4, 1, 3), (5, 5, 8)]:
        _given = [_draws.normal(size=_shape).astype(np.float32) for _shape in ((_t, _k), (_s, _k), (_s, _k))]
        _label = f"{_t} queries, {_s} keys, K = {_k}"
        _cases.append((_label, tuple(map(xp.asarray, _given)), xp.asarray(_one_by_one(*_given))))
    result_1 = kit.check(
        "attend",
        attend,
        _cases,
        mistakes=[
            ("The scores are not divided by √K.", lambda _q, _k, _v: softmax(_q @ _k.T) @ _v),
            ("The scores are divided by K, not by its root.", lambda _q, _k, _v: softmax(_q @ _k.T / _q.shape[1]) @ _v),
            (
                "The softmax went over the queries: the weights of one query must add up to 1.",
                lambda _q, _k, _v: softmax(_k @ _q.T / _q.shape[1] ** 0.5).T @ _v,
            ),
            ("There is no softmax.", lambda _q, _k, _v: _q @ _k.T / _q.shape[1] ** 0.5 @ _v),
            (
                "√K comes from the width of a head, not from the number of keys.",
                lambda _q, _k, _v: softmax(_q @ _k.T / len(_k) ** 0.5) @ _v,
            ),
            (
                "That answers with the keys; what a position gives is its value.",
                lambda _q, _k, _v: softmax(_q @ _k.T / _q.shape[1] ** 0.5) @ _k,
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
        The scores are a matrix with a row for each query and a column for each key, `(T, S)`. Which product of `q_TK`
        and `k_SK` has that shape? Which product brings it to `(T, K)`?
        """,
        solution="""
        def attend(q_TK, k_SK, v_SK):
            scores_TS = q_TK @ k_SK.T / q_TK.shape[1] ** 0.5
            return softmax(scores_TS) @ v_SK
        """,
    )
    help_for_1
    return


@app.cell(hide_code=True)
def step_4(result_1):
    kit.gate(result_1, "Exercise 1 opens the next step.")
    mo.md(r"""
    ## 4. No look at the future

    A model that predicts the next word must not see it. A **causal** head lets position $t$ look at positions up to $t$
    only, itself among them. Below are the weights of real heads: a GPT-2 of 8 blocks with 4 heads each, which came with
    tinykron and has read Python's documentation. Row $t$ shows where position $t$ looks; the bars show the last row.
    """)
    return


@app.cell(hide_code=True)
def model_4(result_1):
    kit.gate(result_1, "")
    gpt2 = tk.load(weights_folder("gpt2-tiny"))
    text = gpt2.tokenizer.encode("Return a copy of the string with all the characters in the string")
    with tk.no_grad():
        seen = gpt2([text.ids], attention_scores=True, attention_heads=True)
    return gpt2, seen, text


@app.cell(hide_code=True)
def slide_4(gpt2):
    which_head = mo.ui.slider(0, 4 * len(gpt2.blocks) - 1, value=1, label="which head", show_value=True)
    which_head
    return (which_head,)


@app.cell(hide_code=True)
def see_4(seen, text, which_head):
    _block, _head = divmod(which_head.value, 4)
    _scores = kit.host(seen.attention_scores[_block])[0, _head]
    _weights = softmax(np.where(np.tri(len(_scores)) > 0, _scores, -np.inf).astype(np.float32))
    _words = [_token.replace("Ġ", "") for _token in text.tokens]
    kit.row(
        kit.heat(_weights, f"block {_block}, head {_head}: who looks (down) at whom (across)", size=260, top=1.0),
        kit.bars(
            {f"{_i} {_word}": _w for _i, (_word, _w) in enumerate(zip(_words, _weights[-1], strict=True))},
            f'where the last word, "{_words[-1]}", looks',
        ),
    )
    return


@app.cell(hide_code=True)
def ask_2(result_1):
    kit.gate(result_1, "Exercise 1 comes first.")
    mo.md(r"""
    ### Exercise 2: hide the future

    The weights of what may be seen must still add up to 1. So hide a key *before* the softmax: give it a score so low
    that its weight is zero.

    There may be fewer queries than keys: when a text is continued, the `T` queries are the **last** `T` of the `S`
    positions.
    """)
    return


@app.function
# EXERCISE 2. Scores (T, S) -> weights (T, S): zero for the future, each row adding up to 1.
# Useful: xp.arange(n), a comparison of a column x[:, None] with a row, xp.where(condition, x,
# y), softmax(x). `xp` is NumPy, or its twin on a GPU (lesson 7); on a CPU, `np` does as well.
def causal_weights(scores_TS):
    raise kit.Todo


@app.cell(hide_code=True)
def check_2(result_1):
    kit.gate(result_1, "Exercise 1 comes first.")

    def _row_by_row(_scores):
        """Cut the future off each row, and take the softmax of what is left."""
        _wanted = np.zeros_like(_scores)
        for _t, _row in enumerate(_scores):
            _past = _row[: len(_row) - len(_scores) + _t + 1].astype(np.float64)
            _wanted[_t, : len(_past)] = np.exp(_past) / np.exp(_past).sum()
        return _wanted

    _draws = np.random.default_rng(9)
    _cases = []
    for _t, _s in [(4, 4), (2, 5), (1, 3), (1, 1)]:
        _scores = _draws.normal(size=(_t, _s)).astype(np.float32)
        _cases.append((f"{_t} queries, {_s} keys", (xp.asarray(_scores),), xp.asarray(_row_by_row(_scores))))

    def _seen(_x, _shift):
        return xp.arange(_x.shape[1]) <= xp.arange(_x.shape[0])[:, None] + _shift

    def _hidden(_x, _shift):
        return softmax(xp.where(_seen(_x, _shift), _x, -1e9).astype(_x.dtype))

    result_2 = kit.check(
        "causal_weights",
        causal_weights,
        _cases,
        mistakes=[
            ("Nothing is hidden.", softmax),
            (
                "The future is hidden after the softmax has given it a share: the rows add up to less than 1.",
                lambda _x: xp.where(_seen(_x, _x.shape[1] - _x.shape[0]), softmax(_x), 0.0).astype(_x.dtype),
            ),
            (
                "A score of zero is a score like others: its weight is not zero.",
                lambda _x: softmax(xp.where(_seen(_x, _x.shape[1] - _x.shape[0]), _x, 0.0).astype(_x.dtype)),
            ),
            ("A position sees itself, too.", lambda _x: _hidden(_x, _x.shape[1] - _x.shape[0] - 1)),
            ("One key of the future is still seen.", lambda _x: _hidden(_x, _x.shape[1] - _x.shape[0] + 1)),
            ("The queries are the *last* T of the S positions, not the first.", lambda _x: _hidden(_x, 0)),
            (
                "That hides the past, and shows the future.",
                lambda _x: softmax(xp.where(_seen(_x, _x.shape[1] - _x.shape[0] - 1), -1e9, _x).astype(_x.dtype)),
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
        Number the keys 0 to S - 1. Which number has query 0, if the last query has number S - 1? Then compare a column
        of the queries' numbers with a row of the keys' numbers.
        """,
        solution="""
        def causal_weights(scores_TS):
            queries, keys = scores_TS.shape
            query_T = xp.arange(queries) + keys - queries
            seen_TS = xp.arange(keys) <= query_T[:, None]
            return softmax(xp.where(seen_TS, scores_TS, -1e9).astype(scores_TS.dtype))
        """,
    )
    help_for_2
    return


@app.cell(hide_code=True)
def step_5(result_2):
    kit.gate(result_2, "Exercise 2 opens the last step.")
    mo.md(r"""
    ## 5. Several heads, side by side

    One head can look at one kind of thing. A position comes as a vector $x$ of $D$ numbers; three matrices make of it a
    query, a key and a value, $D$ numbers each. These are cut into heads of $K$ numbers, each of which attends alone;
    their answers are laid side by side again, and a fourth matrix mixes them.

    Here are four heads of one block, with **your** weights; the bar compares your answers with those of
    `tinykron/attention.py`, which does the same with all heads at once and a gradient besides.
    """)
    return


@app.cell(hide_code=True)
def slide_5(gpt2, result_2):
    kit.gate(result_2, "")
    which_block = mo.ui.slider(0, len(gpt2.blocks) - 1, value=3, label="which block", show_value=True)
    which_block
    return (which_block,)


@app.cell(hide_code=True)
def see_5(result_2, seen, which_block):
    _heads = seen.attention_heads[which_block.value]
    _library = tk.attention.attention(_heads.queries, _heads.keys, _heads.values, causal=True)
    _pictures, _furthest = [], 0.0
    for _h in range(4) if result_2 else ():
        _weights = causal_weights(seen.attention_scores[which_block.value].data[0, _h])
        _mine = _weights @ _heads.values.data[0, _h]
        _furthest = max(_furthest, float(abs(_mine - _library.data[0, _h]).max()))
        _pictures.append(kit.heat(_weights, f"head {_h}, by your function", size=150, top=1.0))
    _compared = {
        "largest answer": float(abs(_library.data).max()),
        "largest difference": _furthest,
    }
    kit.row(*_pictures, kit.bars(_compared, "your answers beside the library's", width=380))
    return


@app.cell(hide_code=True)
def finish(result_1, result_2):
    lesson_done = kit.finish(
        result_1,
        result_2,
        text="""
        **Done.** A head is two products with a softmax between them; a mask keeps it honest; a layer has several, side
        by side. `tinykron/attention.py` is yours to read now. Next, the block around it: `tinykron lesson 9`.
        """,
    )
    lesson_done
    return


if __name__ == "__main__":
    app.run()
