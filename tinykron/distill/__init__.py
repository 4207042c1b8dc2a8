"""Distillation: distances between a student's layers and its teacher's, weighted into one loss."""

from tinykron.distill.losses import Losses
from tinykron.distill.objective import Distillation, layer_map, total

__all__ = ["Distillation", "Losses", "layer_map", "total"]
