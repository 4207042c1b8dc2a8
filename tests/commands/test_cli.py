"""The command line: what it prints, and what bad input gets: one line, exit code 2, nothing half-written."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.tiny_teacher import make_teacher, write_text
from tinykron.commands import cli
from tinykron.data.shipped import shipped_folder
from tinykron.jobs import recipes

BERT, LLAMA = (str(shipped_folder("weights") / name) for name in ("bert-tiny", "llama-tiny"))
VERBS = ["info", "run", "train", "eval", "finetune", "sort", "generate", "bench", "lesson"]


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    base = tmp_path_factory.mktemp("cli")
    text = write_text(base / "text.txt", lines=300)
    return base, text, make_teacher(base / "teacher", text)


def call(capsys, *arguments) -> tuple[int, str, str]:
    code = cli.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_without_a_verb_it_prints_the_verbs(capsys):
    code, out, _ = call(capsys)
    assert code == 0
    for verb in VERBS:
        assert f"  {verb}" in out


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_and_the_common_options(capsys, verb):
    with pytest.raises(SystemExit) as stop:
        cli.main([verb, "--help"])
    out = capsys.readouterr().out
    assert stop.value.code == 0
    assert all(option in out for option in ("--device", "--seed", "--json"))


def test_generate_prints_the_prompt_and_what_follows(capsys, places):
    _, _, teacher = places
    options = ["--prompt", "the list", "--max-new-tokens", "5", "--temperature", "1", "--seed", "3"]
    code, text, _ = call(capsys, "generate", teacher, *options)
    assert code == 0 and text.startswith("the list") and text.endswith("\n")
    code, out, _ = call(capsys, "generate", teacher, *options, "--json")
    content = json.loads(out)
    assert code == 0 and content["prompt"] + content["text"] + "\n" == text


def test_info_prints_sizes_and_every_matrix(capsys, places):
    _, _, teacher = places
    code, text, _ = call(capsys, "info", teacher)
    assert code == 0 and "GPT2, 4 layers of width 16" in text and "blocks.3.mlp.down" in text
    code, out, _ = call(capsys, "info", teacher, "--ratio", "4", "--json")
    content = json.loads(out)
    assert code == 0 and (content["model_type"], content["ratio"]) == ("gpt2", 4.0)
    assert content["parameters"] == content["others"] + sum(matrix["parameters"] for matrix in content["matrices"])


def test_eval_prints_what_a_text_costs(capsys, places):
    _, text, teacher = places
    options = ["--data", text, "--context", "16", "--stride", "12"]
    code, printed, _ = call(capsys, "eval", teacher, *options)
    assert code == 0 and "context 16, stride 12" in printed
    code, out, _ = call(capsys, "eval", teacher, *options, "--json")
    content = json.loads(out)
    assert code == 0 and f"perplexity {content['perplexity']:.2f}: {content['nats']:.4f} nats a token" in printed
    assert (content["measure"], content["context"], content["stride"]) == ("perplexity", 16, 12)


def test_run_prints_the_report_and_names_the_folder(capsys, places, tmp_path, monkeypatch):
    base, text, teacher = places
    monkeypatch.chdir(tmp_path)
    recipe = tmp_path / "kngpt2.toml"  # without the third stage, which would fine-tune on 1,563 examples
    recipe.write_text(recipes.text("kngpt2").split("[finetune]")[0])
    code, out, err = call(capsys, "run", recipe, "--model", teacher, "--data", text, "--json")
    assert code == 0 and "report and models: kngpt2" in err
    assert [model["name"] for model in json.loads(out)["models"]][0] == "teacher"
    code, out, err = call(capsys, "run", recipe, "--model", teacher, "--data", text)
    assert code == 0 and "perplexity" in out and "report and models: kngpt2-2" in err  # the first stays as it is


def test_recipes_are_listed_and_shown(capsys):
    code, out, _ = call(capsys, "run", "--list")
    assert code == 0 and [line.split(":")[0] for line in out.splitlines()] == recipes.names()
    code, out, _ = call(capsys, "run", "kngpt2", "--show")
    assert code == 0 and out == recipes.text("kngpt2")
    code, _, err = call(capsys, "run")
    assert code == 2 and "expected a recipe: better, kngpt2" in err


def test_a_recipe_that_trains_exits_is_run_as_sort_runs_it(capsys, places, tmp_path):
    _, _, teacher = places
    recipe = tmp_path / "mine.toml"
    recipe.write_text('exits = [1, 2]\nkind = "text"\nsteps = 2\nbatch = 2\ncontext = 16\n')
    code, out, _ = call(capsys, "run", recipe, "--model", teacher, "--out", tmp_path / "sorted", "--json")
    assert code == 0 and set(json.loads(out)["losses"]) == {"before", "sorted"}
    code, _, err = call(capsys, "run", recipe, "--model", teacher, "--set", "steps=3")
    assert code == 2 and "--set" in err and "trains exits" in err


def test_train_makes_a_folder_that_generate_reads(capsys, places, tmp_path):
    _, text, _ = places
    config = tmp_path / "micro.toml"
    config.write_text(
        '[tokenizer]\nvocab_size = 300\n[model]\nmodel_type = "gpt2"\nn_positions = 16\nn_embd = 8\nn_layer = 1\n'
        "n_head = 2\n[training]\nsteps = 2\nbatch = 2\ncontext = 16\n"
    )
    out = tmp_path / "made"
    code, printed, _ = call(capsys, "train", config, "--data", text, "--out", out)
    assert code == 0 and "held-out perplexity" in printed
    assert call(capsys, "generate", out, "--max-new-tokens", "2")[0] == 0
    code, _, err = call(capsys, "train", config, "--data", text, "--out", out)
    assert code == 2 and "exists already" in err


RUN = ["run", "kngpt2", "--model", "{teacher}"]
BAD_INPUT = {
    "a missing model": (["generate", "{base}/nowhere"], "nowhere"),
    "a file for a model": (["generate", "{text}"], "expected a folder"),
    "a model that writes nothing": (["generate", BERT], "no causal language"),
    "a recipe for another family": (["run", "kngpt2", "--model", LLAMA], "expected a Bert or GPT2, found a Llama"),
    "a temperature below 0": (["generate", "{teacher}", "--temperature", "-1"], "temperature"),
    "top-p above 1": (["generate", "{teacher}", "--top-p", "2"], "argument --top-p: found 2.0"),
    "an empty prompt": (["generate", "{teacher}", "--prompt", ""], "prompt"),
    "a prompt beyond the context": (["generate", "{teacher}", "--prompt", "the list " * 99], "context"),
    "a missing text": ([*RUN, "--data", "{base}/no.txt", "--out", "{base}/x"], "no.txt"),
    "an empty text": ([*RUN, "--data", "{base}/empty.txt", "--out", "{base}/x"], "empty"),
    "a folder that exists": ([*RUN, "--data", "{text}", "--out", "{base}"], "exists"),
    "a share above 1": (["run", "kngpt2", "--set", "pretrain.share=7"], "share"),
    "a ratio below 1": (["info", "{teacher}", "--ratio", "0.5"], "ratio"),
    "a ratio that is no number": (["info", "{teacher}", "--ratio", "nan"], "ratio"),
    "info of a missing model": (["info", "{base}/nowhere"], "nowhere"),
    "an empty text to evaluate": (["eval", "{teacher}", "--data", "{base}/empty.txt"], "empty"),
    "a context beyond the model's": (["eval", "{teacher}", "--data", "{text}", "--context", "33"], "expected 1 to"),
    "a stride beyond the context": (["eval", "{teacher}", "--data", "{text}", "--stride", "33"], "stride: found 33"),
    "a stride of 0": (["eval", "{teacher}", "--data", "{text}", "--stride", "0"], "stride: found 0"),
    "a limit for a causal model": (["eval", "{teacher}", "--data", "{text}", "--limit", "5"], "limit"),
    "a missing configuration": (["train", "{base}/no.toml", "--out", "{base}/x"], "no.toml"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_gets_one_line_and_exit_code_2(capsys, places, case):
    base, text, teacher = places
    (base / "empty.txt").write_text("")
    arguments, word = BAD_INPUT[case]
    code, out, err = call(capsys, *(a.format(base=base, text=text, teacher=teacher) for a in arguments))
    assert code == 2
    assert err.splitlines()[-1].startswith("tinykron: ") and word in err and "Traceback" not in err
    assert not (base / "x").exists()


def test_a_reader_that_goes_away_is_no_error(places):
    _, _, teacher = places
    command = f"{sys.executable} -m tinykron generate {teacher} --max-new-tokens 20 | head -c 1"
    result = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60)
    assert "Traceback" not in result.stderr and "BrokenPipe" not in result.stderr


def test_an_unknown_device_is_refused_by_name(capsys, monkeypatch):
    monkeypatch.setenv("TINYKRON_DEVICE", "tpu")
    code, _, err = call(capsys, "generate")
    assert code == 2 and '"tpu"' in err
