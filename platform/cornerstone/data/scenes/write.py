"""Writes built-in scenes as shards. Shards are independent, so processes (here) or Ray tasks can write them in parallel."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from typing import Any

from cornerstone.data.manifest import Manifest, Shard
from cornerstone.data.output import writing
from cornerstone.data.parallel import Progress
from cornerstone.data.scenes.sets import EVALUATION_SETS, GROUP, manifest_fields, pair, set_kind
from cornerstone.data.scenes.world import ScenesSpec
from cornerstone.data.shards import write_shard
from cornerstone.data.storage import Location
from cornerstone.errors import CornerstoneError, did_you_mean

Place = Location | str | os.PathLike[str]


def write_scenes(
    out: Place, *, pairs: int, seed: int = 0, workers: int | None = None, progress: Progress | None = None, **world: Any
) -> Manifest:
    """Write the training pairs `scenes` into a new folder: one raw caption and three long captions per image.

    `world` are fields of `ScenesSpec` (image_size, cells, min_objects, max_objects, sentences, rows_per_shard).
    `workers` processes write the shards (None: one per CPU); they import the caller's main module, which therefore needs
    `if __name__ == "__main__"`. `progress` is called with finished rows and all rows after each shard. Equal arguments give
    equal bytes, for any number of workers. Raises CornerstoneError if the folder already contains a data set, or if another
    process is writing to it.
    """
    spec = ScenesSpec(rows=pairs, seed=seed, **world)
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
    progress: Progress | None = None,
    **world: Any,
) -> dict[str, Manifest]:
    """Write evaluation sets, each into `out/<name of the set>`. None of their images is used for training or pretraining.

    Each set has `images` images, unless `class_images` or `validation_images` are given; look-alikes are in `groups` of four
    (None: as many groups as give `images`). The other arguments are as in `write_scenes`; `world` also takes `pool`. Raises
    CornerstoneError as `write_scenes` does, and if the name of a set is unknown.
    """
    rows = {
        "class": class_images or images,
        "validation": validation_images or images,
        "lookalike": GROUP * (groups or max(1, images // GROUP)),
    }
    for name in sets:
        if name not in EVALUATION_SETS:
            raise CornerstoneError(f"Unknown evaluation set of scenes {name!r}{did_you_mean(name, EVALUATION_SETS)}")
    out = Location.of(out)
    specs = [ScenesSpec(set=name, rows=rows.get(name, images), seed=seed, **world) for name in sets]
    manifests = _write_all([(out.join(spec.set), spec) for spec in specs], workers, progress)
    return dict(zip(sets, manifests, strict=True))


def write_scenes_shard(out: Place, index: int, spec: ScenesSpec) -> Shard:
    """Write one of the `spec.shards` shards of a set. Depends only on its arguments; safe to call in parallel."""
    shard = write_shard(Location.of(out), index, (pair(spec, row) for row in spec.rows_of(index)))
    if shard is None:
        raise CornerstoneError(
            f"Shard {index} of {spec.set} has no rows: expected 0 to {spec.shards - 1}, since it has {spec.shards} shards."
        )
    return shard


def finish_scenes(out: Place, spec: ScenesSpec, shards: Sequence[Shard]) -> Manifest:
    """Write the manifest of a set, given its shards in order."""
    manifest = Manifest(kind="pairs", shards=tuple(shards), **manifest_fields(spec))
    manifest.write(Location.of(out))
    return manifest


def _write_all(
    sets: list[tuple[Location, ScenesSpec]], workers: int | None, progress: Progress | None
) -> list[Manifest]:
    """Write all shards of all sets with `workers` processes, then the manifests."""
    for _, spec in sets:
        set_kind(spec)
    with writing(*(out for out, _ in sets)):
        return _write_shards(sets, workers, progress)


def _write_shards(
    sets: list[tuple[Location, ScenesSpec]], workers: int | None, progress: Progress | None
) -> list[Manifest]:
    jobs = [(out, index, spec) for out, spec in sets for index in range(spec.shards)]
    count = min(workers or len(os.sched_getaffinity(0)), len(jobs))
    total, done = sum(spec.rows for _, spec in sets), 0
    shards: dict[tuple[str, int], Shard] = {}

    def take(job: tuple[Location, int, ScenesSpec], shard: Shard) -> None:
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
