"""A job's run in MLflow: opened before its workers start, closed with its outcome."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cornerstone.runtime.git import git_state
from cornerstone.tracking.mlflow_records import Records
from cornerstone.training.job import Job
from cornerstone.training.launch import Outcome


def open_run(
    records: Records,
    job: Job,
    name: str,
    tags: Mapping[str, str],
    parent: str | None = None,
    params: Mapping[str, str] | None = None,
) -> Job:
    """The job with its MLflow run: a new one, or the one that an interrupted run of the same identity opened.

    Call it when the run starts: MLflow shows the time of the call. `params` come before the recipe's fields. `tags` has the
    program's (`source_tags`): this process may be another one.
    """
    prepared, identity = job.prepared, job.identity
    run = records.find("cornerstone.run", identity.run)
    if run is None:
        identifying = {
            "cornerstone.run": identity.run,
            "cornerstone.seed": str(job.recipe.seed),
            "cornerstone.recipe_hash": prepared.recipe_hash,
            "cornerstone.eval_hash": prepared.eval_hash,
            "cornerstone.data_hash": prepared.content["data"],
            "cornerstone.git_commit": git_state().short,
        }
        recipe = job.recipe.as_dict()
        run = records.start(name, {**identifying, **tags}, parent)
        records.describe(run, params={**(params or {}), **flat(recipe)}, recipe=recipe, data=prepared.described())
    else:
        records.go_on(run)
    return job.recorded(records.address, run)


def close_run(records: Records, job: Job, outcome: Outcome | None, error: str = "") -> None:
    """Close it as FINISHED with its paths as tags, as FAILED with the error, or as KILLED if there is neither.

    The last evaluation is logged again as `final/<set>/<metric>` at step 0: MLflow draws a metric with one value as a bar.
    The file evaluation.json has the interval, the split, the hash and the prompts of each.
    """
    run = job.identity.mlflow_run
    if outcome is not None:
        paths = {"model": outcome.model, "checkpoint": outcome.checkpoint, "best_checkpoint": outcome.best_checkpoint}
        records.tag(run, {f"cornerstone.{name}": path for name, path in paths.items()})
        records.metrics(run, {final(name): value for name, value in outcome.metrics.items()})
        records.json(run, outcome.details(job.prepared.sets), "evaluation.json")
    elif error:
        records.tag(run, {"cornerstone.error": error})
    records.finish(run, "FINISHED" if outcome is not None else "FAILED" if error else "KILLED")


def final(metric: str) -> str:
    """`final/<set>/<metric>` for `eval/<set>/<metric>`."""
    return f"final/{metric.removeprefix('eval/')}"


def reason(error: BaseException) -> str:
    """The innermost cause in one line: Ray wraps the error of a worker in several of its own."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    causes = [line for line in lines if "Error" in line and ":" in line] or lines[-1:] or [type(error).__name__]
    return causes[-1].removeprefix("cornerstone.errors.CornerstoneError: ")[:500]


def flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` as `{"a.b": 1}`, since MLflow's params are flat."""
    items: dict[str, Any] = {}
    for name, value in nested.items():
        items |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return items
