"""A checkpoint is a folder: config.json, tensors in safetensors files, tokenizer.json. Loading one, and saving one.

The names and layouts are Hugging Face's; each model family brings a table of them, and one loop here reads all tables.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tinykron.backend import to_device, to_host, xp_of
from tinykron.checkpoint.hub import resolve
from tinykron.checkpoint.safetensors_file import FLOATS, Stored, contents, json_object, write
from tinykron.checkpoint.tokenizer import TOKENIZER, load_tokenizer
from tinykron.errors import CheckpointError
from tinykron.kron.nested import kron_layers
from tinykron.kron.plan import KronPlan
from tinykron.kron.restructure import plan_of, restructure
from tinykron.models import bert, gpt2, llama
from tinykron.models.checks import Config, trained_exits
from tinykron.models.exit_parts import add_parts, kind_of
from tinykron.models.transformer import Model, Name
from tinykron.nn import Parameter, Unset, mismatch

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Family:
    """What loading needs to know about the models of one `model_type`."""

    config: Callable[[dict[str, Any]], Config]  # checks a config.json
    model: Callable[[Any, Unset], Model]
    names: Callable[[Any], list[Name]]
    prefixes: tuple[str, ...]  # that may stand before a tensor's name, or be left out
    ignored: Callable[[Any], tuple[str, ...]]  # patterns of whole names, without prefix, that fill no parameter
    absent: Callable[[dict[str, Any], Collection[str]], dict[str, Any]] = lambda config, names: config
    # what config.json leaves open and the names of the tensors, without prefix, tell


FAMILIES = {
    "gpt2": Family(gpt2.GPT2Config.from_dict, gpt2.GPT2, gpt2.names, gpt2.PREFIXES, gpt2.ignored, gpt2.told_by_tensors),
    "bert": Family(
        bert.BertConfig.from_dict,
        bert.Bert,
        bert.names,
        bert.PREFIXES,
        bert.ignored,
        bert.told_by_tensors,
    ),
    "llama": Family(llama.LlamaConfig.from_dict, llama.Llama, llama.names, llama.PREFIXES, llama.ignored),
}


# Loading --------------------------------------------------------------------------------------------------------------


def load(model: str | os.PathLike[str], download: bool = False) -> Model:
    """Return the model in a folder: float32, on the default device, in evaluation mode.

    model     a folder: config.json with a known model_type; model.safetensors, or model.safetensors.index.json and its
              shards; a tokenizer's files, which become `.tokenizer`, a `tokenizers.Tokenizer` (None where there are
              none). Also a repository in a Hugging Face cache, or a hub id such as "openai-community/gpt2"
    download  fetch a hub id that is not in the cache
    Returns a GPT2, Bert or Llama, by model_type.
    Tensors are read a few megabytes at a time, so that memory peaks little above the size of the model.
    Raises one CheckpointError that lists all that is missing, unexpected or of the wrong shape.
    """
    folder = resolve(model, download)
    if not folder.is_dir():
        found = "a file" if folder.exists() else "nothing"
        raise CheckpointError(f"{folder}: found {found}, expected a folder with {CONFIG} and {WEIGHTS}")
    config = json_object(folder / CONFIG)
    kind = config.get("model_type")
    if kind not in list(FAMILIES):
        raise CheckpointError(f"{folder / CONFIG}: model_type is {kind!r}, known are {', '.join(FAMILIES)}")
    own = config.pop("tinykron", {})
    if not isinstance(own, dict):
        raise CheckpointError(f"{folder / CONFIG}: tinykron: expected an object, found {own!r}")
    family = FAMILIES[kind]
    path, tensors = _tensors(folder)
    config = family.absent(config, {_without_prefix(name, family) for name in tensors})
    try:
        made = _build(family, config, own)
    except (MemoryError, ValueError) as error:  # NumPy's for sizes beyond all reason, and our own
        raise CheckpointError(f"{folder / CONFIG}: {error}") from None
    _fill(made, family, tensors, path)
    made.tokenizer = load_tokenizer(folder)
    return made.eval()


def stored_dtype(folder: str | os.PathLike[str]) -> str:
    """Return the dtype that most values of a checkpoint have, as `save` takes it: float32 for one it cannot write."""
    sizes = dict.fromkeys(DTYPES, 0)
    for stored in _tensors(Path(folder))[1].values():
        name = {"BF16": "bfloat16", "F16": "float16"}.get(stored.dtype, "float32")
        sizes[name] += int(np.prod(stored.shape, dtype=np.int64))
    return max(sizes, key=lambda name: sizes[name])


def tensor_bytes(folder: str | os.PathLike[str]) -> int:
    """Return the bytes that the tensor files of a checkpoint take on disk."""
    return sum(path.stat().st_size for path in Path(folder).glob("*.safetensors"))


def _build(family: Family, config: dict[str, Any], own: dict[str, Any]) -> Model:
    """Return the model that a configuration describes, its weights unset.

    own  what it says under "tinykron": "kron", the plan of Kronecker factors; "exits", the depths that were trained;
         "exit_parts", which parts each of them but the last has of its own
    """
    model = family.model(family.config(config), Unset())
    if "exits" in own:
        model.exits = trained_exits(own["exits"], len(model.blocks))
    if "exit_parts" in own:
        add_parts(model, own["exit_parts"], [exit for exit in model.exits if exit < len(model.blocks)])
    return restructure(model, KronPlan.from_json(json.dumps(own["kron"]))) if "kron" in own else model


def _tensors(folder: Path) -> tuple[Path, dict[str, Stored]]:
    """Return the file that lists a folder's tensors, and the tensors: of the single file, or of all shards."""
    if (folder / WEIGHTS).exists():
        return folder / WEIGHTS, contents(folder / WEIGHTS)
    index = folder / INDEX
    if not index.exists():
        others = ", ".join(sorted(path.name for path in folder.glob("*.bin")))
        hint = f"; {others} is no safetensors file: save the model again with transformers" if others else ""
        raise CheckpointError(f"{folder}: found neither {WEIGHTS} nor {INDEX}{hint}")
    places = json_object(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(place, str) for place in places.values()):
        raise CheckpointError(f'{index}: expected "weight_map", an object of tensor names and file names')
    outside = [place for place in places.values() if not re.fullmatch(r"[^/\\\0]+", place)]
    if outside:
        raise CheckpointError(f"{index}: {outside[0]!r} is no file name: shards lie in the folder of the index")
    names = sorted(set(places.values()))
    absent = [place for place in names if not (folder / place).is_file()]
    if absent:
        there = sorted(path.name for path in folder.glob("*.safetensors"))
        found = ", ".join(there) or "none"
        raise CheckpointError(f"{index}: weight_map names {', '.join(absent)}, not in the folder: found {found}")
    shards = {place: contents(folder / place) for place in names}
    twice = [
        f"{name} in {place} and {places[name]}"
        for place, held in shards.items()
        for name in held
        if places.get(name, place) != place
    ]
    if twice:
        raise CheckpointError(f"{index}: expected each tensor in one shard, found {', '.join(twice)}")
    stale = [f"{name} in {place}" for name, place in places.items() if name not in shards[place]]
    if stale:
        raise CheckpointError(f"{index}: names tensors that are not there: {', '.join(stale)}")
    return index, {name: shards[place][name] for name, place in places.items()}


def _fill(model: Any, family: Family, tensors: Mapping[str, Stored], path: Path) -> None:
    """Fill every parameter once from the tensors of a checkpoint, or say all that does not fit."""
    own = dict(model.named_parameters())
    table = _table(family, model)
    ignored = family.ignored(model.config)
    found: dict[str, Stored] = {}
    missing, unexpected, wrong, pairs = [], [], [], []
    for key, tensor in tensors.items():
        bare = _without_prefix(key, family)
        if any(re.fullmatch(pattern, bare) for pattern in ignored):
            continue
        if bare in found:  # once with the prefix and once without
            unexpected.append(key)
        found[bare] = tensor
    for name in table:
        aliased = found.pop(name.alias, None) if name.alias else None
        stored = found.pop(_without_prefix(name.file, family), aliased)
        parameters = [own[part] for part in name.ours]
        if stored is None:
            missing.append(name.file + (f" ({name.note})" if name.note else ""))
        elif fault := _fault(stored, name, parameters):
            wrong.append(fault)
        else:
            pairs.append((stored, name, parameters))
    message = mismatch(missing, unexpected + [tensor.name for tensor in found.values()], wrong)
    if message:
        raise CheckpointError(f"{path} does not fit {CONFIG}\n{message}")
    for stored, name, parameters in pairs:
        if name.transposed:  # laid out as in the file and seen from the other side: a product reads either way
            [parameter] = parameters
            parameter.data = xp_of(parameter.data).empty(stored.shape, dtype=parameter.dtype).T
        for rows, values in stored.blocks():
            for parameter, part in zip(parameters, _parts(values, parameters), strict=True):
                target = parameter.data.T if name.transposed else parameter.data
                target[rows] = to_device(part, parameter.device)


def _table(family: Family, model: Any) -> list[Name]:
    """Return the family's name table; what Kronecker factors replace, and what is left beside it, has our own names."""
    own = dict(model.named_parameters())
    whole = [name for name in family.names(model.config) if all(part in own for part in name.ours)]
    covered = {part for name in whole for part in name.ours}
    return whole + [Name(part, (part,)) for part in own if part not in covered]


def _without_prefix(name: str, family: Family) -> str:
    return name.removeprefix(next((prefix for prefix in family.prefixes if name.startswith(prefix)), ""))


def _fault(stored: Stored, name: Name, parameters: Sequence[Parameter]) -> str:
    """Return why a stored tensor cannot fill the parameters, "" if it can."""
    shape = (*parameters[0].shape[:-1], sum(parameter.shape[-1] for parameter in parameters))
    shape = shape[::-1] if name.transposed else shape
    if stored.shape != shape:
        axes = name.axes
        if len(stored.shape) == len(shape) == len(axes):
            axes = tuple(a for a, is_, should in zip(axes, stored.shape, shape, strict=True) if is_ != should)
        source = ", ".join(axes) or "the plan in tinykron.kron"
        return f"{stored.name}: found {stored.shape}, expected {shape} from {source}"
    if stored.dtype not in FLOATS:
        return f"{stored.name}: found dtype {stored.dtype}, expected one of {', '.join(FLOATS)}"
    return ""


def _parts(values: np.ndarray, parameters: Sequence[Parameter]) -> Iterator[np.ndarray]:
    """Yield the columns that belong to each parameter."""
    start = 0
    for parameter in parameters:
        stop = start + parameter.shape[-1]
        yield values[..., start:stop] if len(parameters) > 1 else values
        start = stop


# Saving ---------------------------------------------------------------------------------------------------------------


def save(model: Any, folder: str | os.PathLike[str], dtype: str = "float32") -> None:
    """Write a model into a new folder under Hugging Face names: transformers reads a dense model back.

    folder  must not exist, or be empty; it appears when all is written, and does not appear if anything fails
            (a process killed meanwhile leaves a hidden folder `.<name>.<process>.partial` beside it)
    dtype   of the tensors: "float32", "bfloat16" or "float16"
    What transformers does not know is in config.json under "tinykron": the plan of a factorised model, whose factors
    have our own names; the exits that were trained, and what they have of their own.
    Raises CheckpointError where the folder is not empty or cannot be written.
    """
    folder = Path(folder).resolve()
    if dtype not in DTYPES:
        raise CheckpointError(f'save: dtype is "{dtype}", expected one of {", ".join(DTYPES)}')
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise CheckpointError(f"{folder} exists and is not empty: choose a new folder")
    config, tensors = _config(model, dtype), _host_tensors(model, dtype)
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    try:
        partial.mkdir(parents=True)
        (partial / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        write(partial / WEIGHTS, tensors, {"format": "pt"})
        shutil.copymode(partial / CONFIG, partial / WEIGHTS)  # the library makes files that only their owner reads
        if model.tokenizer is not None:
            (partial / TOKENIZER).write_text(model.tokenizer.to_str(pretty=True), encoding="utf-8")
        os.replace(partial, folder)
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be written: {error.strerror or error}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def digest(model: Any) -> str:
    """Return what tells a model's weights from others: a hash of their names and bytes, in hexadecimal."""
    found = hashlib.blake2b(digest_size=16)
    for name, array in model.state_dict().items():
        found.update(name.encode())
        found.update(to_host(array).tobytes())
    return found.hexdigest()


def _config(model: Any, dtype: str) -> dict[str, Any]:
    """Return what config.json says of a model, after checking that this describes it."""
    config = model.config.to_dict() | {"dtype": dtype, "torch_dtype": dtype}  # transformers since 5, and before
    if any(layer.unused for layer in kron_layers(model)):
        raise CheckpointError("save: the model shares its factors with a larger one; kron.cut makes it its own")
    plan = plan_of(model)
    told: dict[str, Any] = {"kron": json.loads(plan.to_json())} if plan else {}
    told |= {"exits": list(model.exits)} if model.exits else {}
    told |= {"exit_parts": kind} if (kind := kind_of(model)) else {}
    described = {name: parameter.shape for name, parameter in _build(_family(model), config, told).named_parameters()}
    own = {name: parameter.shape for name, parameter in model.named_parameters()}
    if described != own:
        wrong = [
            f"{name}: found {own[name]}, expected {shape}"
            for name, shape in described.items()
            if own.get(name, shape) != shape
        ]
        message = mismatch(list(described.keys() - own.keys()), list(own.keys() - described.keys()), wrong)
        raise CheckpointError(f"save: the model does not fit its own configuration\n{message}")
    return config | ({"tinykron": told} if told else {})


def _family(model: Any) -> Family:
    return FAMILIES[model.config.to_dict()["model_type"]]


def _host_tensors(model: Any, dtype: str) -> dict[str, np.ndarray]:
    """Return what the file will hold, by name."""
    import ml_dtypes  # noqa: F401  teaches NumPy what bfloat16 is

    own, tensors = dict(model.named_parameters()), {}
    for name in _table(_family(model), model):
        parts = [to_host(own[part].data) for part in name.ours]
        array = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)
        array = array.T if name.transposed else array
        with np.errstate(over="ignore"):
            tensors[name.file] = array.astype(dtype, copy=False)
        if dtype != "float32" and np.isinf(tensors[name.file]).sum() > np.isinf(array).sum():
            raise CheckpointError(f"save: {name.file} reaches {np.abs(array).max():g}, more than {dtype} holds")
    return tensors


VALUE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
