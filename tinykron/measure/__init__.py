"""How well a model predicts a text, and what a token costs."""

__all__ = ["costs", "perplexity"]
