"""What brings lessons to a learner: copies of their own, and pages that need no Python."""

__all__ = ["copies", "page", "pages"]
