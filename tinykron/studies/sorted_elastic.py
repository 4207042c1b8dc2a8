"""What papers leave open on elastic models, answered on the shipped GPT-2: is a width worth a place in the grid?"""

from __future__ import annotations

from dataclasses import replace

from tinykron.exits.grid import GridLoss, Point, grid_weights, points
from tinykron.exits.pareto import elastic_front
from tinykron.jobs.sort_grid import Elastic, factorised
from tinykron.studies.claims import Relation, Values, less, relation
from tinykron.studies.sorted_students import Study
from tinykron.train.loop import fit

ELASTIC: list[Relation] = []
DRAWS = 4  # points of a step, each on a batch of its own: so many times the tokens of the other relations


@relation(
    ELASTIC,
    "B7",
    "width prefixes of A are worth having beside exits and terms",
    "none found",
    "held-out loss, nats a token: of all blocks and terms with half of the MLPs' units, and of the best point of full "
    "width that takes no more bytes",
    less("half the units", "full width"),
    "After so short a training.",
)
def b7(study: Study, seed: int) -> Values:
    """One grid of exits, terms and widths, trained by drawn points that follow the dense model."""
    grid_of = Elastic(study.scale.exits, (2, 4), (0.5, 1.0), calibration=2048, seed=seed)
    training, held_out = study.documents
    model = factorised(study.start, grid_of, training, say=lambda line: None)
    grid = points(model, grid_of.exits, grid_of.ranks, grid_of.widths)
    objective = GridLoss(model, grid_weights(grid), grid_of.distil, teacher=study.start)
    settings = replace(study.settings(seed), accumulate=DRAWS, lr=grid_of.lr)
    fit(model, study.tokens, settings, distillation=objective, title=f"elastic, seed {seed}")
    front = elastic_front(model, held_out, grid, limit=study.scale.held_out)
    [narrow] = [one for one in front.points if one.point == Point(study.blocks, 4, 0.5)]
    rivals = [one for one in front.points if one.width == 1.0 and one.bytes <= narrow.bytes]
    best = min(rivals, key=lambda one: one.loss)
    return {
        "half the units": narrow.loss,
        "full width": best.loss,
        "its blocks": float(best.exit),
        "its terms": float(best.terms),
        "all units": front.full.loss,
    }
