"""The model families, one file each, on what they share in transformer.py."""
