"""Small tools without a subject: whole files, progress."""

__all__ = ["files", "progress"]
