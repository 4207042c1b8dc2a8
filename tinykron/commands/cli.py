"""The command line: one verb, one job. `tinykron` alone prints the verbs."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tinykron import __version__
from tinykron.backend import current_device, device
from tinykron.commands import generate as commands_generate
from tinykron.commands import sort_grid
from tinykron.commands.evaluate import TASK_HELP, finetune_options
from tinykron.commands.lesson import lesson, lesson_options
from tinykron.commands.run import recipe_options
from tinykron.commands.sort import sort_options
from tinykron.errors import Interrupted, TinykronError
from tinykron.threads import long_work

EXAMPLES = """\
examples:
  tinykron run kngpt2                          halve the shipped GPT-2, distil it, fine-tune it, report
  tinykron run better --model MODEL --data TEXT --set factorise.params=0.3 --out DIR
  tinykron compress MODEL --params 0.5 --out DIR  half the parameters: planned, fitted to a text, measured
  tinykron info MODEL --ratio 4                its matrices, its costs, what Kronecker factors would keep
  tinykron eval MODEL --data TEXT              perplexity of a text, with --context and --stride
  tinykron finetune --out my-bert              teach the shipped BERT which package a docstring belongs to
  tinykron eval my-bert --task docs/package    how well it does at that
  tinykron sort --exits 2,4,6 --out my-sorted  fine-tune exits after 2, 4, 6 and all blocks
  tinykron generate --prompt "The list type"   text from the shipped GPT-2
  tinykron sort --ranks 1,2,4 --exits 2,4,6,8 --out DIR  one model in which each depth and rank is a model
  tinykron train --out my-gpt2                 train a small GPT-2 on the text that every Python carries
  tinykron lesson                              the first lesson, in the browser; then `tinykron lesson next`
  tinykron bench engine                        the engine beside PyTorch, where that is installed
  tinykron bench kron                          Kronecker layers beside the dense one, and beside peers
a MODEL is a folder, a place in the Hugging Face cache, or a hub id (fetched only with --download)
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0; 1 for a broken promise; 2 for bad input; 130 after Ctrl-C."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.verb is None:
        parser.print_help()
        return 0
    try:
        with long_work(), device(options.device or current_device()):
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
    except KeyboardInterrupt as stopped:
        known = isinstance(stopped, Interrupted)
        print("interrupted; the same command continues" if known else "\ntinykron: interrupted", file=sys.stderr)
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
    parser.add_argument("--version", action="version", version=f"tinykron {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", title="verbs")

    def verb(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        sub = verbs.add_parser(name, parents=[common], help=text, description=text)
        sub.set_defaults(run=run)
        return sub

    def takes_model(sub: argparse.ArgumentParser, flag: str = "model") -> None:
        default = "default: the shipped gpt2-tiny"
        options: dict[str, Any] = {} if flag.startswith("-") else {"nargs": "?"}
        sub.add_argument(flag, metavar="MODEL", help=f"a folder, a cache path or a hub id ({default})", **options)
        sub.add_argument("--download", action="store_true", help="fetch a hub id that is not in the cache")

    info = verb("info", _info, "say what a checkpoint is: matrices, sizes, costs, what Kronecker factors would keep")
    takes_model(info)
    info.add_argument("--ratio", type=float, default=2.0, help="by which the factors are smaller (default 2)")

    run = verb("run", _run, "run a recipe: take a checkpoint, make a smaller one, report what it cost")
    recipe_options(run)
    takes_model(run, "--model")

    train = verb("train", _train, "train a small model from a configuration, as the shipped ones were made")
    train.add_argument("recipe", nargs="?", metavar="CONFIG", help="TOML file (default: that of the shipped gpt2-tiny)")
    train.add_argument(
        "--data", metavar="TEXT", help="text file or folder (default: the text that every Python carries)"
    )
    train.add_argument("--out", metavar="DIR", required=True, help="folder to make")

    compress = verb("compress", _compress, "make a checkpoint smaller within budgets; without training")
    takes_model(compress)
    for budget, what in (("params", "parameters"), ("bytes", "bytes"), ("flops", "matrices' FLOPs a token")):
        text = f"share of the {what} up to 1, or their number"
        compress.add_argument(f"--{budget}", type=float, metavar="N", help=text)
    presets = "kngpt2, kroneckerbert8, kroneckerbert21, krony-pt-92m (67m to 96m)"
    compress.add_argument("--preset", metavar="NAME", help=f"a paper's shapes: {presets}")
    compress.add_argument("--plan", metavar="FILE", help="a plan.json of an earlier run, edited or not")
    compress.add_argument(
        "--calibration", metavar="TEXT", help="text file or folder (default: the text of every Python)"
    )
    compress.add_argument("--tokens", type=int, default=8192, metavar="N", help="to calibrate on (default 8192)")
    compress.add_argument("--plain", action="store_true", help="do not calibrate: plain nearest sums")
    compress.add_argument("--out", metavar="DIR", help="folder to make (required unless --dry-run)")
    compress.add_argument("--merge", metavar="DIR", help="also make a dense folder with the same logits")
    compress.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="of the files (default: as stored)"
    )
    compress.add_argument("--dry-run", action="store_true", help="say sizes and memory, and do nothing")

    evaluate = verb("eval", _evaluate, "measure how well a model predicts a text, or does at a labelled task")
    takes_model(evaluate)
    evaluate.add_argument(
        "--data", metavar="TEXT", help="text file or folder (default: what training held out); the files of a --task"
    )
    evaluate.add_argument("--task", metavar="TASK", help=f"{TASK_HELP}; qa/closed-book; similarity/sts")
    evaluate.add_argument("--split", choices=("valid", "test"), default="test", help="of lm/wikitext (default test)")
    evaluate.add_argument("--predict", metavar="DIR", help="of a --task: write its test set's answers for the server")
    evaluate.add_argument(
        "--context", type=int, metavar="N", help="tokens of a window (default: the model's, at most 2048)"
    )
    evaluate.add_argument("--stride", type=int, metavar="N", help="between two windows (default: the context)")
    evaluate.add_argument("--limit", type=int, metavar="N", help="of tokens that a masked model hides (default: all)")

    tune = verb("finetune", _finetune, "fine-tune a model on a labelled task or on a text")
    takes_model(tune)
    finetune_options(tune)

    sort = verb("sort", _sort, "fine-tune a model so that chosen depths are models of their own, beside baselines")
    takes_model(sort)
    sort_options(sort)
    sort_grid.add_options(sort)
    commands_generate.calibrate_options(sort)

    generate = verb("generate", _generate, "continue a prompt")
    takes_model(generate)
    commands_generate.generate_options(generate)
    sort_grid.budget_options(generate)

    again = verb("reproduce", _reproduce, "answer a claim by experiment: mean and spread over seeds")
    papers = "fit: which way to make a matrix smaller loses least; the others: what the paper claims"
    again.add_argument("relation", choices=("fit", "kngpt2", "kroneckerbert", "sorted-llama"), help=papers)
    again.add_argument("--out", metavar="DIR", help="folder of rows and report; continued (default: reproduce-...)")
    again.add_argument("--only", metavar="R5,R6", help="of a paper: these relations alone")
    again.add_argument("--model", metavar="NAME", help="fit: of the shipped ones, this alone (default: all three)")
    again.add_argument("--quick", action="store_true", help="less of everything, with wider spread")

    bench = verb("bench", _bench, "measure speed, beside PyTorch where that is installed")
    subjects = "engine: GPT-2 forward, decoding and a training step; decode: loading a model, and writing with it; "
    subjects += "kron: Kronecker layers beside the dense one and beside other packages; exits: drafts, leaving early"
    bench.add_argument("subject", choices=("engine", "decode", "kron", "exits"), help=subjects)
    bench.add_argument("model", nargs="?", metavar="MODEL", default=argparse.SUPPRESS, help="decode, exits: as --model")
    bench.add_argument("--config", default="gpt2", help='engine: "gpt2" (124M, the default) or "tiny", to try it')
    takes_model(bench, "--model")
    bench.add_argument("--threads", type=int, default=2, metavar="N", help="alike on both sides (default 2)")
    bench.add_argument("--repeats", type=int, default=5, metavar="N", help="turns of each side, per row (default 5)")
    bench.add_argument("--full", action="store_true", help="kron: every matrix, shape, number of terms and rows")
    commands_generate.bench_options(bench)
    lesson_options(verb("lesson", lesson, "open a lesson in the browser, as a copy of your own; or check yours"))
    return parser


def _model_folder(options: argparse.Namespace, shipped: str = "gpt2-tiny") -> Path:
    """Return the folder of the model that a verb was given, or of a shipped one."""
    from tinykron import data
    from tinykron.checkpoint import hub

    return hub.resolve(options.model, options.download) if options.model else data.weights_folder(shipped)


def _info(options: argparse.Namespace) -> int:
    from tinykron import checkpoint
    from tinykron.jobs import describe

    folder = _model_folder(options)
    found = describe.describe(folder, checkpoint.load(folder), options.ratio)
    print(json.dumps(asdict(found), indent=2) if options.json else describe.render(found))
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    from tinykron import checkpoint
    from tinykron.measure import perplexity

    if options.task:
        from tinykron.commands import evaluate as commands_evaluate

        return commands_evaluate.evaluate(options, _model_folder(options, commands_evaluate.shipped(options.task)))
    if options.predict:
        raise TinykronError("--predict: expected a --task whose test set is to be answered")
    model = checkpoint.load(_model_folder(options))
    found = perplexity.evaluate(model, options.data, options.context, options.stride, options.limit)
    if options.json:
        costs = {"perplexity": found.perplexity, "bits_per_byte": found.bits_per_byte}
        print(json.dumps(asdict(found) | costs, indent=2))
    else:
        print(perplexity.render(found))
    return 0


def _compress(options: argparse.Namespace) -> int:
    from tinykron.jobs import compress

    if not options.out and not options.dry_run:
        raise TinykronError("compress: expected --out DIR, or --dry-run")
    budget = compress.Budget(options.params, options.bytes, options.flops, options.preset, options.plan)
    outcome = compress.compress(
        _model_folder(options),
        None if options.dry_run else options.out,
        budget,
        options.calibration,
        options.tokens,
        not options.plain,
        options.merge,
        options.dtype,
        say=print if options.dry_run else lambda line: print(line, file=sys.stderr, flush=True),
        seed=options.seed or 0,
    )
    if outcome is None:
        return 0
    print(json.dumps(outcome.as_dict(), indent=2) if options.json else compress.render(outcome))
    return 0 if all(outcome.promises.values()) else 1


def _finetune(options: argparse.Namespace) -> int:
    from tinykron.commands import evaluate as commands_evaluate

    return commands_evaluate.finetune(options, _model_folder(options, commands_evaluate.shipped(options.task)))


def _sort(options: argparse.Namespace) -> int:
    from tinykron.commands import sort as commands_sort

    return commands_sort.sort(options, _model_folder(options))


def _run(options: argparse.Namespace) -> int:
    from tinykron.commands import run as commands_run

    return commands_run.run(options)


def _train(options: argparse.Namespace) -> int:
    from tinykron import data
    from tinykron.jobs import pretrain

    recipe = options.recipe or data.shipped_folder("weights") / "gpt2-tiny.toml"
    history = pretrain.train(recipe, options.out, options.data, options.seed)
    result = {"out": options.out, "steps": history.steps, "perplexity": history.perplexities[-1][1]}
    print(json.dumps(result) if options.json else f"{options.out}: held-out perplexity {result['perplexity']:.2f}")
    return 0


def _generate(options: argparse.Namespace) -> int:
    return commands_generate.generate(options, _model_folder(options))


def _reproduce(options: argparse.Namespace) -> int:
    from tinykron.studies import claims, fits, papers, sorted_llama

    out = options.out or f"reproduce-{options.relation}"

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    if options.relation != "fit":
        if options.model:
            raise TinykronError(f"--model: {options.relation} runs on one shipped model")
        if options.relation == "sorted-llama":
            answers = sorted_llama.reproduce(out, options.quick, options.only, say=say)
        else:
            answers = papers.reproduce(options.relation, out, options.quick, options.only, say=say)
        report = (Path(out) / "report.md").read_text(encoding="utf-8")
        print(json.dumps(claims.as_dict(answers)) if options.json else report)
        return 0
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
    print(f"report: {out}", file=sys.stderr)
    return 0


def _bench(options: argparse.Namespace) -> int:
    from tinykron.bench import engine, kron

    if options.subject == "exits":
        return commands_generate.bench_exits(options, _model_folder(options))
    if options.subject == "kron":
        found = kron.kron(options.full, options.threads, options.repeats)
        print(json.dumps(found.as_dict(), indent=2) if options.json else kron.render(found), end="")
        return 130 if found.interrupted else 0
    if options.subject == "engine":
        report = engine.engine(options.config, options.threads, options.repeats)
    else:
        report = engine.decode(_model_folder(options), options.threads, options.repeats)
    print(json.dumps(report.as_dict(), indent=2) if options.json else engine.render(report), end="")
    return 0
