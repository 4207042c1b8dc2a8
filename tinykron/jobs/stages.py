"""A recipe, run: factorise, train on text beside the teacher, fine-tune beside the fine-tuned teacher, measure, report.

Each stage reads the folder that the one before has saved, and saves its own; a stage that is done is not done again.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tinykron import checkpoint, data, kron, tasks
from tinykron.checkpoint import hub
from tinykron.checkpoint.folder import VALUE_BYTES
from tinykron.data import batch
from tinykron.data.masking import Masking
from tinykron.distill.objective import Distillation, layer_map
from tinykron.errors import CheckpointError, TinykronError
from tinykron.jobs.finetune import finetune, labelled
from tinykron.jobs.making import refuse
from tinykron.jobs.measurement import Measurement, measure, prompt_text
from tinykron.jobs.recipes import Recipe
from tinykron.jobs.report import Report, write
from tinykron.jobs.students import fitting, low_rank_plan, truncate, untie, with_head_of
from tinykron.kron.plan import KronPlan
from tinykron.models.bert import Bert
from tinykron.models.gpt2 import GPT2
from tinykron.nn import Linear
from tinykron.support.progress import say
from tinykron.tasks.tuning import FineTuning
from tinykron.tasks.tuning import fit as fit_task
from tinykron.train.loop import fit
from tinykron.train.settings import History, Settings

PROMPT_TOKENS = 12  # of held-out text, which every model of a report continues
RUN = "run.json"  # in the folder of a run that goes on: what it is a run of
TUNED = " tuned"  # behind the name of a model that was fine-tuned


@dataclass(frozen=True)
class Inputs:
    """What a recipe is run on."""

    model: str | Path | None = None  # folder, cache path or cached hub id; by default the recipe's shipped model
    text: str | Path | None = None  # file or folder; by default the text that every Python carries
    task_folder: str | Path | None = None  # of the task's files; a stand-in needs none
    pairs: str | Path | None = None  # sentences with people's scores, to measure a BERT's embeddings by


@dataclass(frozen=True)
class Texts:
    """The token streams of a run."""

    training: list[data.Document]
    training_tokens: int
    light: np.ndarray  # the share for the training
    held_out: np.ndarray
    prompt: list[int]


def run(recipe: Recipe, out: str | Path, inputs: Inputs | None = None) -> Report:
    """Run a recipe, and leave the folder `out`: report.md, report.json, plots, and each model in a folder of its own.

    Models: `factorised`, `distilled`, the baselines by their names, and each of them, and the teacher, ` tuned`.
    After Ctrl-C, which raises Interrupted, and after a kill, the same call continues from the folder
    `<out>.partial`. Raises TinykronError, before any work, if `out` exists or the inputs do not fit.
    """
    inputs, out = inputs or Inputs(), Path(out)
    refuse(out)
    folder = hub.resolve(inputs.model) if inputs.model is not None else data.weights_folder(recipe.model)
    say(f"loading the teacher from {folder}")
    teacher = checkpoint.load(folder)
    if teacher.tokenizer is None:
        raise CheckpointError(f"{folder}: expected a tokenizer.json, to read the text with")
    text = _texts(teacher, inputs.text, recipe)
    going_on = Run(recipe, inputs, folder, teacher, text, out.with_name(out.name + ".partial"))
    going_on.check()
    return going_on.all(out)


def _texts(teacher: Any, source: str | Path | None, recipe: Recipe) -> Texts:
    """Read the text, hold some documents out, take the share for the training."""
    training, held_out = data.split(data.documents(source))
    say(f"read {len(training)} documents for training, {len(held_out)} held out")
    tokens = data.encode(teacher.tokenizer, training)
    share = recipe.pretrain.share if recipe.pretrain else 1.0
    light: list[np.ndarray] = []
    for index in np.random.default_rng(recipe.seed).permutation(len(training)):  # whole documents, up to the share
        if sum(map(len, light)) >= share * len(tokens):
            break
        light.append(data.encode(teacher.tokenizer, [training[index]]))
    held_out_tokens = data.encode(teacher.tokenizer, held_out)
    if len(held_out_tokens) < 2 * PROMPT_TOKENS:
        found = f"found {len(held_out_tokens)} held-out tokens, need {2 * PROMPT_TOKENS}"
        raise TinykronError(f"{source or 'the embedded text'}: too short: {found}")
    prompt = [int(token) for token in held_out_tokens[:PROMPT_TOKENS]]
    return Texts(training, len(tokens), np.concatenate(light), held_out_tokens, prompt)


@dataclass(frozen=True)
class Run:
    """A recipe on its inputs, in the folder where it goes on."""

    recipe: Recipe
    inputs: Inputs
    folder: Path  # of the teacher
    teacher: Any
    text: Texts
    partial: Path

    def check(self) -> None:
        """Refuse, before any work, what could not be finished, and a folder that belongs to another run."""
        recipe = self.recipe
        self._preset()  # raises where the model has not the shapes
        if recipe.factorise.head == "dense" and not isinstance(self.teacher, GPT2):
            raise TinykronError(f'{recipe.name}: head = "dense" is for a GPT-2, found a {type(self.teacher).__name__}')
        if recipe.pretrain:
            fitting(recipe.pretrain.losses, self.teacher)
        if self.task:
            tasks.fitted(self.teacher, self.task, np.random.default_rng(0))
            tasks.source_of(self.task, self.inputs.task_folder)
        if self.inputs.pairs is not None and not isinstance(self.teacher, Bert):
            raise TinykronError(f"sentence embeddings are a BERT's, found a {type(self.teacher).__name__}")
        described = asdict(recipe) | {key: str(value) for key, value in asdict(self.inputs).items()}
        wanted = json.dumps(described | {"teacher": str(self.folder)}, default=str) + "\n"
        path = self.partial / RUN
        if path.exists() and path.read_text(encoding="utf-8") != wanted:
            raise CheckpointError(f"{self.partial}: holds another run; choose another --out, or remove it")
        self.partial.mkdir(parents=True, exist_ok=True)
        path.write_text(wanted, encoding="utf-8")

    @property
    def task(self) -> tasks.Task | None:
        return tasks.find(self.recipe.finetune.task) if self.recipe.finetune else None

    def all(self, out: Path) -> Report:
        """Run the stages, and leave `out`."""
        recipe, courses = self.recipe, {}
        students = ["factorised"]
        self.factorised()
        if recipe.pretrain:
            for name in ("distilled", *recipe.pretrain.baselines):
                courses[name] = self.distilled(name)
            students += ["distilled", *recipe.pretrain.baselines]
        folders: dict[str, str | Path] = {"teacher": self.folder, **{name: self.partial / name for name in students}}
        if recipe.finetune:
            self.tuned_teacher()
            folders["teacher" + TUNED] = self.partial / ("teacher" + TUNED)
            for name in students[1:] or students:
                courses[name + TUNED] = self.tuned(name)
                folders[name + TUNED] = self.partial / (name + TUNED)
        say("measuring teacher and students")
        measured = measure(
            folders, self.text.held_out, self.text.prompt, self.task, self.inputs.task_folder, self.inputs.pairs
        )
        prompt = prompt_text(self.teacher, self.text.prompt)
        report = Report(recipe.name, self.described(), measured, self._plan, courses, prompt, notes(measured, recipe))
        try:
            write(report, self.partial)
            (self.partial / RUN).unlink()
            for place in self.partial.glob("*.training"):
                shutil.rmtree(place, ignore_errors=True)
            os.replace(self.partial, out)
        except OSError as error:
            raise CheckpointError(
                f"{out}: cannot write the report: {error}; the models are in {self.partial}"
            ) from error
        return report

    # Factorising ------------------------------------------------------------------------------------------------------

    def _preset(self) -> KronPlan | None:
        preset = self.recipe.factorise.preset
        return kron.PRESETS[preset](self.teacher) if preset else None

    def _seen(self) -> Any:
        """Return what the planned matrices are given; None for a preset, which looks at no text."""
        settings = self.recipe.factorise
        if settings.preset:
            return None
        return kron.calibrate(
            self.teacher, batch.batches(self.teacher, self.text.training, settings.tokens, self.recipe.seed), say=say
        )

    def factorised(self) -> None:
        if (self.partial / "factorised").exists():
            return
        settings, plan, seen = self.recipe.factorise, self._preset(), self._seen()
        say("factorising")
        if plan is None:
            linear = [name for name, module in self.teacher.modules() if isinstance(module, Linear)]
            names = linear if settings.matrices == "linear" else None
            plan = kron.plan(
                self.teacher, settings.params, calibration=seen, names=names, value_bytes=self._bytes, say=say
            )
        student = kron.factorise(self.teacher, plan, seen)
        if settings.head == "dense" and student.head is None:
            untie(student, self.teacher)
        self._save(student, "factorised")

    @property
    def _plan(self) -> KronPlan:
        """The plan by which the first stage has factorised the teacher."""
        plan = kron.plan_of(checkpoint.load(self.partial / "factorised"))
        assert plan is not None
        return plan

    def _start(self, name: str) -> Any:
        """Return the model that a student is before its training on text; once it is trained, any of its structure."""
        if (self.partial / name).exists():
            return checkpoint.load(self.partial / name)
        if name == "distilled":
            return checkpoint.load(self.partial / "factorised")
        if name == "truncated":
            return truncate(self.teacher)
        return kron.factorise(self.teacher, low_rank_plan(self._plan), self._seen())

    # Training on text -------------------------------------------------------------------------------------------------

    def distilled(self, name: str) -> History:
        """Train a student beside the teacher; save it as a folder of its name."""
        settings, text = self.recipe.pretrain, self.text
        assert settings is not None
        losses, left_out = fitting(settings.losses, self.teacher)
        if left_out:
            say(f"{name}: without {', '.join(left_out)}: the model has no head for it")
        masking = None if self.teacher.causal else Masking.of(self.teacher.tokenizer)
        if masking and "cross_entropy" not in losses.terms:
            masking = replace(masking, share=0.0)  # nothing is predicted: the text is read as it is
        context = min(settings.context, self.teacher.context, len(text.light) - 1)
        steps = max(1, round(settings.passes * len(text.light) / (settings.batch * context)))
        training = Settings(
            steps=steps,
            batch=settings.batch,
            context=context,
            lr=settings.lr,
            warmup=min(steps // 10, 100),
            weight_decay=0.0,
            seed=self.recipe.seed,
            checkpoint_every=50,
        )
        student = self._start(name)
        layers = layer_map(len(student.blocks), len(self.teacher.blocks))
        history = fit(
            student,
            text.light,
            training,
            distillation=Distillation(student, self.teacher, losses, layers, dropout=settings.dropout),
            masking=masking,
            folder=self.partial / f"{name}.training",
            title=f"distilling {name}",
        )
        self._save(student, name)
        return history

    # Fine-tuning ------------------------------------------------------------------------------------------------------

    def _fine_tuning(self, lr: float) -> FineTuning:
        settings = self.recipe.finetune
        assert settings is not None and self.task is not None
        context = min(self.task.context, self.teacher.context)
        return FineTuning(settings.epochs, settings.batch, context, lr=lr, seed=self.recipe.seed)

    def tuned_teacher(self) -> None:
        settings, place = self.recipe.finetune, self.partial / ("teacher" + TUNED)
        assert settings is not None and self.task is not None
        if place.exists():
            return
        tuning = self._fine_tuning(settings.teacher_lr)
        finetune(self.folder, self.task, place, self.inputs.task_folder, tuning)

    def tuned(self, name: str) -> History:
        """Fine-tune a student beside the fine-tuned teacher, whose head it takes over. KroneckerBERT, section 3.7."""
        settings, task = self.recipe.finetune, self.task
        assert settings is not None and task is not None
        teacher = checkpoint.load(self.partial / ("teacher" + TUNED))
        student = with_head_of(teacher, checkpoint.load(self.partial / name), task)
        tuning = self._fine_tuning(settings.lr)
        source = tasks.source_of(task, self.inputs.task_folder)
        examples = labelled(task, source, student.tokenizer, tuning.context)
        layers = layer_map(len(student.blocks), len(teacher.blocks))
        distillation = Distillation(student, teacher, settings.losses, layers, label_loss=task.loss)

        history = fit_task(
            student,
            examples.features,
            tuning,
            distillation,
            examples.score,
            inputs=distillation.identity.encode(),
            folder=self.partial / f"{name}{TUNED}.training",
            title=f"{task.name}, {name}",
        )
        self._save(student, name + TUNED)
        return history

    # Saving and saying ------------------------------------------------------------------------------------------------

    @property
    def _dtype(self) -> str:
        return checkpoint.stored_dtype(self.folder)

    @property
    def _bytes(self) -> int:
        return VALUE_BYTES[self._dtype]

    def _save(self, model: Any, name: str) -> None:
        """Save a stage's model; one that a run before saved is the same one."""
        if not (self.partial / name).exists():
            checkpoint.save(model, self.partial / name, dtype=self._dtype)

    def described(self) -> dict[str, Any]:
        """Return what was run on what, for the report."""
        recipe, inputs = self.recipe, self.inputs
        factorise = recipe.factorise
        said: dict[str, Any] = {
            "teacher": self.folder.name,
            "text": data.name_of(inputs.text),
            "training tokens": self.text.training_tokens,
            "held-out tokens": len(self.text.held_out),
            "factorised by": f"preset {factorise.preset}" if factorise.preset else f"plan, params {factorise.params:g}",
            "head": factorise.head,
        }
        if recipe.pretrain:
            settings, tokens = recipe.pretrain, len(self.text.light)
            losses, left_out = fitting(settings.losses, self.teacher)
            said["light training"] = f"{settings.passes} x {tokens:,} tokens ({settings.share:.0%} of the text)"
            said |= {"learning rate": settings.lr, "losses": str(losses)}
            said |= {"losses left out": f"{', '.join(left_out)}: the model has no head for it"} if left_out else {}
        if recipe.finetune:
            tuning = recipe.finetune
            said["task"] = f"{tuning.task}, {tuning.epochs} epochs, lr {tuning.lr:g}, teacher's {tuning.teacher_lr:g}"
            said["losses of the fine-tuning"] = str(tuning.losses)
        return said | {"seed": recipe.seed}


# Words ----------------------------------------------------------------------------------------------------------------


def notes(models: Sequence[Measurement], recipe: Recipe) -> list[str]:
    """Return what the measurements say, in sentences."""
    by_name = {row.name: row for row in models}
    teacher, factorised = by_name["teacher"], by_name["factorised"]
    last = by_name.get("distilled", factorised)
    said = [
        f"The {last.name} model has {1 - last.parameters / teacher.parameters:.0%} fewer parameters than its teacher, "
        f"and takes {last.bytes / teacher.bytes:.0%} of its bytes."
    ]
    if last.perplexity and teacher.perplexity and factorised.perplexity:
        before, after = factorised.perplexity / teacher.perplexity, last.perplexity / teacher.perplexity
        said.append(
            f"Its perplexity is {after:.2f} times its teacher's; before distillation it was {before:.2f} times."
        )
    for name in recipe.pretrain.baselines if recipe.pretrain else ():
        other = by_name[name]
        if last.perplexity and other.perplexity:
            better = "below" if last.perplexity < other.perplexity else "above"
            said.append(f"That is {better} the {name} student's, in this one run with seed {recipe.seed}.")
    tuned, own = by_name.get("teacher" + TUNED), by_name.get(last.name + TUNED)
    if tuned and own and tuned.score is not None and own.score is not None:
        said.append(f"Fine-tuned, it scores {100 * own.score:.2f}; its teacher {100 * tuned.score:.2f}.")
    return said
