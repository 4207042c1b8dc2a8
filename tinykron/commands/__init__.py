"""The command line: `cli` has the table of verbs; each verb is a file, with its options and its run."""

__all__ = ["cli", "evaluate", "generate", "lesson", "run", "sort", "sort_grid"]
