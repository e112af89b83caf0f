"""Shared parts of the jobs that derive a data set from another, shard by shard: features and new captions.

The derived data set has the same files and row groups. An actor writes a whole shard and its record, so that an interrupted
run resumes after the finished shards.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa

from cornerstone.data.output import Done, finish
from cornerstone.data.parallel import OnProgress, in_order
from cornerstone.data.shards import DataSet, write_row_groups
from cornerstone.data.storage import Location


def write_derived_shard(
    out: Location, file: str, groups: Iterable[pa.Table], settings: str, counted: dict[str, int]
) -> None:
    """Write one shard, one row group at a time, and then its record. `counted` may be filled while `groups` is consumed."""
    shard = write_row_groups(out, file, groups)
    finish(out, file, settings, Done((shard,), counted))


def groups_of(data: DataSet, shard: int) -> range:
    """The numbers of a shard's row groups among the row groups of all shards."""
    shards = data.manifest.shards
    first = sum(len(before.row_groups) for before in shards[:shard])
    return range(first, first + len(shards[shard].row_groups))


def run_actors(
    actor: type[Any],
    arguments: tuple[Any, ...],
    work: Sequence[dict[str, int]],
    *,
    actors: int,
    gpus_per_actor: float,
    failed: str,
    progress: OnProgress | None = None,
) -> None:
    """Run every task of `work` in a pool of actors, which write their results themselves. Ray must be started.

    Each actor takes one CPU, and a GPU if the cluster has GPUs; 0 actors: one per GPU, else one per CPU. Raises
    CornerstoneError if an actor fails; the message is `failed` and the reason.
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
        batch_size=1,  # Ray Data refuses None for actors with GPUs
        compute=ActorPoolStrategy(min_size=1, max_size=min(actors, len(work))),
        num_cpus=1,
        num_gpus=gpus_per_actor,
    )
    for done, _ in enumerate(in_order(dataset, failed), 1):
        if progress is not None:
            progress(done, len(work))
