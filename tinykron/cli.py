"""The command line: one verb, one job. `tinykron` alone prints the verbs."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tinykron.backend import current_device, device, recycled_memory
from tinykron.errors import TinykronError

EXAMPLES = """\
examples:
  tinykron run kngpt2                          halve the shipped GPT-2, distil it, report (under 3 minutes)
  tinykron run kngpt2 --model FOLDER --data TEXT --out DIR
  tinykron generate --prompt "The list type"   text from the shipped GPT-2
  tinykron train --out my-gpt2                 train a small GPT-2 on the text that every Python carries
  tinykron bench engine                        the engine beside PyTorch, where that is installed
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0; 2 for bad input; 130 after Ctrl-C."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.verb is None:
        parser.print_help()
        return 0
    try:
        with recycled_memory(), device(options.device or current_device()):
            return options.run(options)
    except TinykronError as error:
        print(f"tinykron: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of our output has gone: `tinykron ... | head`
        sys.stderr.close()
        return 0
    except OSError as error:  # a full disk, a folder that may not be written: the message names the file
        print(f"tinykron: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ntinykron: interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--device", choices=("cpu", "cuda"), help="default: $TINYKRON_DEVICE, else cpu")
    common.add_argument("--seed", type=int, help="of everything that is drawn (default 0)")
    common.add_argument("--json", action="store_true", help="print the result as JSON")
    parser = argparse.ArgumentParser(
        prog="tinykron",
        description="Learn the compression of transformers by doing it.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", title="verbs")

    def verb(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        sub = verbs.add_parser(name, parents=[common], help=text, description=text)
        sub.set_defaults(run=run)
        return sub

    run = verb("run", _run, "run a recipe: take a checkpoint, make a smaller one, report what it cost")
    run.add_argument("recipe", choices=("kngpt2",), help="kngpt2: Kronecker factors, then light distillation")
    run.add_argument("--model", metavar="FOLDER", help="the teacher (default: the shipped gpt2-tiny)")
    run.add_argument("--data", metavar="TEXT", help="text file or folder (default: the text that every Python carries)")
    run.add_argument("--out", metavar="DIR", help="folder to make (default: kngpt2, or kngpt2-2 if that exists, ...)")
    run.add_argument("--share", type=float, default=0.1, help="of the text, for the light training (default 0.1)")
    run.add_argument("--passes", type=int, default=1, help="over that share (default 1)")
    run.add_argument(
        "--head", choices=("tied", "dense"), default="tied", help="output head (default tied; paper: dense)"
    )

    train = verb("train", _train, "train a small model from a configuration, as the shipped ones were made")
    train.add_argument("recipe", nargs="?", metavar="CONFIG", help="TOML file (default: that of the shipped gpt2-tiny)")
    train.add_argument(
        "--data", metavar="TEXT", help="text file or folder (default: the text that every Python carries)"
    )
    train.add_argument("--out", metavar="DIR", required=True, help="folder to make")

    generate = verb("generate", _generate, "continue a prompt")
    generate.add_argument("model", nargs="?", metavar="MODEL", help="a folder (default: the shipped gpt2-tiny)")
    generate.add_argument("--prompt", default="The list type", help='text to continue (default "The list type")')
    generate.add_argument("--max-new-tokens", type=int, metavar="N", help="default 60, or what the context holds")
    generate.add_argument("--temperature", type=float, default=0.0, help="0 takes the likeliest token (default)")
    generate.add_argument("--top-k", type=int, metavar="K", help="draw from the K likeliest tokens")
    generate.add_argument(
        "--top-p", type=float, metavar="P", help="draw from the likeliest tokens that reach P together"
    )

    bench = verb("bench", _bench, "measure speed, beside PyTorch where that is installed")
    bench.add_argument("subject", choices=("engine",), help="engine: GPT-2 forward, decoding and a training step")
    bench.add_argument("--config", default="gpt2", help='"gpt2" (124M, the default) or "tiny", to try the benchmark')
    bench.add_argument("--threads", type=int, default=2, metavar="N", help="alike on both sides (default 2)")
    bench.add_argument("--repeats", type=int, default=5, metavar="N", help="pairs of turns per row (default 5)")
    return parser


def _run(options: argparse.Namespace) -> int:
    from tinykron import recipes, report

    settings = recipes.KnGPT2(share=options.share, passes=options.passes, head=options.head, seed=options.seed or 0)
    out = Path(options.out) if options.out else _free(Path(options.recipe))
    found = recipes.kngpt2(options.model, options.data, out, settings)
    if found is None:
        return 130
    print(report.as_json(found) if options.json else report.render(found))
    print(f"report and models: {out}", file=sys.stderr)
    return 0


def _free(folder: Path) -> Path:
    """Return the first of folder, folder-2, folder-3, ... that does not exist."""
    number, free = 1, folder
    while free.exists():
        number += 1
        free = folder.with_name(f"{folder.name}-{number}")
    return free


def _train(options: argparse.Namespace) -> int:
    from tinykron import data, pretrain

    recipe = options.recipe or data.shipped_folder("weights") / "gpt2-tiny.toml"
    history = pretrain.train(recipe, options.out, options.data, options.seed)
    if history.interrupted:
        print("interrupted; the same command continues", file=sys.stderr)
        return 130
    result = {"out": options.out, "steps": history.steps, "perplexity": history.perplexities[-1][1]}
    print(json.dumps(result) if options.json else f"{options.out}: held-out perplexity {result['perplexity']:.2f}")
    return 0


def _generate(options: argparse.Namespace) -> int:
    from tinykron import checkpoint, data
    from tinykron.generate import generate

    folder = options.model or data.weights_folder("gpt2-tiny")
    model = checkpoint.load(folder)
    if model.tokenizer is None:
        raise TinykronError(f"{folder}: expected a tokenizer.json, to read the prompt with")
    ids = model.tokenizer.encode(options.prompt).ids
    count = options.max_new_tokens
    if count is None:
        count = max(1, min(60, model.context - len(ids)))
    stream = None
    if not options.json:
        print(options.prompt, end="", flush=True)

        def stream(piece: str) -> None:
            print(piece, end="", flush=True)

    written = generate(
        model,
        ids,
        max_new_tokens=count,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        seed=options.seed or 0,
        stream=stream,
    )[0]
    if options.json:
        text = model.tokenizer.decode(written[len(ids) :].tolist())
        print(json.dumps({"prompt": options.prompt, "text": text, "ids": written.tolist()}))
    else:
        print()
    return 0


def _bench(options: argparse.Namespace) -> int:
    from tinykron import bench

    report = bench.engine(options.config, options.threads, options.repeats)
    print(json.dumps(report.as_dict(), indent=2) if options.json else bench.render(report), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
