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
from typing import Protocol, TypeVar

from tinykron.errors import DataError, TinykronError

TEXT_SUFFIXES = (".txt", ".md", ".rst")

DOCUMENT_CHARACTERS = 4096  # a longer file is cut at its blank lines into documents of about this size
REPEAT_CHARACTERS = 80  # a paragraph this long that stands in two documents would leak from training into held-out text
NOT_CORPUS = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
Definition = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef  # what can have a docstring


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


def name_of(source: str | Path | None) -> str:
    """Return what a card or a report calls a text."""
    return str(source) if source else "the language reference and docstrings that every Python carries"


def whole_files(source: str | Path) -> list[tuple[str, str]]:
    """Return (name, text) of a text file, or of each .txt, .md and .rst file of a folder. Raises DataError."""
    path = Path(source)
    if not path.is_dir():
        return [(path.name, _read(path))]
    found = sorted(file for file in path.rglob("*") if file.suffix in TEXT_SUFFIXES and file.is_file())
    if not found:
        raise DataError(f"{path}: found no text, expected files ending in {', '.join(TEXT_SUFFIXES)}")
    return [(file.relative_to(path).as_posix(), _read(file)) for file in found]


def read_text(path: Path, error: type[TinykronError] = DataError, encoding: str = "utf-8-sig") -> str:
    """Return the text of a UTF-8 file, with or without a byte-order mark. Raises `error` naming the file.

    Line ends stay as they are.
    """
    try:
        return path.read_bytes().decode(encoding)
    except UnicodeDecodeError as fault:
        found = f"byte 0x{fault.object[fault.start]:02x} at offset {fault.start}"
        raise error(f"{path}: expected UTF-8 text, found {found}") from None
    except OSError as fault:
        raise error(f"{path}: cannot be read: {fault.strerror}") from None


def _read(path: Path) -> str:
    text = read_text(path).replace("\r\n", "\n").replace("\r", "\n")
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
