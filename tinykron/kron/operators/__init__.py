"""The algebra for its own sake: Kronecker, Khatri-Rao and Hadamard operators with their laws."""

__all__ = ["factors", "kronecker_sum", "products", "spectral"]
