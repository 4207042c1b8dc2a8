"""The training loop: settings, batches, checkpoints that continue to the same bits."""

from tinykron.train.loop import fit
from tinykron.train.settings import History, Settings

__all__ = ["History", "Settings", "fit"]
