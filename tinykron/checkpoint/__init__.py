"""A checkpoint is a folder: config.json, tensors in safetensors files, tokenizer.json."""

from tinykron.checkpoint.folder import digest, load, save, stored_dtype, tensor_bytes

__all__ = ["digest", "load", "save", "stored_dtype", "tensor_bytes"]
