import marimo

__generated_with = "0.25.2"
app = marimo.App(width="medium", app_title="9 The block, and weights by name")

with app.setup(hide_code=True):
    import copy

    import marimo as mo
    import numpy as np

    import tinykron as tk
    from tinykron import kit
    from tinykron.checkpoint.folder import FAMILIES
    from tinykron.checkpoint.safetensors_file import contents
    from tinykron.data.shipped import weights_folder

    LESSON = 3  # the version of this lesson
    xp = kit.array_module()


@app.cell(hide_code=True)
def title():
    mo.md(r"""
    # 9 · The block, and weights by name

    **You build** the block that a transformer repeats, and a search for a matrix that was loaded the wrong way round.

    **You see** a guess ripen from block to block, and what one transposed matrix does to it.

    **You need** lesson 8: attention.
    """)
    return


@app.cell(hide_code=True)
def models():
    gpt2, llama, bert = (tk.load(weights_folder(name)) for name in ("gpt2-tiny", "llama-tiny", "bert-tiny"))
    text = gpt2.tokenizer.encode("If the optional argument is not given, the default value").ids
    return bert, gpt2, llama, text


@app.cell(hide_code=True)
def step_1():
    mo.md(r"""
    ## 1. A stream that blocks add to

    Every position of a text has a vector $x$. A block reads it, and *adds* something to it, twice: what attention
    gathered from other positions, then what an MLP made of that. After the last block, the vector is compared with
    every word of the vocabulary.

    Nothing forbids comparing it earlier. Drag the depth: this little GPT-2 has read Python's documentation, and is
    asked how "If the optional argument is not given, the default value" goes on. (A `_` is a space, `⏎` a new line.)
    """)
    return


@app.cell(hide_code=True)
def slide_1(gpt2):
    depth = mo.ui.slider(1, len(gpt2.blocks), value=8, label="read after so many blocks", show_value=True)
    depth
    return (depth,)


@app.cell(hide_code=True)
def see_1(depth, gpt2, text):
    with tk.no_grad():
        _out = gpt2([text], exits=range(1, len(gpt2.blocks) + 1))
    _shares = [tk.fused.softmax(_logits[0, -1]).numpy() for _logits in _out.exits.values()]
    _last = int(_shares[-1].argmax())
    kit.row(
        best_words(gpt2, _out.exits[depth.value].numpy()[0, -1], f"the next word, read after block {depth.value}"),
        kit.lines(
            {f'share of "{shown(gpt2, _last)}"': [_share[_last] for _share in _shares]},
            "the last block's word, at every depth",
            x=list(_out.exits),
            x_label="blocks",
            mark=depth.value,
        ),
    )
    return


@app.function(hide_code=True)
def shown(model, token):
    """Return a token with its spaces and new lines made visible."""
    return model.tokenizer.id_to_token(token).replace("Ġ", "_").replace("Ċ", "⏎")


@app.function(hide_code=True)
def best_words(model, logits_V, title):
    """Draw the five words that a row of logits holds to be most likely."""
    shares = np.exp(logits_V - logits_V.max())
    shares /= shares.sum()
    best = np.argsort(-shares)[:5].tolist()
    return kit.bars({shown(model, token): shares[token] for token in best}, title)


@app.cell(hide_code=True)
def predict_1():
    options_1 = {
        "x, as it came in": "both parts add nothing then: what was in the stream stays in it. That is why blocks add.",
        "zeros": "that would be so if a block *replaced* x. It adds to it.",
        "x, normalised": "the norm is taken of what a part reads, not of the stream itself.",
    }
    guess_1 = kit.predict("All matrices and biases of a GPT-2 block are zero. What does it return for x?", options_1)
    guess_1
    return guess_1, options_1


@app.cell(hide_code=True)
def reveal_1(guess_1, options_1):
    step_1_done = kit.reveal(guess_1, options_1)
    step_1_done
    return (step_1_done,)


@app.cell(hide_code=True)
def step_2(step_1_done):
    step_1_done
    mo.md(r"""
    ## 2. Normalise, attend, add; normalise, MLP, add

    Each part reads a *normalised* copy, so that it finds numbers of a usual size however much was added before. GPT-2
    and LLaMA have the same block; their norms, MLPs and positions differ. BERT, the oldest, normalises after it adds.

    ### Exercise 1: the block
    """)
    return


@app.function
# EXERCISE 1. Return what a block of GPT-2 makes of x. norm_1, attend, norm_2 and mlp are
# functions: each takes an array or tensor like x, and returns one of its shape.
def block(x, norm_1, attend, norm_2, mlp):
    raise kit.Todo


@app.cell(hide_code=True)
def check_1(gpt2, llama, step_1_done, text):
    step_1_done
    _numbers = np.array([[1.0, -2.0, 0.5]], np.float32)

    def _parts(_model, _i):
        """The parts of a real block as functions, what went into it, and what the model says came out."""
        _block, _angles = _model.blocks[_i], _model.angles(np.arange(len(text))[None])
        with tk.no_grad():
            _hidden = _model([text]).hidden

        def _attend(_x):
            return _block.attention(_x, None, angles=_angles)[0]

        return (_hidden[_i], _block.norm_1, _attend, _block.norm_2, _block.mlp), _hidden[_i + 1]

    _toy = (xp.asarray(_numbers), lambda _x: _x / 2, lambda _x: 4 * _x, lambda _x: _x - 1, lambda _x: _x * _x)
    _by_hand = [[3 * _x + (3 * _x - 1) ** 2 for _x in (1.0, -2.0, 0.5)]]  # 4 (x / 2) added to x is 3 x
    _one = tuple(_part if callable(_part) else _part[:, :1] for _part in _toy)
    _cases = [
        ("norms and parts of school arithmetic", _toy, xp.asarray(np.array(_by_hand, np.float32))),
        ("a single number", _one, xp.asarray(np.array(_by_hand, np.float32)[:, :1])),
        ("block 0 of gpt2-tiny", *_parts(gpt2, 0)),
        ("block 2 of llama-tiny", *_parts(llama, 2)),
    ]
    result_1 = kit.check(
        "block",
        block,
        _cases,
        mistakes=[
            (
                "What the parts make replaces x: it must be added to it.",
                lambda _x, _n1, _a, _n2, _m: _m(_n2(_a(_n1(_x)))),
            ),
            (
                "That is BERT's order, the norm after the sum.",
                lambda _x, _n1, _a, _n2, _m: _n2(_n1(_x + _a(_x)) + _m(_n1(_x + _a(_x)))),
            ),
            (
                "The MLP reads x as it was before attention added to it.",
                lambda _x, _n1, _a, _n2, _m: _x + _a(_n1(_x)) + _m(_n2(_x)),
            ),
            (
                "It is added to the normalised x; the stream itself is not normalised.",
                lambda _x, _n1, _a, _n2, _m: _n2(_n1(_x) + _a(_n1(_x))) + _m(_n2(_n1(_x) + _a(_n1(_x)))),
            ),
            (
                "The MLP reads the stream without its norm.",
                lambda _x, _n1, _a, _n2, _m: _x + _a(_n1(_x)) + _m(_x + _a(_n1(_x))),
            ),
            (
                "What attention added is lost on the way out.",
                lambda _x, _n1, _a, _n2, _m: _x + _m(_n2(_x + _a(_n1(_x)))),
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
        Two lines of the same form. In the first, attention reads the norm of x, and its result is added to x. What does
        the second line read, and what does it add to?
        """,
        solution="""
        def block(x, norm_1, attend, norm_2, mlp):
            x = x + attend(norm_1(x))
            return x + mlp(norm_2(x))
        """,
    )
    help_for_1
    return


@app.cell(hide_code=True)
def step_3(result_1):
    kit.gate(result_1, "Exercise 1 opens the next step.")
    mo.md(r"""
    ## 3. A checkpoint is names and arrays

    A model's file is a dictionary: a name, a shape, numbers. Loading means to know which name is which of our
    parameters. The families agree on little (and files may put the family's name before all of these):

    | what it is | GPT-2: `h.0.` | LLaMA: `layers.0.` | BERT: `layer.0.` |
    |---|---|---|---|
    | the queries' matrix | `attn.c_attn`, first third | `self_attn.q_proj` | `attention.self.query` |
    | attention's output | `attn.c_proj` | `self_attn.o_proj` | `attention.output.dense` |
    | the MLP, up | `mlp.c_fc` | `mlp.up_proj` | `intermediate.dense` |
    | a matrix lies | (in, out) | (out, in) | (out, in) |

    So each family brings a table of names, in `tinykron/models/`. Drag through the tensors of GPT-2's first block, as
    they lie in the file.
    """)
    return


@app.cell(hide_code=True)
def slide_3(result_1):
    kit.gate(result_1, "")
    which_tensor = mo.ui.slider(0, 11, value=2, label="which tensor of block 0", show_value=True)
    which_tensor
    return (which_tensor,)


@app.cell(hide_code=True)
def see_3(gpt2, which_tensor):
    _table = [_name for _name in FAMILIES["gpt2"].names(gpt2.config) if _name.file.startswith("transformer.h.0.")]
    _name = _table[which_tensor.value]
    _stored = contents(weights_folder("gpt2-tiny") / "model.safetensors")[_name.file]
    _values = np.concatenate([_block for _, _block in _stored.blocks()])
    _wide = 420 if _values.ndim > 1 and _values.shape[1] > 128 else 190
    mo.vstack(
        [
            mo.md(f"`{_name.file}` fills " + ", ".join(f"`{_ours}`" for _ours in _name.ours)),
            kit.heat(_values, _name.file.removeprefix("transformer."), size=_wide, top=3 * float(_values.std())),
        ]
    )
    return


@app.cell(hide_code=True)
def step_4(result_1):
    kit.gate(result_1, "Exercise 1 comes first.")
    mo.md(r"""
    ## 4. What the shape does not say

    A matrix that multiplies from the wrong side is usually found at once: its shape does not fit. But in attention,
    many matrices are square.
    """)
    return


@app.cell(hide_code=True)
def predict_4(result_1):
    kit.gate(result_1, "")
    options_4 = {
        "it loads without a word, and computes something else": "all shapes fit. Only the numbers that come out tell.",
        "loading fails: the shapes do not fit": "they do: the transpose of a square matrix has the same shape.",
        "nothing: it is square": "rows and columns have changed places. Only a symmetric matrix does not mind.",
    }
    guess_4 = kit.predict("A loader forgets to transpose one square matrix. What happens?", options_4)
    guess_4
    return guess_4, options_4


@app.cell(hide_code=True)
def reveal_4(guess_4, options_4):
    step_4_done = kit.reveal(guess_4, options_4)
    step_4_done
    return (step_4_done,)


@app.function
def with_transposed(model, name):
    """Return a model with one square matrix transposed; all else is shared with the one given, which stays as it is."""
    linear = model.get(name)
    turned = copy.copy(linear)
    turned.weight = tk.nn.Parameter(xp.ascontiguousarray(linear.weight.data.T))
    return tk.nn.sharing_copy(model, {linear: turned})


@app.function
def square_matrices(model):
    """Return the names of the square matrices in a model's blocks, such as "blocks.0.attention.query"."""
    linears = [(name, m) for name, m in model.modules() if isinstance(m, tk.nn.Linear) and name.startswith("blocks.")]
    return [name for name, linear in linears if linear.weight.shape[0] == linear.weight.shape[1]]


@app.cell(hide_code=True)
def slide_4(step_4_done):
    step_4_done
    turned = mo.ui.slider(0, 31, value=2, label="which of GPT-2's square matrices is transposed", show_value=True)
    turned
    return (turned,)


@app.cell(hide_code=True)
def see_4(gpt2, text, turned):
    _name = square_matrices(gpt2)[turned.value]
    with tk.no_grad():
        _right, _wrong = gpt2([text]), with_transposed(gpt2, _name)([text])
    _off = []
    for _good, _bad in zip(_right.hidden, _wrong.hidden, strict=True):
        _off.append(float(((_bad.data - _good.data) ** 2).sum() / (_good.data**2).sum()) ** 0.5)
    kit.row(
        kit.lines(
            {"relative error of x": _off},
            f"{_name} transposed; dashed: the block that holds it",
            x_label="blocks that x went through",
            mark=int(_name.split(".")[1]),
        ),
        best_words(gpt2, _right.logits.numpy()[0, -1], "the next word, as it should be"),
        best_words(gpt2, _wrong.logits.numpy()[0, -1], "the next word, with one transposed"),
    )
    return


@app.cell(hide_code=True)
def ask_2(step_4_done):
    step_4_done
    mo.md(r"""
    ### Exercise 2: find it

    Somebody wrote a loader, and one square matrix is transposed. What helps is a **reference**: the hidden states that
    a right implementation returns for the same ids. tinykron's own loaders are tested so, against transformers.

    `model([ids]).hidden` is a list of tensors (1, tokens, D), with their numbers in `.data`: number 0 is the embedding,
    number `i + 1` leaves block `i`. The two functions above are yours to use.
    """)
    return


@app.function
# EXERCISE 2. One of square_matrices(model) is transposed. `hidden` is such a list of tensors,
# too, from a right model, for `ids`. Return the name of that matrix.
# with_transposed(model, name), above, turns one round.
def find_transposed(model, ids, hidden):
    raise kit.Todo


@app.cell(hide_code=True)
def check_2(bert, gpt2, llama, step_4_done, text):
    step_4_done
    _fine = "the transposed one"
    _planted, _cases = {}, []
    for _kind, _model, _name in [
        ("a GPT-2", gpt2, "blocks.5.attention.output"),
        ("a LLaMA", llama, "blocks.0.attention.query"),
        ("a BERT", bert, "blocks.3.attention.key"),
        ("a GPT-2, its last block", gpt2, "blocks.7.attention.value"),
        ("a text of one word", gpt2, "blocks.2.attention.value"),
    ]:
        _ids = text[:1] if _kind == "a text of one word" else text
        with tk.no_grad():
            _hidden = _model([_ids]).hidden
        _faulty = with_transposed(_model, _name)
        _planted[id(_faulty)] = _name
        _cases.append((_kind, (_faulty, _ids, _hidden), _fine))

    def _judge(_answer, _model, _ids, _hidden):
        _squares, _right = square_matrices(_model), _planted[id(_model)]
        if _answer == _right:
            return _fine
        if _answer not in _squares:
            return f"{_answer!r} is not one of square_matrices(model)"
        _found, _block = int(_answer.split(".")[1]), int(_right.split(".")[1])
        if _found == _block:
            return f"{_answer}: the block is right, the matrix another: turn it back, and see whether the block heals"
        if _found == _block + 1:
            return f"{_answer}: one block too far: hidden[0] is the embedding, hidden[i + 1] leaves block i"
        if _found > _block:
            return f"{_answer}: an error travels on: the first block that differs counts"
        return f"{_answer}: that block is as it should be"

    result_2 = kit.check("find_transposed", find_transposed, _cases[:3] if kit.fast() else _cases, judge=_judge)
    result_2
    return (result_2,)


@app.cell(hide_code=True)
def help_2(result_2):
    help_for_2 = kit.help(
        result_2,
        hint="""
        Turn a suspect back, run the model, and compare with `hidden`: only the right one heals. Rounding differs, so
        compare with a tolerance: `float(abs(mine.data - theirs.data).max())`. You may try all suspects, or find the
        block first.
        """,
        solution="""
        def find_transposed(model, ids, hidden):
            def differs(found, place):
                return float(abs(found[place].data - hidden[place].data).max()) > 1e-3

            with tk.no_grad():
                found = model([ids]).hidden
                bad = next(i for i in range(len(model.blocks)) if differs(found, i + 1))
                for name in square_matrices(model):
                    if name.startswith(f"blocks.{bad}."):
                        if not differs(with_transposed(model, name)([ids]).hidden, bad + 1):
                            return name
        """,
    )
    help_for_2
    return


@app.cell(hide_code=True)
def step_5(result_2):
    kit.gate(result_2, "Exercise 2 opens the last step.")
    mo.md(r"""
    ## 5. Three families, one loop

    `tk.load` reads any of the three: a table of names, which axis of a matrix is the input, and one loop that fills
    every parameter exactly once. What does not fit is said all at once, before anything is changed. Below, all three
    read the same sentence; BERT fills a gap, where the others go on.
    """)
    return


@app.cell
def example_5(gpt2, result_2):
    kit.gate(result_2, "")
    arrays = gpt2.state_dict()
    arrays["blocks.0.mlp.upp.weight"] = arrays.pop("blocks.0.mlp.up.weight")  # a slip of the pen
    arrays["norm.bias"] = arrays["norm.bias"][:100]
    try:
        gpt2.load_state_dict(arrays)
    except tk.TinykronError as error:
        said = str(error)
    mo.md(f"```\n{said}\n```")
    return


@app.cell(hide_code=True)
def slide_5(result_2, text):
    kit.gate(result_2, "")
    read = mo.ui.slider(1, len(text), value=len(text), label="words that have been read", show_value=True)
    read
    return (read,)


@app.cell(hide_code=True)
def see_5(bert, gpt2, llama, read, text):
    _start = gpt2.tokenizer.decode(text[: read.value])
    _ids = bert.tokenizer.encode(_start + " [MASK] .").ids
    _place = _ids.index(bert.tokenizer.token_to_id("[MASK]"))
    with tk.no_grad():
        _after_gpt2, _after_llama = (_model([text[: read.value]]).logits.numpy()[0, -1] for _model in (gpt2, llama))
        _hidden_word = bert([_ids]).logits.numpy()[0, _place]
    mo.vstack(
        [
            mo.md(f"*{_start}* ..."),
            kit.row(
                best_words(gpt2, _after_gpt2, "GPT-2: the next word"),
                best_words(llama, _after_llama, "LLaMA: the next word"),
                best_words(bert, _hidden_word, "BERT: a hidden word, with a full stop behind it"),
            ),
        ]
    )
    return


@app.cell(hide_code=True)
def finish(result_1, result_2):
    lesson_done = kit.finish(
        result_1,
        result_2,
        text="""
        **Done.** A block adds twice; a file is names and arrays; only numbers tell a matrix from its transpose. Read
        `Block` in `tinykron/models/transformer.py` and `_fill` in `tinykron/checkpoint/folder.py`. Next:
        `tinykron lesson 10`.
        """,
    )
    lesson_done
    return


if __name__ == "__main__":
    app.run()
