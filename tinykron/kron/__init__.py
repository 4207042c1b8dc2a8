"""Kronecker factorisation: the algebra, the fits, the layers, and turning a model into factors and back."""

from tinykron.kron.algebra import KronSum as KronSum
from tinykron.kron.calibration import Calibration as Calibration
from tinykron.kron.calibration import calibrate as calibrate
from tinykron.kron.compress import factorise as factorise
from tinykron.kron.compress import merge as merge
from tinykron.kron.compress import plan_of as plan_of
from tinykron.kron.compress import restructure as restructure
from tinykron.kron.controls import low_rank as low_rank
from tinykron.kron.fit import nearest as nearest
from tinykron.kron.linear import KronEmbedding as KronEmbedding
from tinykron.kron.linear import KronLinear as KronLinear
from tinykron.kron.plan import Choice as Choice
from tinykron.kron.plan import KronPlan as KronPlan
from tinykron.kron.planner import plan as plan
from tinykron.kron.presets import PRESETS as PRESETS
from tinykron.kron.presets import kngpt2_plan as kngpt2_plan
from tinykron.kron.presets import kroneckerbert8_plan as kroneckerbert8_plan
from tinykron.kron.presets import kroneckerbert21_plan as kroneckerbert21_plan
from tinykron.kron.presets import krony_pt_plan as krony_pt_plan
from tinykron.kron.product import apply as apply
from tinykron.kron.svd import gaussian_energy as gaussian_energy
