"""From a model to what each of its matrices becomes: calibration, candidates, budgets."""

__all__ = ["budget", "calibration", "candidates", "factorise", "planner", "presets", "sensitivity"]
