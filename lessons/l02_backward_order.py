import marimo

__generated_with = "0.25.2"
app = marimo.App(width="medium", app_title="2 Backward in the right order")

with app.setup(hide_code=True):
    import marimo as mo

    import tinykron as tk
    from tinykron import kit

    LESSON = 2


@app.cell(hide_code=True)
def title():
    mo.md(r"""
    # 2 · Backward in the right order

    **You build** the two halves of a backward pass: the order of the walk, and what is added up on the way.

    **You see** a gradient go astray when either is wrong.

    **You need** lesson 1: along a chain, slopes multiply.
    """)
    return


@app.cell(hide_code=True)
def step_1():
    mo.md(r"""
    ## 1. A number used several times gets several contributions

    In $y = a\,x + x^2$ the number $x$ is used three times: once in the product with $a$, twice in the square. Raise
    $x$, and every use moves $y$. The slope is the **sum over all uses**.
    """)
    return


@app.cell(hide_code=True)
def slide_1():
    used = mo.ui.slider(-3.0, 3.0, 0.25, value=1.5, label="x", show_value=True)
    used
    return (used,)


@app.cell(hide_code=True)
def see_1(used):
    _x = tk.Tensor(used.value, requires_grad=True)
    _a = tk.Tensor(2.0, requires_grad=True)
    _y = _a * _x + _x * _x
    _nodes, _edges = kit.tape(_y, {"x": _x, "a": _a})
    _y.backward()
    kit.row(
        kit.graph(_nodes, _edges, "y = a * x + x * x, with a = 2"),
        kit.bars(
            {
                "by a * x": 2.0,
                "by the square, left": used.value,
                "by the square, right": used.value,
                "x.grad": _x.grad,
            },
            "contributions, and their sum",
        ),
    )
    return


@app.cell(hide_code=True)
def step_2():
    mo.md(r"""
    ## 2. A node must wait

    In $u = e^x,\; y = u \cdot \tanh(u)$ the number $u$ goes two ways, which meet again. Going backward, $u$ gets one
    contribution from the product directly, and one through the tanh: its gradient is the sum of both, and only that
    may be handed on to $x$.
    """)
    return


@app.cell(hide_code=True)
def predict_2():
    options_2 = {
        "product, tanh, exp": """exp is last: the product and the tanh, which use its result, have sent what they owe.
            Had it handed on what it had before both came, the rest would be lost.""",
        "product, exp, tanh": "exp would hand on what the product sent, before the tanh sent its part.",
        "exp, tanh, product": "that is the order of the forward pass. Backward begins at the result.",
    }
    guess_2 = kit.predict("In which order must the operations be walked backward?", options_2)
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
    moment = mo.ui.slider(0, 3, value=0, label="steps of the backward walk", show_value=True)
    moment
    return (moment,)


@app.cell(hide_code=True)
def see_2(moment):
    _x = tk.Tensor(0.4, requires_grad=True)
    _u = _x.exp()
    _t = _u.tanh()
    _u_value, _t_value = _u.item(), _t.item()
    _nodes, _edges = kit.tape(_u * _t, {"x": _x})
    _walk = list(_nodes)[::-1]
    _through_tanh = _u_value * (1 - _t_value**2)
    _whole = _t_value + _through_tanh
    _arrived = {
        "at the product": 1.0,
        "at tanh": _u_value if moment.value > 0 else 0.0,
        "at exp": (0.0, _t_value, _whole, _whole)[moment.value],
        "at x": _whole * _u_value if moment.value == 3 else 0.0,
        "at x, had exp not waited": _t_value * _u_value if moment.value == 3 else 0.0,
    }
    kit.row(
        kit.graph(_nodes, _edges, "the operations walked so far are filled", lit=_walk[: moment.value]),
        kit.bars(_arrived, "the gradient that has arrived"),
    )
    return


@app.cell(hide_code=True)
def step_3(step_2_done):
    step_2_done
    mo.md(r"""
    ## 3. The order

    A graph is a dictionary here: `inputs[node]` lists what a node was computed from. A leaf has an empty list.

    ### Exercise 1: list every node later than all that use it

    Count, for each node, the uses that are still to come: where none is left, it is the node's turn. Many orders are
    right; yours is judged, not compared. Long chains come up in practice: a function that calls itself
    for every node will not survive them.
    """)
    return


@app.function
# EXERCISE 1. Return the list of all nodes that `root` was computed from, directly or not, and
# `root` itself: each once, and later in the list than every node that uses it. The last case
# is a chain of 5000 nodes.
def backward_order(inputs, root):
    raise kit.Todo


@app.cell(hide_code=True)
def check_1(step_2_done):
    step_2_done
    _fine = "every node later than all that use it"

    def _judge(_order, _inputs, _root):
        _order = list(_order)
        if not _order or _order[0] != _root:
            return f"it begins with {_order[0]!r}, not with the root" if _order else "it is empty"
        _needed, _stack = set(), [_root]
        while _stack:
            _node = _stack.pop()
            if _node not in _needed:
                _needed.add(_node)
                _stack.extend(_inputs[_node])
        if _missing := _needed - set(_order):
            return f"{min(_missing)!r} is missing"
        if _extra := set(_order) - _needed:
            return f"{min(_extra)!r} has nothing to do with the root"
        if len(set(_order)) < len(_order):
            return f"{max(_order, key=_order.count)!r} is in it more than once"
        _place = {_node: _i for _i, _node in enumerate(_order)}
        for _node in _order:
            for _source in _inputs[_node]:
                if _place[_source] < _place[_node]:
                    return f"{_source!r} comes before {_node!r}, which uses it"
        return _fine

    _graphs = [
        ("a chain", {"y": ["u"], "u": ["x"], "x": []}, "y"),
        ("a diamond", {"y": ["u", "t"], "t": ["u"], "u": ["x"], "x": []}, "y"),
        ("a diamond, the long way first", {"y": ["t", "u"], "t": ["s"], "s": ["u"], "u": ["x"], "x": []}, "y"),
        ("a square", {"y": ["x", "x"], "x": []}, "y"),
        ("an unused node", {"y": ["x"], "z": ["x"], "x": []}, "y"),
        ("5000 nodes", {_i: [_i - 1] if _i else [] for _i in range(5000)}, 4999),
    ]
    result_1 = kit.check(
        "backward_order",
        backward_order,
        [(_label, (_inputs, _root), _fine) for _label, _inputs, _root in _graphs],
        judge=_judge,
    )
    result_1
    return (result_1,)


@app.cell(hide_code=True)
def help_1(result_1):
    help_for_1 = kit.help(
        result_1,
        hint="""
        Count first: how many uses of each node are still to come? A node whose count has fallen to zero is ready; begin
        with the root. (Only uses by nodes that the root needs count.)
        """,
        solution="""
        def backward_order(inputs, root):
            uses, stack = {root: 0}, [root]
            while stack:  # count the uses of each node behind the root
                for source in inputs[stack.pop()]:
                    if source not in uses:
                        stack.append(source)
                    uses[source] = uses.get(source, 0) + 1
            order, ready = [], [root]
            while ready:
                order.append(ready.pop())
                for source in inputs[order[-1]]:
                    uses[source] -= 1
                    if uses[source] == 0:
                        ready.append(source)
            return order
        """,
    )
    help_for_1
    return


@app.cell(hide_code=True)
def step_4(result_1):
    kit.gate(result_1, "Exercise 1 opens the next step.")
    mo.md(r"""
    ## 4. The sum

    With an order, the walk is short. Every node hands to each of its inputs: its own gradient, times its slope toward
    that input. What arrives **adds up**.

    ### Exercise 2: the gradients

    `edges[node]` now lists pairs `(source, slope)`; a node that is used twice by one operation is in the list twice.
    """)
    return


@app.function
# EXERCISE 2. `order` is a right backward order; its first node is the result, whose gradient
# is 1. Return a dictionary: the gradient of every node.
def gradients(order, edges):
    raise kit.Todo


@app.cell(hide_code=True)
def check_2(result_1):
    kit.gate(result_1, "Exercise 1 comes first.")

    def _over_paths(_order, _edges):
        """Add, over every path from the result to a node, the product of the slopes on it."""
        _total = dict.fromkeys(_order, 0.0)

        def _follow(_node, _product):
            _total[_node] += _product
            for _source, _slope in _edges[_node]:
                _follow(_source, _product * _slope)

        _follow(_order[0], 1.0)
        return tuple(_total[_node] for _node in _order)

    def _judge(_found, _order, _edges):
        return tuple(_found.get(_node, float("nan")) for _node in _order)

    _graphs = [
        ("a chain", ["y", "u", "x"], {"y": [("u", 3.0)], "u": [("x", -2.0)], "x": []}),
        ("a square", ["y", "x"], {"y": [("x", 1.5), ("x", 1.5)], "x": []}),
        (
            "a diamond",
            ["y", "t", "u", "x"],
            {"y": [("u", 2.0), ("t", 5.0)], "t": [("u", 0.5)], "u": [("x", 3.0)], "x": []},
        ),
        (
            "two leaves",
            ["y", "p", "a", "x"],
            {"y": [("p", 1.0), ("x", 4.0)], "p": [("a", 7.0), ("x", 2.0)], "a": [], "x": []},
        ),
    ]

    def _overwritten(_order, _edges):
        _found = {_order[0]: 1.0}
        for _node in _order:
            for _source, _slope in _edges[_node]:
                _found[_source] = _found[_node] * _slope
        return _found

    def _added_slopes(_order, _edges):
        _found = dict.fromkeys(_order, 0.0) | {_order[0]: 1.0}
        for _node in _order:
            for _source, _slope in _edges[_node]:
                _found[_source] += _slope
        return _found

    def _first_zero(_order, _edges):
        return dict.fromkeys(_order, 0.0)

    result_2 = kit.check(
        "gradients",
        gradients,
        [(_label, (_order, _edges), _over_paths(_order, _edges)) for _label, _order, _edges in _graphs],
        mistakes=[
            ("A later contribution replaces an earlier one: add it.", _overwritten),
            ("Only the slopes are added: each is multiplied by the gradient of the node it leaves.", _added_slopes),
            ("The result itself has gradient 1: without it nothing flows.", _first_zero),
        ],
        judge=_judge,
    )
    result_2
    return (result_2,)


@app.cell(hide_code=True)
def help_2(result_2):
    help_for_2 = kit.help(
        result_2,
        hint="Begin with a dictionary that says 0 for every node but the first. What does one step of the walk change?",
        solution="""
        def gradients(order, edges):
            found = dict.fromkeys(order, 0.0)
            found[order[0]] = 1.0
            for node in order:
                for source, slope in edges[node]:
                    found[source] += found[node] * slope
            return found
        """,
    )
    help_for_2
    return


@app.cell(hide_code=True)
def step_5(result_2):
    kit.gate(result_2, "Exercise 2 opens the last step.")
    mo.md(r"""
    ## 5. Why not simply follow every path?

    The check of exercise 2 finds its right answers so: it adds up all paths. In a row of diamonds, $u_{k+1} = u_k +
    \tanh(u_k)$, each diamond doubles the paths. The walk visits each edge once. The real engine does what you wrote:
    read `Tensor.backward` and `_count_consumers` in `tinykron/tensor.py`.
    """)
    return


@app.cell(hide_code=True)
def slide_5(result_2):
    kit.gate(result_2)
    diamonds = mo.ui.slider(1, 60, value=20, label="diamonds in a row", show_value=True)
    diamonds
    return (diamonds,)


@app.cell(hide_code=True)
def see_5(diamonds):
    _u = tk.Tensor(0.01, requires_grad=True)
    for _ in range(diamonds.value):
        _u = _u + _u.tanh()
    _edges = len(kit.tape(_u, {})[1])
    _counts = range(1, 61)
    kit.row(
        kit.lines(
            {"paths": [2.0**_n for _n in _counts], "edges walked": [3.0 * _n for _n in _counts]},
            "work of a backward pass",
            x=list(_counts),
            x_label="diamonds",
            log_y=True,
            mark=diamonds.value,
        ),
        kit.bars({"paths": 2.0**diamonds.value, "edges": _edges}, "of so many diamonds, on tinykron's own tape"),
    )
    return


@app.cell(hide_code=True)
def finish(result_1, result_2):
    lesson_done = kit.finish(
        result_1,
        result_2,
        text="""
        **Done.** A node waits for all that use it, and adds up what they send. That is a whole backward pass, for
        numbers. Next, for arrays: `tinykron lesson 3`.
        """,
    )
    lesson_done
    return


if __name__ == "__main__":
    app.run()
