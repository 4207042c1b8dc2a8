"""From one matrix to its factors: nearest sums of Kronecker products, plain and weighted by data."""

__all__ = ["als", "metric", "nearest", "starts", "svd"]
