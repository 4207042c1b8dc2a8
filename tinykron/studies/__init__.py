"""The papers' claims, answered by experiment over seeds; only `tinykron reproduce` imports this folder."""

__all__ = [
    "claims", "fits", "identities", "kngpt2", "kron_students", "kroneckerbert", "krony_pt", "papers",
    "sorted_decoding", "sorted_elastic", "sorted_llama", "sorted_students",
]  # fmt: skip
