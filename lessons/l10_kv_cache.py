import marimo

__generated_with = "0.25.2"
app = marimo.App(width="medium", app_title="10 The KV cache")

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
    # 10 · The KV cache

    **You build** one step of attention with a memory, and a loop that writes with it.

    **You see** what a growing text leaves unchanged, and what the memory costs.

    **You need** lesson 8: attention, and the mask that hides the future.
    """)
    return


@app.cell(hide_code=True)
def models():
    gpt2, llama, bert = (tk.load(weights_folder(name)) for name in ("gpt2-tiny", "llama-tiny", "bert-tiny"))
    text = gpt2.tokenizer.encode("If the optional argument is not given, the default value").ids
    story = tk.generate(gpt2, text, 10 if kit.fast() else 40)[0].tolist()
    return bert, gpt2, llama, story, text


@app.cell(hide_code=True)
def step_1():
    mo.md(r"""
    ## 1. Writing repeats itself

    A language model writes one word at a time: run the text, take the likeliest next word, put it at the end, run the
    text again. Each run goes through all positions, nearly all of which were there before.

    Drag how many words are written. The dashed line stands there; the bars count how often a position went through
    the model.
    """)
    return


@app.cell(hide_code=True)
def slide_1():
    written = mo.ui.slider(1, 40, value=30, label="words to write", show_value=True)
    written
    return (written,)


@app.cell(hide_code=True)
def see_1(gpt2, story, text, written):
    _counts = np.arange(1, 41)
    _again = [sum(range(len(text), len(text) + _count)) for _count in _counts]
    _once = [len(text) + _count - 1 for _count in _counts]
    _says = gpt2.tokenizer.decode(story[: len(text) + written.value]).replace("\n", " ")
    mo.vstack(
        [
            kit.row(
                kit.lines(
                    {"the whole text, every time": _again, "every position once": _once},
                    "positions that went through the model",
                    x=_counts,
                    x_label="words written",
                    mark=written.value,
                ),
                kit.bars(
                    {"the whole text, every time": _again[written.value - 1], "once": _once[written.value - 1]},
                    "positions, where the slider stands",
                    width=420,
                ),
            ),
            mo.md(f"*{_says}*"),
        ]
    )
    return


@app.cell(hide_code=True)
def step_2():
    mo.md(r"""
    ## 2. What may be kept

    Whether the work can be saved depends on what a new word changes. In a block, every position has a query, a key and
    a value; the query is used once, the key and the value by every later position.
    """)
    return


@app.cell(hide_code=True)
def predict_2():
    options_2 = {
        "none": "they depend on their own position and earlier ones: the mask hides the future, in every block.",
        "all": "so it is in BERT, where every position sees every other. A causal model sees the past only.",
        "those of the word before": "no position sees a later one, not even the next.",
    }
    guess_2 = kit.predict(
        "A word is put at the end of a text. Which of the earlier keys and values of GPT-2 change?", options_2
    )
    guess_2
    return guess_2, options_2


@app.cell(hide_code=True)
def reveal_2(guess_2, options_2):
    step_2_done = kit.reveal(guess_2, options_2)
    step_2_done
    return (step_2_done,)


@app.cell(hide_code=True)
def slide_2(step_2_done, text):
    step_2_done
    appended = mo.ui.slider(0, len(text) - 5, value=3, label="words put behind the first five", show_value=True)
    appended
    return (appended,)


@app.cell(hide_code=True)
def see_2(appended, bert, gpt2, text):
    def _keys(_model, _ids):
        with tk.no_grad():
            return _model([_ids], attention_heads=True).attention_heads[-1].keys.numpy()[0, 0]

    _pictures, _changes = [], {}
    for _label, _model in (("GPT-2", gpt2), ("BERT, no mask", bert)):
        _before, _after = _keys(_model, text[:5]), _keys(_model, text[: 5 + appended.value])
        _change = abs(_after[:5] - _before).max()
        _changes[_label] = 0.0 if _change < 1e-4 else _change  # less is rounding
        _pictures.append(kit.heat(_after, f"{_label}: keys of a head, a row for each word", size=210))
    kit.row(*_pictures, kit.bars(_changes, "largest change of the first five rows"))
    return


@app.cell(hide_code=True)
def step_3(step_2_done):
    step_2_done
    mo.md(r"""
    ## 3. One step with a memory

    So keep them: a **cache** of keys and values for each head. A new word brings one query, one key, one value. Its
    key and value join the cache, and its query looks at all that is there. No mask is needed: the cache holds the past
    only.

    ### Exercise 1: attend to the cache
    """)
    return


@app.function
def softmax(x):
    """The softmax of each row: the library's."""
    return tk.fused.softmax(x).data


@app.function
# EXERCISE 1. query, key and value are those of the new position, (1, K); keys and values what
# the cache holds, (S, K). S may be 0. Return the new position's answer (1, K), then all keys
# and all values, (S + 1, K), as new arrays. Useful: xp.concatenate([a, b]) puts rows below
# each other (`xp` is NumPy, or its twin on a GPU).
def attend_next(query, key, value, keys, values):
    raise kit.Todo


@app.cell(hide_code=True)
def check_1(step_2_done):
    step_2_done

    def _all_at_once(_q, _k, _v):
        """Causal attention over the whole text, from one query to the last: keep the last answer."""
        _answers = tk.attention.attention(*(_x[None, None] for _x in (_q, _k, _v)), causal=True)
        return _answers.data[0, 0, -1:], _k, _v

    _draws = np.random.default_rng(10)
    _cases = []
    for _s, _k in [(4, 3), (0, 5), (1, 8), (6, 1)]:
        _q, _keys, _values = (
            xp.asarray(_draws.normal(size=(_s + 1, _k)).astype(np.float32) * _scale) for _scale in (2.0, 2.0, 1.0)
        )
        _given = (_q[_s:], _keys[_s:], _values[_s:], _keys[:_s], _values[:_s])
        _cases.append((f"{_s} in the cache, K = {_k}", _given, _all_at_once(_q, _keys, _values)))

    def _put(_first, _second):
        return xp.concatenate([_first, _second])

    def _mixed(_query, _keys, _values):
        return softmax(_query @ _keys.T / _query.shape[1] ** 0.5) @ _values

    result_1 = kit.check(
        "attend_next",
        attend_next,
        _cases,
        mistakes=[
            (
                "The new position sees itself, too: its key and value join first.",
                lambda _q, _k, _v, _ks, _vs: (_mixed(_q, _ks, _vs), _put(_ks, _k), _put(_vs, _v)),
            ),
            (
                "The new position stands behind the others, not before them.",
                lambda _q, _k, _v, _ks, _vs: (_mixed(_q, _put(_ks, _k), _put(_vs, _v)), _put(_k, _ks), _put(_v, _vs)),
            ),
            (
                "The scores are not divided by √K.",
                lambda _q, _k, _v, _ks, _vs: (
                    softmax(_q @ _put(_ks, _k).T) @ _put(_vs, _v),
                    _put(_ks, _k),
                    _put(_vs, _v),
                ),
            ),
            (
                "The answer is the new value alone: the query must look at the whole cache.",
                lambda _q, _k, _v, _ks, _vs: (_v, _put(_ks, _k), _put(_vs, _v)),
            ),
            (
                "The cache is handed back as it was: the next step would miss this position.",
                lambda _q, _k, _v, _ks, _vs: (_mixed(_q, _put(_ks, _k), _put(_vs, _v)), _ks, _vs),
            ),
        ],
    )
    result_1
    return (result_1,)


@app.cell(hide_code=True)
def help_1(result_1):
    help_for_1 = kit.help(
        result_1,
        hint="What are all keys and all values, once this position is in? The rest is the head of lesson 8, unmasked.",
        solution="""
        def attend_next(query, key, value, keys, values):
            keys, values = xp.concatenate([keys, key]), xp.concatenate([values, value])
            scores = query @ keys.T / query.shape[1] ** 0.5
            return softmax(scores) @ values, keys, values
        """,
    )
    help_for_1
    return


@app.cell(hide_code=True)
def step_4(result_1):
    kit.gate(result_1, "Exercise 1 opens the next step.")
    mo.md(r"""
    ## 4. Writing with a cache

    tinykron's models do this in every block. `cache = model.cache(capacity)` makes an empty one, with room for so many
    positions; `model([new], cache=cache)` runs the ids `new` as the positions behind what the cache holds, and stores
    them. The last row of its logits says what comes next.

    ### Exercise 2: the loop

    Run the prompt once; then, each time, only the word that is new.
    """)
    return


@app.function
# EXERCISE 2. Return a new list: `ids`, and `count` more, each the likeliest after those
# before it. model([new], cache=cache).logits.numpy()[0, -1] is the row of scores for what
# comes after all that the cache holds then, the ids `new` at its end.
def write(model, ids, count):
    raise kit.Todo


@app.cell(hide_code=True)
def check_2(gpt2, llama, result_1, text):
    kit.gate(result_1, "Exercise 1 comes first.")
    _fine = "every position ran once"

    class _Counting:
        """A model that counts the positions that it runs."""

        def __init__(self, _model):
            self.model, self.positions, self.cached = _model, 0, True

        def __call__(self, _ids, *_more, **_options):
            self.positions += len(_ids[0])
            self.cached &= _options.get("cache") is not None
            with tk.no_grad():
                return self.model(_ids, *_more, **_options)

        def __getattr__(self, _name):
            return getattr(self.model, _name)

    def _from_the_start(_model, _ids, _count):
        """Run the whole text for every word, without a cache."""
        for _ in range(_count):
            _ids = [*_ids, int(_model([_ids]).logits.numpy()[0, -1].argmax())]
        return _ids

    def _judge(_answer, _model, _ids, _count):
        _least = len(_ids) + _count
        _ran = f"{_model.positions} positions ran, for {_least} words, with{'' if _model.cached else 'out'} a cache"
        return np.array(_answer), _fine if _model.positions <= _least else _ran

    def _case(_label, _model, _ids, _count):
        _wanted = np.array(_from_the_start(_Counting(_model), _ids, _count))
        return _label, lambda: (_Counting(_model), list(_ids), _count), (_wanted, _fine)

    def _wrongly(_fed, _kept=True, _rows=-1):
        """Make a loop that feeds `_fed(ids)` to a cache, or to a new one each time."""

        def _written(_model, _ids, _count):
            _prompt, _cache = len(_ids), _model.cache(400)
            for _ in range(_count):
                _cache = _cache if _kept else _model.cache(400)
                _new = _ids if len(_ids) == _prompt and _kept else _fed(_ids)
                _ids = [*_ids, int(_model([_new], cache=_cache).logits.numpy()[0, _rows].argmax())]
            return _ids

        return _written

    def _only_new(_model, _ids, _count):
        return _wrongly(lambda _all: _all[-1:])(_model, _ids, _count)[len(_ids) :]

    result_2 = kit.check(
        "write",
        write,
        [
            _case("a GPT-2, 11 words and 4 more", gpt2, text, 4),
            _case("a LLaMA, 4 words and 3 more", llama, text[:4], 3),
            _case("one word and 3 more", gpt2, text[:1], 3),
            _case("one more word", gpt2, text[:7], 1),
        ],
        judge=_judge,
        mistakes=[
            ("The text is right, and every word took a run of all words: use the cache.", _from_the_start),
            (
                "The whole text goes into the cache again, behind what it holds: feed only what is new.",
                _wrongly(lambda _ids: _ids),
            ),
            (
                "The model sees the last word alone: the cache must be the same from run to run.",
                _wrongly(lambda _ids: _ids[-1:], _kept=False),
            ),
            ("The new words alone come back; return them behind `ids`.", _only_new),
            (
                "The first row of the logits says what comes after the first word; the last one is wanted.",
                _wrongly(lambda _ids: _ids[-1:], _rows=0),
            ),
        ],
    )
    result_2
    return (result_2,)


@app.cell(hide_code=True)
def help_2(result_2):
    help_for_2 = kit.help(
        result_2,
        hint="Before the loop, what is new is the whole prompt. After each run, what is new is the one id it chose.",
        solution="""
        def write(model, ids, count):
            cache = model.cache(len(ids) + count)
            new = ids
            for _ in range(count):
                logits = model([new], cache=cache).logits.numpy()[0, -1]
                new = [int(logits.argmax())]
                ids = ids + new
            return ids
        """,
    )
    help_for_2
    return


@app.cell(hide_code=True)
def step_5(result_2):
    kit.gate(result_2, "Exercise 2 opens the last step.")
    mo.md(r"""
    ## 5. What the memory costs

    Time is bought with memory: two vectors for each position, each block, each head. With long texts the cache outgrows
    everything else, so newer models let several query heads share one key and value head: LLaMA 3 has 32 query heads
    and 8 of keys and values (the curves: 32 blocks, heads of 128 numbers, 2 bytes a number). Our little LLaMA does the
    same with 4 and 2; in the last picture the caches of two shipped models were filled and counted.
    """)
    return


@app.cell(hide_code=True)
def slide_5(result_2):
    kit.gate(result_2, "")
    length = mo.ui.slider(steps=[1024, 2048, 4096, 8192, 16384, 32768], value=8192, label="positions", show_value=True)
    length
    return (length,)


@app.cell(hide_code=True)
def see_5(gpt2, length, llama, text):
    _lengths = [1024, 2048, 4096, 8192, 16384, 32768]

    def _gigabytes(_heads, _positions):
        """Of 32 blocks with heads 128 wide, two bytes a number, as LLaMA 2 7B and LLaMA 3 8B have them."""
        return 2 * 32 * _heads * 128 * _positions * 2 / 1e9

    _held = {}
    for _label, _model in (("gpt2-tiny: 4 heads", gpt2), ("llama-tiny: 2 of 4", llama)):
        _cache = _model.cache(len(text))
        with tk.no_grad():
            _model([text], cache=_cache)
        _held[_label] = sum(_layer.keys.size + _layer.values.size for _layer in _cache.layers) / len(text)
    kit.row(
        kit.lines(
            {f"{_heads} heads": [_gigabytes(_heads, _n) for _n in _lengths] for _heads in (32, 8)},
            "gigabytes of cache for one text",
            x=_lengths,
            x_label="positions",
            mark=length.value,
        ),
        kit.bars(
            {f"{_heads} key heads": _gigabytes(_heads, length.value) for _heads in (32, 8)},
            "gigabytes, where the slider stands",
        ),
        kit.bars(_held, "numbers kept for one position", width=380),
    )
    return


@app.cell(hide_code=True)
def finish(result_1, result_2):
    lesson_done = kit.finish(
        result_1,
        result_2,
        text="""
        **Done.** What the mask hides cannot change the past, so keys and values are kept. `KVCache` in
        `tinykron/models/transformer.py` is that memory, `tinykron/decode/generate.py` the loop. You have a transformer;
        now it gets small: `tinykron lesson 11`.
        """,
    )
    lesson_done
    return


if __name__ == "__main__":
    app.run()
