"""Writing text: sampling, exits by confidence, drafts that a model checks itself."""

__all__ = ["arguments", "bit_exact", "generate", "partial_pass", "rows", "sampling", "shortlist", "speculate", "speed"]
