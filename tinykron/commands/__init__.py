"""The command line: `cli` has the table of verbs; each verb is a file, with its options and its run."""

__all__ = [
    "bench", "cli", "compress", "evaluate", "finetune", "generate", "grid", "info", "lesson", "options", "promise",
    "renamed", "reproduce", "run", "sort", "train",
]  # fmt: skip
