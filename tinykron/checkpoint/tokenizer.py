"""The tokenizer of a checkpoint's folder: tokenizer.json, or the older files that say the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinykron.checkpoint.safetensors_file import json_object, parse_json
from tinykron.data.corpus import read_text
from tinykron.errors import CheckpointError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKENIZER, VOCABULARY, MERGES, WORDPIECES = "tokenizer.json", "vocab.json", "merges.txt", "vocab.txt"
SETTINGS = "tokenizer_config.json"
END_OF_TEXT = "<|endoftext|>"
BERT_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def load_tokenizer(folder: Path) -> Tokenizer | None:
    """Return the tokenizer of a folder, None where it has none.

    Read are tokenizer.json; else GPT-2's vocab.json with merges.txt; else BERT's vocab.txt, with the normalisation that
    tokenizer_config.json asks for. Truncation and padding, which some files carry (all-MiniLM's cut at 128 tokens), are
    switched off: nothing is cut or padded that a caller did not ask for.
    Raises CheckpointError naming the file, what was found and what was expected.
    """
    if (folder / TOKENIZER).exists():
        tokenizer = _from_file(folder / TOKENIZER)
    elif (folder / VOCABULARY).exists() or (folder / MERGES).exists():
        tokenizer = _byte_level(folder)
    elif (folder / WORDPIECES).exists():
        tokenizer = _wordpiece(folder)
    else:
        return None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _from_file(path: Path) -> Tokenizer:
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises no narrower class
        raise CheckpointError(f"{path}: no tokenizer: {error}") from None


def _byte_level(folder: Path) -> Tokenizer:
    """GPT-2's: byte-level BPE without a space put in front. Radford et al. 2019."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    for present, other in ((VOCABULARY, MERGES), (MERGES, VOCABULARY)):
        if not (folder / other).exists():
            raise CheckpointError(f"{folder}: found {present} without {other}: byte-level BPE needs both")
    vocabulary = parse_json(_text(folder / VOCABULARY).encode(), str(folder / VOCABULARY))
    if fault := _misfit(vocabulary) if isinstance(vocabulary, dict) else f"a {type(vocabulary).__name__}":
        expected = "expected an object of tokens and their numbers 0, 1, 2, ..."
        raise CheckpointError(f"{folder / VOCABULARY}: {expected}; found {fault}")
    lines = _lines(folder / MERGES)
    merges = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]  # not "# #"
    for number, pair in enumerate(merges):
        if len(pair) != 2 or not all(part in vocabulary for part in (*pair, "".join(pair))):
            found = " ".join(pair)
            raise CheckpointError(
                f"{folder / MERGES}: merge {number + 1}: {found!r} is no pair of tokens of {VOCABULARY}"
            )
    tokenizer = Tokenizer(models.BPE(vocabulary, [(first, second) for first, second in merges]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    if END_OF_TEXT in vocabulary:
        tokenizer.add_special_tokens([END_OF_TEXT])
    return tokenizer


def _wordpiece(folder: Path) -> Tokenizer:
    """BERT's: lower-casing WordPiece unless the settings say otherwise. Devlin et al. 2019."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    path = folder / WORDPIECES
    words = [line.rstrip() for line in _lines(path)]  # as the library reads this file
    if "" in words:
        raise CheckpointError(f"{path}: expected one token a line, found a blank line {words.index('') + 1}")
    vocabulary = {word: number for number, word in enumerate(words)}
    if len(vocabulary) < len(words):
        twice = next(word for number, word in enumerate(words) if vocabulary[word] != number)
        raise CheckpointError(f"{path}: {twice!r} stands on line {words.index(twice) + 1} and again")
    if lacking := [token for token in BERT_SPECIAL if token not in vocabulary]:
        expected = f"expected one token a line, {', '.join(BERT_SPECIAL)} among them"
        raise CheckpointError(f"{path}: {expected}; found no {', '.join(lacking)}")
    settings = _settings(folder / SETTINGS)
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(
        lowercase=settings.get("do_lower_case", True),
        strip_accents=settings.get("strip_accents"),
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(list(BERT_SPECIAL))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")],
    )
    return tokenizer


def _settings(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    settings = json_object(path)
    for key in ("do_lower_case", "strip_accents", "tokenize_chinese_chars"):
        nullable = key == "strip_accents"  # null: as lower-casing does
        if not isinstance(settings.get(key, True), bool | None if nullable else bool):
            expected = "true, false or null" if nullable else "true or false"
            raise CheckpointError(f"{path}: {key}: expected {expected}, found {json.dumps(settings[key])}")
    return settings


def _misfit(vocabulary: dict[str, Any]) -> str:
    """Return the first token that is no text, or whose number is none of 0, 1, 2, ... or another's; "" without one."""
    taken: set[int] = set()
    for token, number in vocabulary.items():
        if token.encode(errors="replace").decode() != token:
            return f"{token!r}, half of a surrogate pair"
        if type(number) is not int or not 0 <= number < len(vocabulary) or number in taken:
            return f"{token!r}: {json.dumps(number)} among {len(vocabulary)} tokens"
        taken.add(number)
    return ""


def _lines(path: Path) -> list[str]:
    """Return the lines of a file. Only a newline ends one: other separators are characters, and may be tokens."""
    return [line.removesuffix("\r") for line in _text(path).removesuffix("\n").split("\n")]


def _text(path: Path) -> str:
    return read_text(path, CheckpointError, "utf-8")
