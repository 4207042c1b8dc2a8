"""Kronecker factorisation: the algebra, the fits, the layers, and turning a model into factors and back."""

from tinykron.kron.algebra import KronSum, commutation, khatri_rao, rearrange, shuffle, unrearrange, unvec, vec
from tinykron.kron.fitting.nearest import nearest
from tinykron.kron.fitting.starts import low_rank
from tinykron.kron.linear import KronEmbedding, KronLinear
from tinykron.kron.nested import cut, first_terms, first_units
from tinykron.kron.operators.kronecker_sum import KroneckerSum
from tinykron.kron.operators.products import Kron, Sum
from tinykron.kron.operators.spectral import Spectral
from tinykron.kron.plan import Choice, KronPlan, gaussian_energy
from tinykron.kron.planning.calibration import Calibration, calibrate
from tinykron.kron.planning.factorise import factorise
from tinykron.kron.planning.planner import plan
from tinykron.kron.planning.presets import (
    PRESETS,
    kngpt2_plan,
    kroneckerbert8_plan,
    kroneckerbert21_plan,
    krony_pt_plan,
)
from tinykron.kron.product import apply
from tinykron.kron.restructure import dense_shapes, merge, plan_of, restructure

__all__ = [
    "Calibration", "Choice", "Kron", "KronEmbedding", "KronLinear", "KronPlan", "KronSum", "KroneckerSum",
    "PRESETS", "Spectral", "Sum", "apply", "calibrate", "commutation", "cut", "dense_shapes", "factorise",
    "first_terms", "first_units", "gaussian_energy", "khatri_rao", "kngpt2_plan", "kroneckerbert21_plan",
    "kroneckerbert8_plan", "krony_pt_plan", "low_rank", "merge", "nearest", "plan", "plan_of", "rearrange",
    "restructure", "shuffle", "unrearrange", "unvec", "vec",
]  # fmt: skip
