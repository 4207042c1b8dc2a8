"""`tinykron reproduce`: a claim, answered by experiment."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path

from tinykron.errors import TinykronError
from tinykron.support.progress import say


def options(parser: argparse.ArgumentParser) -> None:
    """Add what `reproduce` takes."""
    papers = "fit: which way to make a matrix smaller loses least; the others: what the paper claims"
    parser.add_argument("relation", choices=("fit", "kngpt2", "kroneckerbert", "sorted-llama"), help=papers)
    parser.add_argument("--out", metavar="DIR", help="folder of rows and report; continued (default: reproduce-...)")
    parser.add_argument("--only", metavar="R5,R6", help="of a paper: these relations alone")
    parser.add_argument("--model", metavar="NAME", help="fit: of the shipped ones, this alone (default: all three)")
    parser.add_argument("--quick", action="store_true", help="less of everything, with wider spread")


def run(options: argparse.Namespace) -> int:
    """Run `reproduce`."""
    from tinykron.studies import claims, papers, sorted_llama

    out = options.out or f"reproduce-{options.relation}"
    if options.relation == "fit":
        return _fit(options, out)
    if options.model:
        raise TinykronError(f"--model: {options.relation} runs on one shipped model")
    if options.relation == "sorted-llama":
        answers = sorted_llama.reproduce(out, options.quick, options.only, say=say)
    else:
        answers = papers.reproduce(options.relation, out, options.quick, options.only, say=say)
    report = (Path(out) / "report.md").read_text(encoding="utf-8")
    print(json.dumps(claims.as_dict(answers)) if options.json else report)
    return 0


def _fit(options: argparse.Namespace, out: str) -> int:
    from tinykron.studies import fits

    if options.only:
        raise TinykronError("--only: fit has no relations to choose from")
    scale = fits.QUICK if options.quick else fits.Scale()
    if options.model:
        if options.model not in fits.MODELS:
            raise TinykronError(f"--model: found {options.model!r}, expected one of {', '.join(fits.MODELS)}")
        scale = replace(scale, models=(options.model,))
    rows = fits.fit_relation(out, scale, say)
    fits.write(rows, scale, out)
    print(json.dumps([asdict(row) for row in rows]) if options.json else fits.markdown(rows, scale))
    say(f"report: {out}")
    return 0
