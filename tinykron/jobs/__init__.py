"""A folder in, a folder out: what each verb of the command line does."""

__all__ = [
    "compress", "describe", "finetune", "finetune_text", "measurement", "pretrain", "recipes", "report", "sort",
    "sort_data", "sort_grid", "stages", "students",
]  # fmt: skip
