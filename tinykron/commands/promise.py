"""`tinykron promise`: thresholds of exits with a promise, written into the model's folder."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from tinykron.commands.options import COUNT, given, model, model_folder, numbers, show, told_of_exits
from tinykron.support.numbers import option, real


def options(parser: argparse.ArgumentParser) -> None:
    """Add what `promise` takes."""
    model(parser)
    parser.add_argument("--prompts", metavar="FILE", required=True, help="one a line, or JSON lines")
    parser.add_argument(
        "--exits", metavar="2,4,6", help="to leave at (default: those that the folder says were trained)"
    )
    between = option(real, above=0.0, below=1.0)
    parser.add_argument("--delta", type=between, metavar="P", help="share of prompts that may fail (default .05)")
    parser.add_argument("--epsilon", type=between, metavar="P", help="probability that it is broken (default .05)")
    parser.add_argument("--tokens", type=COUNT, metavar="N", help="of a text (default 40)")
    parser.add_argument("--loss", type=option(real), metavar="NATS", help="promise a loss in place of equal texts")
    parser.add_argument("--missing", choices=("recompute", "copy"), help="keys of skipped blocks: exact, or not")


def run(options: argparse.Namespace) -> int:
    """Run `promise`: exit code 1 where nothing can be promised. After Ctrl-C the same command goes on."""
    from tinykron.exits import thresholds

    folder = model_folder(options)
    names = {"loss": "bound", "missing": "skipped"}
    chosen = {
        names.get(name, name): value for name, value in given(options, "delta epsilon tokens loss missing").items()
    }
    exits = numbers("--exits", options.exits) if options.exits else None
    with told_of_exits():
        found, promise = thresholds.promise_folder(folder, options.prompts, exits=exits, **chosen)
    lines = [
        f"threshold {next(iter(one.candidate.values())):g}: {one.failures} of {found.prompts} fail, p {one.p_value:.2g}"
        for one in found.tested
    ]
    lines.append(f"{promise}\nwritten: {folder / thresholds.FILE}" if promise else thresholds.refusal(found))
    show(options.json, lambda: asdict(found) | {"promise": promise and asdict(promise)}, lambda: "\n".join(lines))
    return 0 if promise else 1
