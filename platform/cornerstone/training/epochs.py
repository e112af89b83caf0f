"""`--epochs`: a number of steps by the size of the data, which only the data know."""

from __future__ import annotations

from cornerstone.data.mixture import Mixture
from cornerstone.data.plan import Plan
from cornerstone.errors import CornerstoneError
from cornerstone.recipes.options import RunOptions
from cornerstone.recipes.pairs import PairData
from cornerstone.recipes.placement import Placement
from cornerstone.recipes.recipe import Recipe
from cornerstone.training.prepare import KINDS


def resolved_options(options: RunOptions) -> tuple[Recipe, Placement]:
    """The recipe and the placement of a command line. Raises CornerstoneError for both --steps and --epochs."""
    recipe, placement = options.resolved()
    if options.epochs is None:
        return recipe, placement
    if options.steps is not None:
        raise CornerstoneError("--steps and --epochs both say how long to train: give one of them.")
    if options.epochs <= 0:
        raise CornerstoneError(f"{options.epochs:g} epochs: expected a number above 0 (--epochs).")
    rows = _rows(recipe)
    return recipe.with_steps(max(1, round(options.epochs * rows / recipe.optimization.batch_size))), placement


def _rows(recipe: Recipe) -> int:
    """Rows of an epoch."""
    if recipe.data.train:
        data = Mixture.open(recipe.data.train, *KINDS[recipe.data.kind].manifest_kinds)
        return Plan(data.parts, recipe.optimization.batch_size, recipe.seed, recipe.data.limit_rows).rows
    pairs = recipe.data.scenes.pairs if isinstance(recipe.data, PairData) else 0
    return min(pairs, recipe.data.limit_rows or pairs)
