"""Speed, measured in turns with what stands beside it: the engine, decoding, Kronecker layers, exits."""

__all__ = ["engine", "exits", "exits_report", "kron"]
