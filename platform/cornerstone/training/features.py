"""`cornerstone features`: the locked tower over a data set, once, by Ray Data actors; trials then read vectors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from cornerstone.data.features import FeatureKeys, FeatureType, feature_schema
from cornerstone.data.images import BadImage, Transform
from cornerstone.data.manifest import Manifest, Shard
from cornerstone.data.shards import DataSet, Reader, refuse_existing, write_features_shard
from cornerstone.data.storage import Location
from cornerstone.models.towers import build_image_tower, state_hash
from cornerstone.recipes.recipe import Recipe
from cornerstone.recipes.towers import ImageTower
from cornerstone.training.embedded import scenes_tower

IMAGES_AT_ONCE = 256


@dataclass(frozen=True)
class FeatureJob:
    """A data set, the folder for its features, and what they depend on."""

    data: DataSet
    out: Location
    keys: FeatureKeys


class _Tower:
    """An actor: computes the features of one whole shard and writes them; returns what the manifest says of the file."""

    def __init__(self, jobs: Sequence[FeatureJob], config: ImageTower, transform: Transform, threads: int) -> None:
        torch.set_num_threads(threads)
        self.jobs, self.transform = jobs, transform
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.tower = build_image_tower(config).lock().to(self.device)
        self.schema = feature_schema(self.tower.width, jobs[0].keys.dtype)

    def __call__(self, block: dict[str, Any]) -> dict[str, Any]:
        """Ray Data's door: one shard a block."""
        job, index = self.jobs[int(block["job"][0])], int(block["shard"][0])
        reader = Reader(job.data, ["image"], keep_groups=1)
        shards = job.data.manifest.shards
        first = sum(len(s.row_groups) for s in shards[:index])
        groups = [self._group(reader.group(first + g)) for g in range(len(shards[index].row_groups))]
        written = write_features_shard(job.out, shards[index].file, groups)
        return {name: [value] for name, value in {"job": block["job"][0], "shard": index, **asdict(written)}.items()}

    def _group(self, rows: pa.Table) -> pa.Table:
        images = rows["image"]
        pixels, reasons = [], []
        blank = np.zeros((3, self.transform.size, self.transform.size), dtype=np.uint8)
        for image in images:
            try:
                pixels.append(self.transform(image.as_py() or b""))
                reasons.append("")
            except BadImage as error:
                pixels.append(blank)
                reasons.append(str(error))
        vectors = self._encode(np.stack(pixels))
        vectors[[i for i, reason in enumerate(reasons) if reason]] = 0
        number = self.schema.field("feature").type.value_type.to_pandas_dtype()
        flat = pa.array(vectors.astype(number).reshape(-1))
        return pa.Table.from_arrays(
            [pa.FixedSizeListArray.from_arrays(flat, self.tower.width), pa.array(reasons, pa.string())],
            schema=self.schema,
        )

    @torch.inference_mode()
    def _encode(self, pixels: np.ndarray) -> np.ndarray:
        parts = torch.from_numpy(pixels).split(IMAGES_AT_ONCE)
        return torch.cat([self.tower(part.to(self.device)).float().cpu() for part in parts]).numpy()


def write_features(
    jobs: Sequence[FeatureJob],
    tower: ImageTower,
    transform: Transform,
    *,
    width: int,
    actors: int = 0,
    gpus_per_actor: float = 0.0,
) -> None:
    """Compute and store the features of every image of every job: files and row groups as in its data, manifest last.

    Each actor takes one CPU and computes on one thread, or on a GPU where the cluster has some; 0 actors: one a GPU, or
    one a CPU. Needs Ray to be started.
    """
    import ray.data
    from ray.data import ActorPoolStrategy, DataContext

    for job in jobs:
        refuse_existing(job.out)
        job.out.make()
    DataContext.get_current().enable_progress_bars = False
    held = ray.cluster_resources()
    if not gpus_per_actor and held.get("GPU", 0) >= 1:
        gpus_per_actor = 1.0
    actors = actors or int(held["GPU"] / gpus_per_actor if gpus_per_actor else held.get("CPU", 1)) or 1
    units = [{"job": j, "shard": i} for j, job in enumerate(jobs) for i in range(len(job.data.manifest.shards))]
    rows = (
        ray.data.from_items(units, override_num_blocks=len(units))
        .map_batches(
            _Tower,
            fn_constructor_args=(jobs, tower, transform, 1),
            batch_size=None,
            compute=ActorPoolStrategy(min_size=1, max_size=min(actors, len(units))),
            num_cpus=1,
            num_gpus=gpus_per_actor,
        )
        .take_all()
    )
    for place, job in enumerate(jobs):
        written = sorted((row for row in rows if row["job"] == place), key=lambda row: row["shard"])
        files = tuple(
            Shard(row["file"], tuple(int(n) for n in row["row_groups"]), int(row["bytes"]), row["sha256"])
            for row in written
        )
        source = {"data": job.data.location.uri, "width": width}
        Manifest("features", job.data.name, files, source=source, keys=asdict(job.keys)).write(job.out)


def store_features(
    folder: str,
    out: str,
    recipe: Recipe,
    dtype: FeatureType,
    *,
    actors: int,
    gpus_per_actor: float,
    say: Callable[[str], None],
) -> Manifest:
    """`write_features` of one data set for a preset's tower and image size. Presets of scenes take the embedded tower."""
    data = DataSet.open(folder, "pairs")
    config = recipe.method.image
    if not config.name:
        config = replace(config, name=scenes_tower(recipe.data.scenes, config.size, say))
    tower = build_image_tower(config)
    transform = Transform(config.size, train=False)
    keys = FeatureKeys(data.manifest.content_hash, state_hash(tower), transform.key(), dtype)
    job = FeatureJob(data, Location.of(out), keys)
    write_features([job], config, transform, width=tower.width, actors=actors, gpus_per_actor=gpus_per_actor)
    return Manifest.read(job.out, "features")
