"""The errors a user can meet: one family, each saying what was found, where, and what was expected."""


class TinykronError(ValueError):
    """Anything tinykron refuses. The command line prints it in one line and exits with code 2."""


class ShapeError(TinykronError):
    """Shapes that do not fit together."""


class DtypeError(TinykronError):
    """A number format that does not belong: float64 among float32, a boolean where a float is needed."""


class DeviceError(TinykronError):
    """Arrays on different devices, or a device this machine does not have."""


class CheckpointError(TinykronError):
    """A folder, configuration or tensor file that cannot be read, or does not describe a model."""


class DataError(TinykronError):
    """Text or token ids that cannot be used."""


class UntrainedExitWarning(UserWarning):
    """An exit is used that its folder does not list as trained: what leaves there is nobody's promise."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C in long work that keeps its progress: the same call continues. The command line exits with code 130."""
