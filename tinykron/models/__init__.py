"""The model families, one file each, on what they share in transformer.py."""

__all__ = ["bert", "checks", "exit_parts", "gpt2", "llama", "transformer"]
