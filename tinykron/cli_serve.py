"""The command line's verbs that decode: `bench exits`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from tinykron.errors import TinykronError


def numbers(text: str, what: str) -> tuple[int, ...]:
    """Return "2,4,6" as numbers. Raises TinykronError, naming the option, for anything else."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise TinykronError(f"{what}: expected whole numbers with commas between them, such as 2,4,6, found {text!r}")
    return tuple(map(int, parts))


def bench_options(bench: argparse.ArgumentParser) -> None:
    """Add what `bench exits` takes beside a model."""
    bench.add_argument("--exits", metavar="2,4,6", help="exits: to measure (default: those trained, else three)")
    bench.add_argument("--drafts", metavar="1,2,4", help="exits: tokens drafted a round (default 1,2,4,6)")
    bench.add_argument("--data", metavar="TEXT", help="exits: to take prompts from and measure losses on")
    bench.add_argument("--out", metavar="DIR", help="exits: folder for the table, its JSON and a heat map")


def bench_exits(options: argparse.Namespace, folder: Path) -> int:
    """Run `bench exits`."""
    from tinykron import bench_exits_report as report
    from tinykron.bench_exits import bench_exits as measure

    found = measure(
        folder,
        numbers(options.exits, "--exits") if options.exits else None,
        numbers(options.drafts, "--drafts") if options.drafts else None,
        options.data,
        threads=options.threads,
        repeats=options.repeats,
    )
    if options.out:
        report.write(found, options.out)
    print(json.dumps(report.as_dict(found), indent=2) if options.json else report.render(found).rstrip("\n"))
    if options.out:
        print(f"table, JSON and heat map: {options.out}", file=sys.stderr)
    return 130 if found.interrupted else 0
