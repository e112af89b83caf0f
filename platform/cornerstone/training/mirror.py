"""A data set made from another one, shard by shard: features, new captions. Files and row groups stay as they are.

An actor writes a whole shard and then a small file beside it, which says by what settings it was made. So an interrupted
run goes on after its finished shards, and shards made otherwise are made anew. The manifest comes last, and these files go.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from cornerstone.data.manifest import Shard
from cornerstone.data.parallel import Progress, in_order
from cornerstone.data.shards import DataSet, write_features_shard
from cornerstone.data.storage import Location


@dataclass(frozen=True)
class Done:
    """A finished shard, and what its maker counted meanwhile."""

    shard: Shard
    counted: dict[str, int]


def finished(out: Location, file: str, settings: str) -> Done | None:
    """The shard where an earlier run with these settings finished it, and the file is there as it was written."""
    beside = _beside(out, file)
    if not beside.exists():
        return None
    found = json.loads(beside.read_text())
    if found["settings"] != settings:
        return None
    shard = Shard(**{**found["shard"], "row_groups": tuple(found["shard"]["row_groups"])})
    filesystem, path = out.join(file).resolve()
    return Done(shard, found["counted"]) if filesystem.get_file_info(path).size == shard.bytes else None


def write_mirror(out: Location, file: str, groups: Iterable[pa.Table], settings: str, counted: dict[str, int]) -> None:
    """Write one shard, a row group in memory at a time, and say that it is finished. `groups` may still add to `counted`."""
    shard = write_features_shard(out, file, groups)
    said = {"settings": settings, "shard": asdict(shard), "counted": counted}
    _beside(out, file).write_text(json.dumps(said) + "\n")


def tidy(out: Location, files: Iterable[str]) -> None:
    """Remove what stood beside the shards, after the manifest was written."""
    for file in files:
        _beside(out, file).remove()


def groups_of(data: DataSet, shard: int) -> range:
    """The numbers of a shard's row groups, counted over the data set."""
    shards = data.manifest.shards
    first = sum(len(before.row_groups) for before in shards[:shard])
    return range(first, first + len(shards[shard].row_groups))


def _beside(out: Location, file: str) -> Location:
    return out.join(f"{file}.done.json")


def run_actors(
    actor: type[Any],
    arguments: tuple[Any, ...],
    work: Sequence[dict[str, int]],
    *,
    actors: int,
    gpus_per_actor: float,
    failed: str,
    progress: Progress | None = None,
) -> None:
    """Give each piece of work to one of several actors, which say nothing back. Needs Ray to be started.

    Each actor takes one CPU, or a GPU where the cluster has some; 0 actors: one a GPU, or one a CPU. Raises CornerstoneError
    where the work does: `failed`, and the reason.
    """
    import ray.data
    from ray.data import ActorPoolStrategy

    if not work:
        return
    held = ray.cluster_resources()
    if not gpus_per_actor and held.get("GPU", 0) >= 1:
        gpus_per_actor = 1.0
    actors = actors or int(held["GPU"] / gpus_per_actor if gpus_per_actor else held.get("CPU", 1)) or 1
    dataset = ray.data.from_items(list(work), override_num_blocks=len(work)).map_batches(
        actor,
        fn_constructor_args=arguments,
        batch_size=None,
        compute=ActorPoolStrategy(min_size=1, max_size=min(actors, len(work))),
        num_cpus=1,
        num_gpus=gpus_per_actor,
    )
    for done, _ in enumerate(in_order(dataset, failed), 1):
        if progress is not None:
            progress(done, len(work))
