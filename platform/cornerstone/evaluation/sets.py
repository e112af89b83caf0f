"""Evaluation sets: which tasks judge a folder of shards, by its manifest and the roles of its captions."""

from __future__ import annotations

import json
from collections.abc import Sequence

from cornerstone.data.pairs.views import View
from cornerstone.data.shards import DataSet, Reader
from cornerstone.data.storage import absolute
from cornerstone.data.texts import CLEANED_FORMATS
from cornerstone.errors import CornerstoneError
from cornerstone.evaluation.judged import metric_name
from cornerstone.evaluation.tasks import TASKS, Contents, EvaluationSet, Task, task_named
from cornerstone.hashing import digest

__all__ = ["EvaluationSet", "eval_hash", "metric_names", "only_task", "open_sets", "requested_sets", "split_name"]


def open_sets(named: Sequence[str], task: str = "") -> tuple[EvaluationSet, ...]:
    """The sets of `[NAME=]DIR` arguments; a name defaults to the manifest's.

    Each task says which sets it makes of a folder (`Task.views`). The tasks are those that a folder is for, unless one is
    named (`MethodConfig.judged_by`). Two tasks may share a set's name, since their metrics
    have different names. Raises CornerstoneError if two sets have the same name and task.
    """
    sets: list[EvaluationSet] = []
    for argument in named:
        name, folder = split_name(argument)
        sets += _sets_of(DataSet.open(folder), name, task)
    measured = [(s.name, s.task.name) for s in sets]
    duplicates = sorted({name for name, task in measured if measured.count((name, task)) > 1})
    if duplicates:
        raise CornerstoneError(
            f"Two evaluation sets are named {duplicates[0]!r}: give one of them another name, --eval OTHER=DIR."
        )
    return tuple(sets)


def split_name(argument: str) -> tuple[str, str]:
    """`[NAME=]DIR` as a name, or "", and an absolute folder. A `=` after the first `/` belongs to DIR."""
    name, separator, folder = argument.partition("=")
    return (name, absolute(folder)) if separator and "/" not in name else ("", absolute(argument))


def metric_names(sets: Sequence[EvaluationSet]) -> list[str]:
    """Every `eval/<set>/<metric>` that an evaluation of the sets gives."""
    return [metric_name(judged.name, metric.name) for judged in sets for metric in judged.task.metrics]


def eval_hash(sets: Sequence[EvaluationSet]) -> str:
    """A digest of what is measured: each set's name, task, content and pool, its token limit if it has its own, and whether its
    texts are cleaned."""
    return digest(
        sorted(
            [
                *(s.name, s.task.name, s.content_hash, str(s.pool)),
                *([str(s.max_tokens)] if s.max_tokens else []),
                *(["cleaned"] if any(wanted.cleaned for wanted in s.view) else []),
            ]
            for s in sets
        )
    )


def only_task(sets: Sequence[EvaluationSet], name: str) -> tuple[EvaluationSet, ...]:
    """The sets of the task of that name; CornerstoneError if there is none."""
    task = task_named(name)
    chosen = tuple(s for s in sets if s.task == task)
    if not chosen:
        found = ", ".join(sorted({f"{s.name} ({s.task})" for s in sets}))
        raise CornerstoneError(f"No set can be judged by {task}: the data gives {found}.")
    return chosen


def requested_sets(named: Sequence[str], name: str) -> tuple[EvaluationSet, ...]:
    """The sets of `[NAME=]DIR` arguments under the task of that name, also if a folder's manifest names other tasks.

    Raises CornerstoneError if the task can judge none of the folders.
    """
    task, found = task_named(name), open_sets(named)
    if not any(one.task == task for one in found):
        asked = [(label, DataSet.open(folder)) for label, folder in map(split_name, named)]
        fits = [
            one for one in asked if one[1].manifest.kind == task.reads == "pairs" and task.on_request(_contents(one[1]))
        ]
        found = tuple(one for label, data in fits for one in _sets_of(data, label, name)) or found
    return only_task(found, name)


def _sets_of(data: DataSet, name: str, task: str) -> list[EvaluationSet]:
    manifest = data.manifest
    readable = sorted({task.reads for task in TASKS.values()})
    if manifest.kind not in readable:
        raise CornerstoneError(
            f"{data.location} holds {manifest.kind}; an evaluation set is a folder of {' or of '.join(readable)}."
        )
    contents = _contents(data) if manifest.kind == "pairs" else Contents(frozenset(), False)
    tasks = [task_named(one, f"{data.location}: ") for one in ((task,) if task else manifest.tasks)]
    tasks = tasks or [t for t in TASKS.values() if t.reads == manifest.kind and t.applies(contents)]
    if not tasks:
        raise CornerstoneError(f"{data.location} has neither captions nor labelled classes: no task can judge it.")
    return [
        _set(data, f"{name or manifest.name}{suffix}", one, view)
        for one in tasks
        for suffix, view in one.views(contents).items()
    ]


def _set(data: DataSet, name: str, task: Task, view: View) -> EvaluationSet:
    manifest = data.manifest
    return EvaluationSet(
        name,
        task,
        data.location.uri,
        manifest.rows,
        view,
        manifest.content_hash,
        manifest.pool,
        manifest.classes,
        manifest.prompts,
        task.worth(data),
        split=manifest.split,
        lost=int(manifest.source.get("quarantined", 0)),
    )


def _contents(data: DataSet) -> Contents:
    """Read from the first row group."""
    table = Reader(data, ["captions", "label", "extra"]).group(0)
    roles = frozenset(c["role"] for captions in table["captions"].to_pylist() for c in captions or [])
    extra = json.loads(table["extra"][0].as_py() or "{}")
    scenes = isinstance(extra, dict) and "things" in (extra.get("scene") or {})
    labelled = bool(data.manifest.classes) and table["label"].null_count < table.num_rows
    return Contents(roles, labelled, scenes, data.manifest.source.get("format") in CLEANED_FORMATS)
