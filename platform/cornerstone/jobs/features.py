"""`cornerstone features`: compute the features of a data set with the locked tower, once, so that trials only read them.

Ray Data actors compute whole shards. An interrupted run resumes after the finished shards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from cornerstone.data.images import BadImage, Transform
from cornerstone.data.manifest import Manifest, Shard
from cornerstone.data.output import finished, writing
from cornerstone.data.pairs.feature_store import FeatureKeys, FeatureType, feature_schema
from cornerstone.data.parallel import OnProgress
from cornerstone.data.shards import DataSet, Reader
from cornerstone.data.storage import Location
from cornerstone.errors import CornerstoneError
from cornerstone.hashing import digest
from cornerstone.jobs import shard_jobs
from cornerstone.jobs.built_in_scenes import scenes_tower
from cornerstone.models.image_tower import build_image_tower, state_hash
from cornerstone.recipes.pairs import PairData, Scenes
from cornerstone.recipes.recipe import Recipe
from cornerstone.recipes.towers import ImageTower

IMAGES_AT_ONCE = 256


@dataclass(frozen=True)
class FeatureJob:
    """A data set, the folder for its features, and the cache keys of the features."""

    data: DataSet
    out: Location
    keys: FeatureKeys

    def settings(self, shard: Shard) -> str:
        """Fingerprint of everything that determines the features of a shard; if unchanged, the finished shard is reused."""
        return digest([asdict(self.keys), shard.sha256])

    def waiting(self) -> list[int]:
        """Numbers of the shards that are not finished."""
        shards = enumerate(self.data.manifest.shards)
        return [index for index, shard in shards if finished(self.out, shard.file, self.settings(shard)) is None]


class _Tower:
    """A Ray Data actor. Computes and writes the features of one whole shard, one row group at a time."""

    def __init__(self, jobs: Sequence[FeatureJob], config: ImageTower, transform: Transform, threads: int) -> None:
        torch.set_num_threads(threads)
        self.jobs, self.transform = jobs, transform
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.tower = build_image_tower(config).lock().to(self.device)
        self.schema = feature_schema(self.tower.width, jobs[0].keys.dtype)

    def __call__(self, block: dict[str, Any]) -> dict[str, Any]:
        """Called by Ray Data, with one shard per block."""
        job, index = self.jobs[int(block["job"][0])], int(block["shard"][0])
        reader, shard = Reader(job.data, ["image"], keep_groups=1), job.data.manifest.shards[index]
        groups = (self._group(reader.group(group)) for group in shard_jobs.groups_of(job.data, index))
        shard_jobs.write_derived_shard(job.out, shard.file, groups, job.settings(shard), {})
        return block

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

    def _pooled(self, images: torch.Tensor) -> torch.Tensor:
        pooled = self.tower(images).pooled
        if pooled is None:
            raise CornerstoneError(
                "This image tower has no pooling, so it has no feature to store: set method.image.pooling."
            )
        return pooled

    @torch.inference_mode()
    def _encode(self, pixels: np.ndarray) -> np.ndarray:
        parts = torch.from_numpy(pixels).split(IMAGES_AT_ONCE)
        return torch.cat([self._pooled(part.to(self.device)).float().cpu() for part in parts]).numpy()


def write_features(
    jobs: Sequence[FeatureJob],
    tower: ImageTower,
    transform: Transform,
    *,
    width: int,
    actors: int = 0,
    gpus_per_actor: float = 0.0,
    progress: OnProgress | None = None,
) -> None:
    """Compute and store the features of every image of every job, in the same files and row groups as the data.

    Shards that an interrupted run finished are reused; the manifest is written last. Each actor takes one CPU and computes on
    one thread, or on a GPU if the cluster has GPUs; 0 actors: one per GPU, else one per CPU. Ray must be started. Raises
    CornerstoneError if the computation fails, if a folder is already finished or is being written, and if finished shards
    were changed during the run.
    """
    with writing(*(job.out for job in jobs)):
        shard_jobs.run_actors(
            _Tower,
            (jobs, tower, transform, 1),
            [{"job": number, "shard": index} for number, job in enumerate(jobs) for index in job.waiting()],
            actors=actors,
            gpus_per_actor=gpus_per_actor,
            failed="The features are unfinished (run the same command again to resume; finished shards are kept):",
            progress=progress,
        )
        for job in jobs:
            shards = job.data.manifest.shards
            done = [finished(job.out, shard.file, job.settings(shard)) for shard in shards]
            files = tuple(shard for one in done if one is not None for shard in one.shards)
            if len(files) < len(shards):
                raise CornerstoneError(
                    f"{len(shards) - len(files)} shards of {job.out} were changed during the run: run the same command again."
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
    progress: OnProgress,
    say: Callable[[str], None],
) -> Manifest:
    """Run `write_features` on one data set with a preset's tower and image size.

    Presets without a tower name use the tower of the built-in scenes. Raises CornerstoneError if the method of the preset has
    no image tower.
    """
    data = DataSet.open(folder, "pairs")
    config = recipe.method.image_tower
    if config is None:
        raise CornerstoneError(f"The method of the preset {recipe.name!r} has no image tower: choose another --recipe.")
    if not config.name:
        scenes = recipe.data.scenes if isinstance(recipe.data, PairData) else Scenes()
        config = replace(config, name=scenes_tower(scenes, config.size, say))
    tower = build_image_tower(config)
    transform = Transform(config.size, train=False)
    keys = FeatureKeys(data.manifest.content_hash, state_hash(tower), transform.key(), dtype)
    job = FeatureJob(data, Location.of(out), keys)
    if left := len(data.manifest.shards) - len(job.waiting()):
        say(f"{left:,} of {len(data.manifest.shards):,} shards are finished already")
    write_features(
        [job],
        config,
        transform,
        width=tower.width,
        actors=actors,
        gpus_per_actor=gpus_per_actor,
        progress=progress,
    )
    return Manifest.read(job.out, "features")
