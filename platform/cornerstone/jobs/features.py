"""`cornerstone features`: compute a locked image tower's features of a data set once, in Ray Data actors.

Trials then read vectors instead of decoding and encoding images.
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
from cornerstone.data.parallel import Progress
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
    """A data set, the output folder for its features, and everything the features depend on."""

    data: DataSet
    out: Location
    keys: FeatureKeys

    def settings(self, shard: Shard) -> str:
        """Fingerprint of everything that determines a shard's vectors."""
        return digest([asdict(self.keys), shard.sha256])

    def waiting(self) -> list[int]:
        """Indices of the shards that are not finished yet."""
        shards = enumerate(self.data.manifest.shards)
        return [index for index, shard in shards if finished(self.out, shard.file, self.settings(shard)) is None]


class _Tower:
    """An actor that computes the features of a shard and writes them, one row group at a time."""

    def __init__(self, jobs: Sequence[FeatureJob], config: ImageTower, transform: Transform, threads: int) -> None:
        torch.set_num_threads(threads)
        self.jobs, self.transform = jobs, transform
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.tower = build_image_tower(config).lock().to(self.device)
        self.schema = feature_schema(self.tower.width, jobs[0].keys.dtype)

    def __call__(self, block: dict[str, Any]) -> dict[str, Any]:
        """Called by Ray Data with a block that names one shard."""
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
                "This image tower has no pooling, so there is no feature to store (--recipe.method.image.pooling)."
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
    progress: Progress | None = None,
) -> None:
    """Compute and store the features of all images of all jobs. Files and row groups mirror the data; the manifest is last.

    Shards that an interrupted run finished are reused. Each actor takes one CPU and one thread, or a GPU if the cluster has
    any; `actors` 0 means one per GPU, or one per CPU. Ray must be initialised.
    """
    with writing(*(job.out for job in jobs)):
        shard_jobs.run_actors(
            _Tower,
            (jobs, tower, transform, 1),
            [{"job": number, "shard": index} for number, job in enumerate(jobs) for index in job.waiting()],
            actors=actors,
            gpus_per_actor=gpus_per_actor,
            failed="The features are unfinished (the same command resumes after the finished shards):",
            progress=progress,
        )
        for job in jobs:
            shards = job.data.manifest.shards
            done = [finished(job.out, shard.file, job.settings(shard)) for shard in shards]
            files = tuple(shard for one in done if one is not None for shard in one.shards)
            if len(files) < len(shards):
                raise CornerstoneError(
                    f"{len(shards) - len(files)} shards of {job.out} were changed while this ran: run it again."
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
    progress: Progress,
    say: Callable[[str], None],
) -> Manifest:
    """`write_features` for one data set with a recipe's tower and image size; presets of scenes use the built-in tower."""
    data = DataSet.open(folder, "pairs")
    config = recipe.method.image_tower
    if config is None:
        raise CornerstoneError(f"The method of the preset {recipe.name!r} has no image tower: name another --recipe.")
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
