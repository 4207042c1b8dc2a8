"""Recipes as files: those that ship, and what a file may not say."""

from __future__ import annotations

import tomllib

import pytest

from tinykron.distill.losses import Losses
from tinykron.errors import TinykronError
from tinykron.jobs import recipes
from tinykron.jobs.recipes import Factorise, Finetune, Pretrain, Recipe
from tinykron.jobs.sort import Sorting

LEAST = {"model": "gpt2-tiny", "factorise": {"preset": "kngpt2"}}


def test_the_shipped_recipes_are_read_and_say_what_they_are():
    of_exits = ["sorted-llama", "sorted-llama-13b"]
    assert recipes.names() == ["better", "kngpt2", "kroneckerbert21", "kroneckerbert8", *of_exits]
    for name in recipes.names():
        assert recipes.trains_exits(name) == (name in of_exits)
        if name in of_exits:
            assert Sorting.read(name).method == "sorted"
        else:
            recipe = recipes.read(name)
            assert recipe.name == name and recipe.pretrain is not None
        assert len(recipes.title(name)) > 20 and not recipes.title(name).startswith("#")


def test_the_papers_losses_stand_in_the_files():
    kngpt2, bert8, bert21 = (recipes.read(name) for name in ("kngpt2", "kroneckerbert8", "kroneckerbert21"))
    assert kngpt2.pretrain.losses == kngpt2.finetune.losses == Losses()
    eq14 = Losses(attention_form="scores", logits=1.0)
    for recipe in (bert8, bert21):
        assert recipe.finetune.losses == eq14
        assert recipe.pretrain.losses == Losses(attention_form="scores", logits=1.0, next_sentence=1.0)
        assert (recipe.pretrain.share, recipe.pretrain.passes) == (0.1, 3)
        assert recipe.factorise.preset == recipe.name
    assert (kngpt2.pretrain.share, kngpt2.pretrain.passes, kngpt2.factorise.preset) == (0.1, 1, "kngpt2")


def test_a_file_of_ones_own_is_read(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(recipes.text("kngpt2"))
    from dataclasses import replace

    assert recipes.read(path) == replace(recipes.read("kngpt2"), name="mine")


def test_values_are_set_beside_the_file():
    recipe = recipes.read(
        "kngpt2", ["pretrain.share=0.25", "seed=3", 'factorise.head="dense"', "finetune.losses.hidden=2"]
    )
    assert (recipe.pretrain.share, recipe.seed, recipe.factorise.head) == (0.25, 3, "dense")
    assert recipe.finetune.losses.hidden == 2
    assert recipes.read("better", ["finetune.task='docs/package'"]).finetune == Finetune("docs/package")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("share", r"--set 'share': expected KEY=VALUE as in TOML"),
        ("pretrain.share=many", r"--set 'pretrain.share=many': expected KEY=VALUE"),
        ("seed.x=1", r"seed is no section"),
        ("pretrain.shares=1", r"kngpt2.toml: pretrain: unknown shares; expected some of share, passes, .*, losses"),
        ("passes=1", r"kngpt2.toml: unknown passes; expected some of model, seed, factorise, pretrain, finetune"),
        ("pretrain.share=1.5", r"pretrain: share: found 1.5, expected a number above 0 and up to 1"),
        ("pretrain.share=0", r"pretrain: share: found 0.0, expected a number above 0"),
        ("pretrain.passes=1.5", r"pretrain: passes: found 1.5, expected a whole number"),
        ("pretrain.lr='fast'", r"pretrain: lr: found 'fast', expected a number"),
        ("pretrain.dropout=0.1", r"pretrain: dropout: found 0.1, expected true or false"),
        ("pretrain.lr=nan", r"pretrain: lr: found nan, expected a number"),
        ("pretrain.baselines='truncated'", r"baselines: found 'truncated', expected a list of texts"),
        ("pretrain.baselines=['none']", r"baselines: found 'none', expected one of truncated, low-rank"),
        ("pretrain.losses=1", r"pretrain: losses: expected a section \[pretrain.losses\], found 1"),
        ("pretrain.losses.hiden=1", r"pretrain: losses: unknown hiden"),
        ("factorise.losses.hidden=1", r"factorise: unknown losses; expected some of preset"),
        ("factorise.preset='none'", r"factorise: preset: found 'none', expected one of kngpt2"),
        ("factorise.params=0.5", r"factorise: expected a preset or params, one of the two"),
        ("factorise.matrices='none'", r"factorise: matrices: found 'none', expected one of all, linear"),
        ("factorise.head='none'", r"factorise: head: found 'none', expected one of tied, dense"),
        ("finetune.task='none'", r"task: found 'none', expected one of docs/package"),
        ("finetune.losses.hidden={start=1, end=0}", r"finetune: losses: hidden: a schedule is for pretrain"),
        ("finetune.losses.next_sentence=1", r"finetune: losses: next_sentence is for pretrain"),
        ("seed=-1", r"seed: found -1, expected a whole number from 0 on"),
        ("seed=true", r"seed: found True, expected a whole number"),
    ],
)  # fmt: skip
def test_what_a_recipe_may_not_say_is_named(change, message):
    with pytest.raises(TinykronError, match=message):
        recipes.read("kngpt2", [change])


def test_what_a_file_lacks_is_named(tmp_path):
    for lacking, message in ({"model": 1}, "model: expected"), ({"factorise": 1}, "factorise: expected a section"):
        content = {key: value for key, value in LEAST.items() if key not in lacking}
        with pytest.raises(TinykronError, match=message):
            recipes.parse("mine", content)
    with pytest.raises(TinykronError, match="finetune: expected task, found none"):
        recipes.parse("mine", LEAST | {"finetune": {"epochs": 1}})
    with pytest.raises(TinykronError, match=r"factorise: expected a section \[factorise\], found 3"):
        recipes.parse("mine", LEAST | {"factorise": 3})
    (tmp_path / "broken.toml").write_text("model = ")
    with pytest.raises(TinykronError, match="broken.toml: not TOML"):
        recipes.read(tmp_path / "broken.toml")
    with pytest.raises(TinykronError, match="none.toml: cannot be read"):
        recipes.read(tmp_path / "none.toml")
    with pytest.raises(
        TinykronError, match="recipe: found 'none', expected one of better, kngpt2, .*, or a .toml file"
    ):
        recipes.read("none")


def test_the_least_recipe_has_one_stage():
    assert recipes.parse("mine", LEAST) == Recipe("mine", "gpt2-tiny", Factorise("kngpt2"))
    assert recipes.parse("mine", LEAST | {"pretrain": {}}).pretrain == Pretrain()


def test_another_task_takes_the_place_of_the_recipes():
    assert recipes.with_task(recipes.read("kngpt2"), "glue/sst2").finetune.task == "glue/sst2"
    with pytest.raises(TinykronError, match=r"better: has no stage \[finetune\] for a task"):
        recipes.with_task(recipes.read("better"), "glue/sst2")


def test_the_files_are_toml_with_no_key_twice():
    for name in recipes.names():
        keys = set(tomllib.loads(recipes.text(name)))
        assert keys >= ({"exits", "method"} if recipes.trains_exits(name) else {"model", "factorise", "pretrain"})
