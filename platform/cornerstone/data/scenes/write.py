"""Writes scenes as shards of pairs, documents or conversations.

Shards are independent, so processes (or Ray tasks) can write them in parallel.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, replace
from multiprocessing import get_context
from typing import Any

from cornerstone.data.manifest import Kind, Manifest, Shard
from cornerstone.data.output import writing
from cornerstone.data.parallel import OnProgress
from cornerstone.data.records import Record
from cornerstone.data.scenes.conversations import ConversationsSpec, conversation
from cornerstone.data.scenes.documents import DocumentsSpec, document, documents_source
from cornerstone.data.scenes.sets import EVALUATION_SETS, GROUP, SETS, TRAINING_SETS, manifest_fields, pair, set_kind
from cornerstone.data.scenes.world import ScenesSpec
from cornerstone.data.shards import DataSet, Reader, write_shard
from cornerstone.data.storage import Location
from cornerstone.errors import CornerstoneError, did_you_mean

Place = Location | str | os.PathLike[str]
Spec = ScenesSpec | DocumentsSpec | ConversationsSpec


def write_scenes(
    out: Place,
    *,
    pairs: int,
    seed: int = 0,
    rewrites: bool = False,
    short: bool = False,
    workers: int | None = None,
    progress: OnProgress | None = None,
    **world: Any,
) -> Manifest:
    """Write the training pairs `scenes` into a new folder: one raw and three long captions per image.

    With `rewrites` they are `scenes-rewrites`: the same, and four rewrites of each raw caption. With `short` they are
    `scenes-short`: other images, each with five raw captions as those of the evaluation set `short`.
    `world` are fields of `ScenesSpec` (image_size, cells, min_objects, max_objects, sentences, rows_per_shard).
    `workers` processes share the shards (None: one per CPU); they import the caller's main module, which therefore needs
    `if __name__ == "__main__"`. `progress` gets the rows done and all rows after each shard. Equal arguments give equal
    bytes for any number of workers. Raises CornerstoneError if the folder already holds a data set.
    """
    name = "scenes-short" if short else "scenes-rewrites" if rewrites else "scenes"
    spec = ScenesSpec(set=name, rows=pairs, seed=seed, **world)
    return _write_all([(Location.of(out), spec)], workers, progress)[0]


def write_evaluation_sets(
    out: Place,
    *,
    images: int = 1000,
    class_images: int | None = None,
    groups: int | None = None,
    validation_images: int | None = None,
    sets: Sequence[str] = EVALUATION_SETS,
    seed: int = 0,
    workers: int | None = None,
    progress: OnProgress | None = None,
    **world: Any,
) -> dict[str, Manifest]:
    """Write evaluation sets, each into `out/<name>`; their images are sampled apart from all training images.

    Each has `images` images unless `class_images` or `validation_images` is given; there are `groups` groups of four
    look-alikes (None: as many as make up `images`). Other arguments are those of `write_scenes`; `world` also takes `pool`.
    """
    rows = {
        "class": class_images or images,
        "validation": validation_images or images,
        "lookalike": GROUP * (groups or max(1, images // GROUP)),
    }
    for name in sets:
        if name not in (valid := [known for known in SETS if known not in TRAINING_SETS]):
            raise CornerstoneError(f"{name!r} is not an evaluation set of scenes{did_you_mean(name, valid)}")
    out = Location.of(out)
    specs = [ScenesSpec(set=name, rows=rows.get(name, images), seed=seed, **world) for name in sets]
    manifests = _write_all([(out.join(spec.set), spec) for spec in specs], workers, progress)
    return dict(zip(sets, manifests, strict=True))


def write_documents(
    out: Place,
    *,
    documents: int,
    seed: int = 0,
    set: str = "documents",
    redundancy: float = 0.5,
    context: float = 0.75,
    mismatch: float = 0.0,
    images_per_document: int = 6,
    workers: int | None = None,
    progress: OnProgress | None = None,
    **world: Any,
) -> Manifest:
    """Write interleaved documents into a new folder: `documents` for training, or the set `documents-validation`.

    `scenes.documents` describes the three probabilities, and `expected_worth` says what the images are worth. `world` are
    fields of `WorldSpec` (image_size, cells, min_objects, max_objects, rows_per_shard). Other arguments are those of
    `write_scenes`.
    """
    spec = DocumentsSpec(
        set=set,
        rows=documents,
        seed=seed,
        redundancy=redundancy,
        context=context,
        mismatch=mismatch,
        images_per_document=images_per_document,
        **world,
    )
    return _write_all([(Location.of(out), spec)], workers, progress)[0]


def write_conversations(
    out: Place,
    *,
    conversations: int,
    seed: int = 0,
    set: str = "conversations",
    workers: int | None = None,
    progress: OnProgress | None = None,
    **world: Any,
) -> Manifest:
    """Write questions and answers about scenes into a new folder: for training, or the set `conversations-validation`.

    `world` are fields of `ConversationsSpec`. Other arguments are those of `write_scenes`.
    """
    spec = ConversationsSpec(set=set, rows=conversations, seed=seed, **world)
    return _write_all([(Location.of(out), spec)], workers, progress)[0]


def write_scenes_shard(out: Place, index: int, spec: Spec) -> Shard:
    """Write one of the set's `spec.shards` shards. It depends only on the arguments, so calls may run in parallel."""
    kind: Kind = "pairs" if isinstance(spec, ScenesSpec) else "documents"
    shard = write_shard(Location.of(out), index, (_record(spec, row) for row in spec.rows_of(index)), kind)
    if shard is None:
        raise CornerstoneError(f"Shard {index} of {spec.set} has no rows: the set has shards 0 to {spec.shards - 1}.")
    return shard


def finish_scenes(out: Place, spec: Spec, shards: Sequence[Shard]) -> Manifest:
    """Write the manifest of the set's shards, which are given in order."""
    folder = Location.of(out)
    if isinstance(spec, DocumentsSpec):
        manifest = Manifest(kind="documents", name=spec.set, shards=tuple(shards))
        reader = Reader(DataSet(folder, manifest), columns=["extra"], keep_groups=1)
        groups = range(len(manifest.row_groups))
        extras = [extra for group in groups for extra in reader.group(group)["extra"].to_pylist()]
        manifest = replace(manifest, source=documents_source(spec, extras))
    elif isinstance(spec, ConversationsSpec):
        manifest = Manifest(kind="documents", name=spec.set, shards=tuple(shards), source={"scenes": asdict(spec)})
    else:
        manifest = Manifest(kind="pairs", shards=tuple(shards), **manifest_fields(spec))
    manifest.write(folder)
    return manifest


def _record(spec: Spec, row: int) -> Record:
    if isinstance(spec, ScenesSpec):
        return pair(spec, row)
    return document(spec, row) if isinstance(spec, DocumentsSpec) else conversation(spec, row)


def _write_all(
    sets: Sequence[tuple[Location, Spec]], workers: int | None, progress: OnProgress | None
) -> list[Manifest]:
    """Write all shards of all sets in parallel, then the manifests."""
    for _, spec in sets:
        if isinstance(spec, ScenesSpec):
            set_kind(spec)
    with writing(*(out for out, _ in sets)):
        return _write_shards(sets, workers, progress)


def _write_shards(
    sets: Sequence[tuple[Location, Spec]], workers: int | None, progress: OnProgress | None
) -> list[Manifest]:
    jobs = [(out, index, spec) for out, spec in sets for index in range(spec.shards)]
    count = min(workers or len(os.sched_getaffinity(0)), len(jobs))
    total, done = sum(spec.rows for _, spec in sets), 0
    shards: dict[tuple[str, int], Shard] = {}

    def take(job: tuple[Location, int, Spec], shard: Shard) -> None:
        nonlocal done
        shards[job[2].set, job[1]] = shard
        done += shard.rows
        if progress is not None:
            progress(done, total)

    if count <= 1:
        for job in jobs:
            take(job, write_scenes_shard(*job))
    else:
        with ProcessPoolExecutor(count, mp_context=get_context("spawn")) as pool:
            running = {pool.submit(write_scenes_shard, *job): job for job in jobs}
            for future in as_completed(running):
                take(running[future], future.result())
    return [finish_scenes(out, spec, [shards[spec.set, i] for i in range(spec.shards)]) for out, spec in sets]
