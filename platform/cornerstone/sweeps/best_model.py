"""The model of a sweep's best row, as MLflow's registry has it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from cornerstone.data.storage import Location
from cornerstone.inference.saved_model import CONFIG, RECIPE
from cornerstone.sweeps.state import TrialRecord, TrialResult
from cornerstone.sweeps.table import ResultTable
from cornerstone.tracking.mlflow_models import ANY, ModelShapes, RegisteredModel


def best_trial(table: ResultTable, results: Sequence[TrialResult]) -> TrialResult | None:
    """Of the row with the highest mean in the first column, the trial with the lowest seed.

    `results` are those of the table, by its rows. None if no row has both the metric and a model.
    """
    if not table.named:
        return None
    metric = table.named[0].metric
    measured = [one for one in results if one.model and not math.isnan(one.metrics.get(metric, math.nan))]
    means = {row.point: row.cells[0].value.mean for row in table.rows}
    return max(measured, key=lambda one: (means[one.point], -one.seed), default=None)


def best_model(
    name: str, sweep: str, metric: str, result: TrialResult, trial: TrialRecord, run: str
) -> RegisteredModel:
    """What is registered of a trial that is the best by `metric`; `run` is its run in MLflow.

    Raises OSError if the model's folder cannot be read.
    """
    folder = Location.of(result.model)
    files = {file: folder.join(file).read_text() for file in (CONFIG, RECIPE)}
    return RegisteredModel(
        name=name,
        run=run,
        location=result.model,
        shapes=shapes(json.loads(files[CONFIG])),
        measure=f"{metric}, evaluation {trial.eval_hash}",
        value=result.metrics[metric],
        tags={
            "cornerstone.sweep": sweep,
            "cornerstone.point": result.point,
            "cornerstone.seed": str(trial.recipe_seed),
            "cornerstone.recipe_hash": trial.recipe_hash,
            "cornerstone.model": result.model,
        },
        files=files,
    )


def shapes(config: Mapping[str, Any]) -> ModelShapes:
    """From a model folder's config.json; a length that it does not name is any."""
    method, build, tower = config["method"], config["build"], config["image_tower"] or {}
    text = method.get("text") or {}
    return ModelShapes(
        image_size=tower.get("size", ANY),
        tokens=text.get("token_limit", ANY),
        width=method.get("embedding", 0) or text.get("embedding", 0) or build.get("image_width", 0) or ANY,
    )
