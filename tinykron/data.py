"""Text in, token batches out: the corpus that every Python carries, any text file or folder, and what ships with us."""

from __future__ import annotations

import ast
import hashlib
import re
import sysconfig
import warnings
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np

from tinykron.errors import DataError, TinykronError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

END_OF_TEXT = "<|endoftext|>"
ENDS = (END_OF_TEXT, "</s>", "<|end_of_text|>", "[SEP]")  # GPT-2's, LLaMA 2's, LLaMA 3's, BERT's
IGNORED = -100  # the target that cross-entropy leaves out
TEXT_SUFFIXES = (".txt", ".md", ".rst")

DOCUMENT_CHARACTERS = 4096  # a longer file is cut at its blank lines into documents of about this size
REPEAT_CHARACTERS = 80  # a paragraph this long that stands in two documents would leak from training into held-out text
NOT_CORPUS = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
Definition = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef  # what can have a docstring
ENCODE_AT_ONCE = 256  # documents: bounds the memory that the tokenizer's results take beside the ids


@dataclass(frozen=True)
class Document:
    """A piece of text that is trained on, or held out, as a whole."""

    name: str
    text: str


class Named(Protocol):
    """What can be held out: a document, an example."""

    @property
    def name(self) -> str: ...


Item = TypeVar("Item", bound=Named)


# Documents ----------------------------------------------------------------------------------------------------------


def documents(source: str | Path | None = None) -> list[Document]:
    """Return the documents of `source`, in an order that is the same on every machine.

    source  a UTF-8 text file, or a folder of .txt, .md and .rst files; None is the text that every Python carries:
            the language reference (`pydoc_data.topics`) and the standard library's docstrings
    A file longer than about 4,000 characters becomes several documents, so that some of it can be held out.
    Raises DataError, naming the file, for text that is missing, empty or not UTF-8.
    """
    if source is None:
        return _without_repeats(language_reference() + _docstrings())
    return [document for name, text in whole_files(source) for document in _documents(name, text)]


def whole_files(source: str | Path) -> list[tuple[str, str]]:
    """Return (name, text) of a text file, or of each .txt, .md and .rst file of a folder. Raises DataError."""
    path = Path(source)
    if not path.is_dir():
        return [(path.name, _read(path))]
    files = sorted(file for file in path.rglob("*") if file.suffix in TEXT_SUFFIXES and file.is_file())
    if not files:
        raise DataError(f"{path}: found no text, expected files ending in {', '.join(TEXT_SUFFIXES)}")
    return [(file.relative_to(path).as_posix(), _read(file)) for file in files]


def _read(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8-sig")  # with or without a byte-order mark
    except UnicodeDecodeError as error:
        found = f"byte 0x{error.object[error.start]:02x} at offset {error.start}"
        raise DataError(f"{path}: expected UTF-8 text, found {found}") from error
    except OSError as error:
        raise DataError(f"{path}: cannot read text: {error.strerror}") from error
    if not text.strip():
        raise DataError(f"{path}: expected text, found an empty file")
    return text


def _documents(name: str, text: str) -> list[Document]:
    pieces = list(_pieces(text))
    if len(pieces) == 1:
        return [Document(name, text)]
    return [Document(f"{name}:{number}", piece) for number, piece in enumerate(pieces)]


def _pieces(text: str) -> Iterator[str]:
    """Cut a long text after blank lines; after any line where no blank one comes in time. Joined, it is `text`."""
    lines: list[str] = []
    size = 0
    for line in text.splitlines(keepends=True):
        lines.append(line)
        size += len(line)
        if size >= 4 * DOCUMENT_CHARACTERS or (size >= DOCUMENT_CHARACTERS and not line.strip()):
            yield "".join(lines)
            lines, size = [], 0
    if lines:
        yield "".join(lines)


def language_reference() -> list[Document]:
    """Return one document for each topic of Python's language reference."""
    from pydoc_data.topics import topics  # data only: importing it runs nothing

    return [Document(f"topic {name}", text.strip() + "\n") for name, text in sorted(topics.items())]


@dataclass(frozen=True)
class Docstring:
    """What a module, class or function of the standard library says of itself."""

    module: str  # dotted name of the file, `asyncio.__init__` of a package's own
    name: str  # of the class or function; "" of the module itself
    function: bool
    text: str


def docstrings(packages: Collection[str] | None = None) -> Iterator[Docstring]:
    """Yield the docstrings of the standard library, or of some of its packages. Files are parsed, never imported."""
    library = Path(sysconfig.get_path("stdlib"))
    for path in sorted(library.rglob("*.py")):
        parts = path.relative_to(library).with_suffix("").parts
        if NOT_CORPUS.isdisjoint(parts) and (packages is None or parts[0] in packages):
            for node, text in _documented(path):
                function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
                yield Docstring(".".join(parts), getattr(node, "name", ""), function, text)


def _docstrings() -> list[Document]:
    """One document for each standard module: its docstrings in order."""
    texts: dict[str, list[str]] = {}
    for found in docstrings():
        texts.setdefault(found.module, []).append(found.text)
    if not texts:
        library = sysconfig.get_path("stdlib")
        raise DataError(f"{library}: expected the standard library's source files, found no docstrings")
    return [Document(f"module {module}", "\n\n".join(parts) + "\n") for module, parts in texts.items()]


def _documented(path: Path) -> list[tuple[Definition, str]]:
    """Return what has a docstring in a source file, and that, from top to bottom."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an old escape sequence in somebody's source is not the user's concern
            tree = ast.parse(path.read_bytes())  # bytes: ast reads the coding line itself
    except (OSError, SyntaxError, ValueError, RecursionError):
        return []  # some distributions keep templates and broken examples among their modules
    return [(node, text) for node in _definitions(tree) if (text := ast.get_docstring(node))]


def _definitions(node: ast.AST) -> Iterator[Definition]:
    """All that can hold a docstring, from top to bottom. Expressions hold none and are most of the tree."""
    if isinstance(node, Definition):
        yield node
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.expr):
            yield from _definitions(child)


def _without_repeats(documents: Sequence[Document]) -> list[Document]:
    """Drop each long paragraph that a shorter document already holds: topics quote each other at length."""
    seen: set[str] = set()
    kept = {}
    for document in sorted(documents, key=lambda document: (len(document.text), document.name)):
        paragraphs = re.split(r"\n\s*\n", document.text.strip("\n"))
        fresh = [text for text in paragraphs if len(text) < REPEAT_CHARACTERS or text.strip() not in seen]
        seen.update(text.strip() for text in fresh)
        if any(len(text) >= REPEAT_CHARACTERS for text in fresh):
            kept[document.name] = Document(document.name, "\n\n".join(fresh) + "\n")
    return [kept[document.name] for document in documents if document.name in kept]


def split(documents: Sequence[Item], held_out: float = 0.05) -> tuple[list[Item], list[Item]]:
    """Return (training documents, held-out documents), both in their given order; or of anything else with a name.

    A document's side depends on its name alone, so it is the same on every machine and whatever else is in the corpus.
    Where no name falls in the held-out share, the one nearest to it is taken. Raises DataError if a side stays empty.
    """
    if not 0 < held_out < 1:
        raise DataError(f"held_out: found {held_out}, expected a share between 0 and 1")
    nearest = min(map(_place, documents), default=0.0)
    limit = max(held_out, nearest)
    train = [document for document in documents if _place(document) > limit]
    rest = [document for document in documents if _place(document) <= limit]
    if not train or not rest:
        raise DataError(
            f"found {len(documents)} documents, expected enough to train on some and to hold out others: give more text"
        )
    return train, rest


def _place(document: Named) -> float:
    """A number in [0, 1) drawn by the document's name."""
    return int.from_bytes(hashlib.sha256(document.name.encode()).digest()[:6], "big") / 2**48


# Tokens -------------------------------------------------------------------------------------------------------------


def train_tokenizer(documents: Sequence[Document], vocab_size: int = 2048) -> Tokenizer:
    """Train a byte-level BPE in GPT-2's manner: any text encodes, and decodes to itself. `<|endoftext|>` is id 0.

    A small corpus can hold fewer pairs than asked for: `tokenizer.get_vocab_size()` tells. Same text, same tokenizer.
    Raises DataError for a vocabulary that cannot hold the 256 bytes. Sennrich et al. 2016; Radford et al. 2019.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    least = 257  # the 256 bytes and the end of text
    if vocab_size < least:
        raise DataError(f"vocab_size: found {vocab_size}, expected at least {least}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((document.text for document in documents), trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, documents: Sequence[Document]) -> np.ndarray:
    """Return all documents as one stream of token ids (N,) int32, each document closed by a token that ends a text.

    That is the first the tokenizer has of `ENDS`: GPT-2's `<|endoftext|>`, LLaMA's, BERT's `[SEP]`.
    Truncation and padding set in the tokenizer are not applied. Raises DataError if the tokenizer has no such token.
    """
    end = end_token(tokenizer)
    tokenizer = uncut(tokenizer)
    parts = []
    for start in range(0, len(documents), ENCODE_AT_ONCE):
        texts = [document.text for document in documents[start : start + ENCODE_AT_ONCE]]
        for encoding in tokenizer.encode_batch(texts, add_special_tokens=False):
            parts.append(np.array([*encoding.ids, end], dtype=np.int32))
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.int32)


def end_token(tokenizer: Tokenizer) -> int:
    """Return the id of the first token of `ENDS` that a tokenizer has. Raises DataError if it has none."""
    end = next((number for token in ENDS if (number := tokenizer.token_to_id(token)) is not None), None)
    if end is None:
        raise DataError(f"the tokenizer has none of {', '.join(ENDS)}; one has to stand behind each text")
    return end


def uncut(tokenizer: Tokenizer) -> Tokenizer:
    """Return a tokenizer without truncation and padding: itself, or a copy where it has them set."""
    if tokenizer.truncation or tokenizer.padding:
        tokenizer = type(tokenizer).from_str(tokenizer.to_str())  # the caller's stays as it is
        tokenizer.no_truncation()
        tokenizer.no_padding()
    return tokenizer


# Batches ------------------------------------------------------------------------------------------------------------


def sample_batch(
    tokens: np.ndarray, batch: int, context: int, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return (inputs_BT, targets_BT), int64: random windows of `tokens`, and the same windows one token later.

    All that is random comes from `generator`: with its state restored, training goes on with the very same batches.
    Raises DataError when there are not context + 1 tokens.
    """
    _need(tokens, context + 1)
    starts_B = generator.integers(0, len(tokens) - context, size=batch)
    window = tokens[starts_B[:, None] + np.arange(context + 1)].astype(np.int64)
    return window[:, :-1], window[:, 1:]


def windows(tokens: np.ndarray, context: int, stride: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return (inputs_WT, targets_WT), int64: W windows in which every token but the first is a target exactly once.

    Each window starts `stride` (default: context) tokens after the one before. Where windows overlap, the targets that
    the earlier one had are -100, as are those after the end of the text: cross-entropy leaves them out.
    Raises DataError for fewer than two tokens, or a stride outside 1..context.
    """
    stride = context if stride is None else stride
    if not 1 <= stride <= context:
        raise DataError(f"stride: found {stride}, expected 1 to {context} (the context)")
    _need(tokens, 2)
    targets = len(tokens) - 1
    count = 1 + max(0, -(-(targets - context) // stride))
    starts_W = stride * np.arange(count)
    padded = np.full(starts_W[-1] + context + 1, IGNORED, dtype=np.int64)
    padded[: len(tokens)] = tokens
    window = padded[starts_W[:, None] + np.arange(context + 1)]
    inputs_WT, targets_WT = window[:, :-1].copy(), window[:, 1:].copy()
    inputs_WT[inputs_WT == IGNORED] = 0  # behind the text: any valid id will do, nothing looks at it
    targets_WT[1:, : context - stride] = IGNORED
    return inputs_WT, targets_WT


def _need(tokens: np.ndarray, count: int) -> None:
    if len(tokens) < count:
        raise DataError(f"the text is too short: found {len(tokens)} tokens, need {count}")


# What ships with tinykron -------------------------------------------------------------------------------------------


def shipped_folder(kind: str) -> Path:
    """Return the shipped folder "weights", "recipes" or "lessons": in the installed package, or beside it."""
    package = Path(__file__).parent
    for folder in (package / kind, package.parent / kind):
        if folder.is_dir():
            return folder
    raise TinykronError(f'no "{kind}" folder came with this tinykron: looked in {package} and {package.parent}')


def weights_folder(name: str) -> Path:
    """Return the folder of the shipped checkpoint `name`. Raises TinykronError, listing those that are there."""
    folder = shipped_folder("weights")
    names = sorted(path.name for path in folder.iterdir() if (path / "config.json").is_file())
    if name not in names:
        raise TinykronError(f'no shipped weights "{name}" in {folder}: found {", ".join(names) or "none"}')
    return folder / name
