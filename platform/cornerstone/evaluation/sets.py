"""Evaluation sets: what a folder of shards is judged by, read from its manifest and its captions' roles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cornerstone.data.manifest import Manifest
from cornerstone.data.pairs.views import View, Wanted
from cornerstone.data.shards import DataSet, Reader
from cornerstone.data.storage import absolute
from cornerstone.errors import CornerstoneError
from cornerstone.hashing import digest

Task = Literal["retrieval", "classification", "lookalike"]
LOOKALIKE: View = (Wanted("long", every=False), Wanted("raw", every=False), Wanted("long", every=False, sentences=1))
METRICS: dict[Task, tuple[str, ...]] = {
    "retrieval": ("i2t_r1", "t2i_r1", "i2t_r5", "t2i_r5"),
    "classification": ("top1", "top5"),
    "lookalike": ("long_accuracy", "short_accuracy", "first_sentence_accuracy"),
}


@dataclass(frozen=True)
class EvaluationSet:
    """One judged set: its rows, the texts that are judged, and what its manifest says about judging them."""

    name: str
    task: Task
    folder: str
    rows: int
    view: View
    content_hash: str
    pool: int | None = None
    classes: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ()


def open_sets(named: tuple[str, ...]) -> tuple[EvaluationSet, ...]:
    """The sets behind `[NAME=]DIR` arguments; a name defaults to the manifest's.

    A set with both long and raw captions gives two: NAME is judged by the long texts, NAME-short by the raw ones.
    Raises CornerstoneError where two sets end up with one name and task.
    """
    sets: list[EvaluationSet] = []
    for argument in named:
        name, folder = split_name(argument)
        sets += _judged(DataSet.open(folder), name)
    measured = [(s.name, s.task) for s in sets]  # a set's tasks share its name: their metrics have names of their own
    twice = sorted({name for name, task in measured if measured.count((name, task)) > 1})
    if twice:
        raise CornerstoneError(f"Two evaluation sets are named {twice[0]!r}: give one another name, --eval OTHER=DIR.")
    return tuple(sets)


def split_name(argument: str) -> tuple[str, str]:
    """`[NAME=]DIR` as a name, or "", and an absolute folder; DIR may hold a `=` of its own behind a `/`."""
    name, separator, folder = argument.partition("=")
    return (name, absolute(folder)) if separator and "/" not in name else ("", absolute(argument))


def metric_names(sets: tuple[EvaluationSet, ...]) -> list[str]:
    """Every `eval/<set>/<metric>` that the sets give."""
    return [f"eval/{judged.name}/{metric}" for judged in sets for metric in METRICS[judged.task]]


def eval_hash(sets: tuple[EvaluationSet, ...]) -> str:
    """A digest of what is measured: every set's name, content and pool."""
    return digest(sorted([s.name, s.task, s.content_hash, str(s.pool)] for s in sets))


def only_task(sets: tuple[EvaluationSet, ...], task: Task) -> tuple[EvaluationSet, ...]:
    """The sets of one task; CornerstoneError where there is none."""
    chosen = tuple(s for s in sets if s.task == task)
    if not chosen:
        found = ", ".join(sorted({f"{s.name} ({s.task})" for s in sets}))
        raise CornerstoneError(f"Nothing to judge by {task}: the data gives {found}.")
    return chosen


def _judged(data: DataSet, name: str) -> list[EvaluationSet]:
    manifest = data.manifest
    if manifest.kind != "pairs":
        raise CornerstoneError(f"{data.location} holds {manifest.kind}; an evaluation set is a folder of pairs.")
    name = name or manifest.name
    roles, labelled = _roles(data)
    tasks = manifest.tasks or (("retrieval",) if roles else ()) + (
        ("classification",) if manifest.classes and labelled else ()
    )
    sets = []
    for task in tasks:
        if task == "classification":
            sets.append(_set(data, manifest, name, "classification", ()))
        elif task == "lookalike":
            sets.append(_set(data, manifest, name, "lookalike", LOOKALIKE))
        elif "long" in roles and "raw" in roles:
            sets.append(_set(data, manifest, name, "retrieval", (Wanted("long"),)))
            sets.append(_set(data, manifest, f"{name}-short", "retrieval", (Wanted("raw"),)))
        else:
            sets.append(_set(data, manifest, name, "retrieval", (Wanted("long" if "long" in roles else "raw"),)))
    if not sets:
        raise CornerstoneError(f"{data.location} has neither captions nor labelled classes: there is nothing to judge.")
    return sets


def _set(data: DataSet, manifest: Manifest, name: str, task: Task, view: View) -> EvaluationSet:
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
    )


def _roles(data: DataSet) -> tuple[set[str], bool]:
    """Roles of the captions in the first row group, and whether rows have labels."""
    table = Reader(data, ["captions", "label"]).group(0)
    roles = {c["role"] for captions in table["captions"].to_pylist() for c in captions or []}
    return roles, table["label"].null_count < table.num_rows
