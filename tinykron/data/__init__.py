"""From text to batches of token ids."""

from tinykron.data.corpus import (
    Docstring,
    Document,
    docstrings,
    documents,
    language_reference,
    name_of,
    split,
    whole_files,
)  # fmt: skip
from tinykron.data.shipped import shipped_folder, weights_folder
from tinykron.data.tokens import END_OF_TEXT, IGNORED, encode, sample_batch, train_tokenizer, uncut, windows

__all__ = [
    "Docstring", "Document", "END_OF_TEXT", "IGNORED", "docstrings", "documents", "encode", "language_reference",
    "name_of", "sample_batch", "shipped_folder", "split", "train_tokenizer", "uncut", "weights_folder", "whole_files",
    "windows",
]  # fmt: skip
