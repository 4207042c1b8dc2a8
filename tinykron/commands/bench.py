"""`tinykron bench`: speed, in turns with what stands beside it."""

from __future__ import annotations

import argparse
import json

from tinykron.commands.options import COUNT, common, model, model_folder, numbers
from tinykron.support.progress import say

SUBJECTS = {
    "engine": "GPT-2 forward, decoding and a training step",
    "decode": "loading a model, and writing with it",
    "kron": "Kronecker layers beside the dense one and beside other packages",
    "exits": "drafts, leaving early",
}


def options(parser: argparse.ArgumentParser) -> None:
    """Add what `bench` takes: a subject, and what that takes."""
    subjects = parser.add_subparsers(dest="subject", metavar="SUBJECT", required=True)
    subs = {name: subjects.add_parser(name, help=text, description=text) for name, text in SUBJECTS.items()}
    subs["engine"].add_argument("--config", default="gpt2", help='"gpt2" (124M, the default) or "tiny", to try it')
    subs["kron"].add_argument("--full", action="store_true", help="every matrix, shape, number of terms and rows")
    for name in ("decode", "exits"):
        text = "as --model"
        subs[name].add_argument("model", nargs="?", metavar="MODEL", default=argparse.SUPPRESS, help=text)
        model(subs[name], "--model")
    exits = subs["exits"]
    exits.add_argument("--exits", metavar="2,4,6", help="to measure (default: those trained, else three)")
    exits.add_argument("--drafts", metavar="1,2,4", help="tokens drafted a round (default 1,2,4,6)")
    exits.add_argument("--prompts", type=COUNT, default=4, metavar="N", help="to continue (default 4)")
    exits.add_argument("--shortlist", metavar="512,2048", help="numbers of frequent tokens that drafts may know")
    exits.add_argument("--data", metavar="TEXT", help="to take prompts from and measure losses on")
    exits.add_argument("--out", metavar="DIR", help="folder for the table, its JSON and a heat map")
    for sub in subs.values():
        sub.add_argument("--threads", type=COUNT, default=2, metavar="N", help="alike on both sides (default 2)")
        sub.add_argument(
            "--repeats", type=COUNT, default=5, metavar="N", help="turns of each side, per row (default 5)"
        )
        common(sub, default=argparse.SUPPRESS)


def run(options: argparse.Namespace) -> int:
    """Run `bench`: exit code 130 after Ctrl-C, when what was measured is printed."""
    from tinykron.bench import engine, kron

    if options.subject == "exits":
        return _exits(options)
    if options.subject == "kron":
        found = kron.kron(options.full, options.threads, options.repeats)
        print(json.dumps(found.as_dict(), indent=2) if options.json else kron.render(found), end="")
        return 130 if found.interrupted else 0
    if options.subject == "engine":
        report = engine.engine(options.config, options.threads, options.repeats)
    else:
        report = engine.decode(model_folder(options), options.threads, options.repeats)
    print(json.dumps(report.as_dict(), indent=2) if options.json else engine.render(report), end="")
    return 0


def _exits(options: argparse.Namespace) -> int:
    from tinykron.bench import exits, exits_report

    found = exits.bench_exits(
        model_folder(options),
        numbers("--exits", options.exits) if options.exits else None,
        numbers("--drafts", options.drafts) if options.drafts else None,
        options.data,
        options.prompts,
        threads=options.threads,
        repeats=options.repeats,
        shortlists=numbers("--shortlist", options.shortlist) if options.shortlist else None,
    )
    if options.out:
        exits_report.write(found, options.out)
    as_json = json.dumps(exits_report.as_dict(found), indent=2) if options.json else ""
    print(as_json or exits_report.render(found).rstrip("\n"))
    if options.out:
        say(f"table, JSON and heat map: {options.out}")
    return 130 if found.interrupted else 0
