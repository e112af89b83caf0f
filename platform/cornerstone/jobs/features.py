"""`cornerstone features`: compute the features of a data set with the locked tower, once, so that trials only read them.

    parts of shards → decode (actors on CPUs) → encode (actors on GPUs) → the driver writes each shard that is complete

Without GPUs one actor does both, so that no pixels travel. An interrupted run resumes after the finished shards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from cornerstone.data.images import BadImage, Transform
from cornerstone.data.manifest import Manifest, Shard
from cornerstone.data.output import finished, writing
from cornerstone.data.pairs.feature_store import FeatureKeys, FeatureType, Precision, feature_schema
from cornerstone.data.parallel import OnProgress, in_order
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
from cornerstone.runtime.device import actor_device

IMAGES_AT_ONCE = 256
"""Images of one forward pass, and the least of one part, unless a shard has fewer."""
WRITERS = 8
"""Shards that are written at a time: an object store takes a tenth of a second for each."""
_FAILED = "The features are unfinished (run the same command again to resume; finished shards are kept):"


@dataclass(frozen=True)
class FeatureJob:
    """A data set, the folder for its features, and the cache keys of the features."""

    data: DataSet
    out: Location
    keys: FeatureKeys

    def settings(self, shard: Shard) -> str:
        """Fingerprint of everything that determines the features of a shard; if unchanged, the finished shard is reused."""
        return digest([self.keys.as_dict(), shard.sha256])

    def waiting(self) -> list[int]:
        """Numbers of the shards that are not finished."""
        shards = enumerate(self.data.manifest.shards)
        return [index for index, shard in shards if finished(self.out, shard.file, self.settings(shard)) is None]

    def parts(self, shard: int) -> list[range]:
        """The shard's row groups (numbered over all shards) in runs of `IMAGES_AT_ONCE` rows or a few more."""
        found: list[range] = []
        start, rows = shard_jobs.groups_of(self.data, shard).start, 0
        sizes = self.data.manifest.shards[shard].row_groups
        for number, size in enumerate(sizes, start):
            rows += size
            if rows >= IMAGES_AT_ONCE or number == start + len(sizes) - 1:
                begin = found[-1].stop if found else start
                found.append(range(begin, number + 1))
                rows = 0
        return found


@dataclass(frozen=True)
class _Work:
    """What every actor gets: the jobs, the tower, the transform."""

    jobs: tuple[FeatureJob, ...]
    config: ImageTower
    transform: Transform


class _Decode:
    """Decodes the images of a part. A part's row: job, shard, first group, stop group; then pixels and reasons."""

    def __init__(self, work: _Work) -> None:
        self.work = work
        self._readers: dict[int, Reader] = {}

    def __call__(self, rows: dict[str, Any]) -> pa.Table:
        """Called by Ray Data, with one part at a time. The pixels travel as one binary value."""
        part = {name: int(rows[name][0]) for name in ("job", "shard", "first", "stop")}
        pixels, reasons = self.decoded(part)
        return pa.table(
            {name: [value] for name, value in part.items()}
            | {"pixels": pa.array([pixels.tobytes()], pa.large_binary()), "reasons": [reasons]}
        )

    def decoded(self, part: dict[str, int]) -> tuple[npt.NDArray[np.uint8], list[str]]:
        """uint8 (N, 3, S, S), and for each image the reason why it could not be used, or ""."""
        job = self.work.jobs[part["job"]]
        reader = self._readers.setdefault(part["job"], Reader(job.data, ["image"], keep_groups=1))
        images = [image for group in range(part["first"], part["stop"]) for image in reader.group(group)["image"]]
        side = self.work.transform.size
        pixels, reasons = np.zeros((len(images), 3, side, side), dtype=np.uint8), [""] * len(images)
        for place, image in enumerate(images):
            try:
                pixels[place] = self.work.transform(image.as_py() or b"")
            except BadImage as error:
                reasons[place] = str(error)
        return pixels, reasons


class _Encode:
    """Encodes the decoded images of a part with the tower, on a GPU if the actor has one."""

    def __init__(self, work: _Work) -> None:
        torch.set_num_threads(1)
        self.work, self.device = work, actor_device()
        self.tower = build_image_tower(work.config).lock().to(self.device)
        self.bf16 = work.jobs[0].keys.precision == "bf16"

    def __call__(self, rows: dict[str, Any]) -> dict[str, Any]:
        """Called by Ray Data, with one decoded part at a time."""
        side = self.work.transform.size
        pixels = np.frombuffer(rows["pixels"][0], np.uint8).reshape(-1, 3, side, side)
        vectors = self.encoded(pixels, list(rows["reasons"][0]))
        part = {name: rows[name] for name in ("job", "shard", "first", "stop")}
        return {**part, "vectors": [vectors.tobytes()], "reasons": rows["reasons"]}

    @torch.inference_mode()
    def encoded(self, pixels: npt.NDArray[np.uint8], reasons: Sequence[str]) -> npt.NDArray[np.float32]:
        """float32 (N, W); 0 for images that could not be used."""
        autocast = torch.autocast(self.device.type, torch.bfloat16) if self.bf16 else nullcontext()
        found = []
        with autocast:
            for part in torch.from_numpy(pixels.copy()).split(IMAGES_AT_ONCE):
                pooled = self.tower(part.to(self.device)).pooled
                if pooled is None:
                    raise CornerstoneError(
                        "This image tower has no pooling, so it has no feature to store: set method.image.pooling."
                    )
                found.append(pooled.float().cpu())
        vectors: npt.NDArray[np.float32] = torch.cat(found).numpy()
        vectors[[place for place, reason in enumerate(reasons) if reason]] = 0
        return vectors


class _DecodeAndEncode:
    """Both in one actor, where there are no GPUs."""

    def __init__(self, work: _Work) -> None:
        self._decode, self._encode = _Decode(work), _Encode(work)

    def __call__(self, rows: dict[str, Any]) -> dict[str, Any]:
        """Called by Ray Data, with one part at a time."""
        part = {name: int(rows[name][0]) for name in ("job", "shard", "first", "stop")}
        pixels, reasons = self._decode.decoded(part)
        vectors = self._encode.encoded(pixels, reasons)
        return {name: [value] for name, value in part.items()} | {"vectors": [vectors.tobytes()], "reasons": [reasons]}


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

    Shards that an interrupted run finished are reused; the manifest is written last. If the cluster has GPUs, there is an
    encoding actor for each (`actors`, `gpus_per_actor`), and as many decoding actors as there are CPUs; otherwise there
    are `actors`, by default one per CPU, each on one thread. Ray must be started. Raises CornerstoneError if the computation
    fails, if a folder is already finished or is being written, and if finished shards were changed during the run.
    """
    with writing(*(job.out for job in jobs)):
        work = _Work(tuple(jobs), tower, transform)
        waiting = [(number, shard) for number, job in enumerate(jobs) for shard in job.waiting()]
        _write_shards(work, waiting, width, actors, gpus_per_actor, progress)
        for job in jobs:
            shards = job.data.manifest.shards
            done = [finished(job.out, shard.file, job.settings(shard)) for shard in shards]
            files = tuple(shard for one in done if one is not None for shard in one.shards)
            if len(files) < len(shards):
                raise CornerstoneError(
                    f"{len(shards) - len(files)} shards of {job.out} were changed during the run: run the same command again."
                )
            source = {"data": job.data.location.uri, "width": width}
            Manifest("features", job.data.name, files, source=source, keys=job.keys.as_dict()).write(job.out)


def _write_shards(
    work: _Work,
    waiting: Sequence[tuple[int, int]],
    width: int,
    actors: int,
    gpus_per_actor: float,
    progress: OnProgress | None,
) -> None:
    """Compute the shards (job, shard), and write each one when its last part has arrived."""
    parts = [(job, shard, part) for job, shard in waiting for part in work.jobs[job].parts(shard)]
    writes: list[Future[None]] = []
    held: list[dict[str, Any]] = []
    with ThreadPoolExecutor(WRITERS, thread_name_prefix="write-features") as pool:
        for done, row in enumerate(_computed(work, parts, actors, gpus_per_actor), 1):
            held.append(row)
            job, shard = int(row["job"]), int(row["shard"])
            if int(row["stop"]) == shard_jobs.groups_of(work.jobs[job].data, shard).stop:
                writes.append(pool.submit(_write_shard, work.jobs[job], shard, held, width))
                held = []
            if progress is not None:
                progress(done, len(parts))
        for write in writes:
            write.result()


def _computed(
    work: _Work, parts: Sequence[tuple[int, int, range]], actors: int, gpus_per_actor: float
) -> Iterator[dict[str, Any]]:
    """The rows of all parts, in order."""
    import ray.data
    from ray.data import ActorPoolStrategy

    if not parts:
        return
    held = ray.cluster_resources()
    gpus, cpus = held.get("GPU", 0.0), int(held.get("CPU", 1)) or 1
    rows = [{"job": job, "shard": shard, "first": part.start, "stop": part.stop} for job, shard, part in parts]
    dataset: ray.data.Dataset = ray.data.from_items(rows, override_num_blocks=len(rows))

    def pool(size: int) -> ActorPoolStrategy:
        return ActorPoolStrategy(min_size=1, max_size=min(max(size, 1), len(rows)))

    if gpus >= 1 or gpus_per_actor:
        share = gpus_per_actor or 1.0
        dataset = dataset.map_batches(
            _Decode, fn_constructor_args=(work,), batch_size=1, compute=pool(cpus - 1), num_cpus=1
        ).map_batches(
            _Encode,
            fn_constructor_args=(work,),
            batch_size=1,
            compute=pool(actors or int(gpus / share)),
            num_cpus=0,
            num_gpus=share,
        )
    else:
        dataset = dataset.map_batches(
            _DecodeAndEncode, fn_constructor_args=(work,), batch_size=1, compute=pool(actors or cpus), num_cpus=1
        )
    yield from in_order(dataset, _FAILED)


def _write_shard(job: FeatureJob, shard: int, parts: Sequence[dict[str, Any]], width: int) -> None:
    """Write one shard in the row groups of the data, and its record."""
    described, schema = job.data.manifest.shards[shard], feature_schema(width, job.keys.dtype)
    vectors = np.concatenate([np.frombuffer(part["vectors"], np.float32) for part in parts]).reshape(-1, width)
    reasons = [reason for part in parts for reason in part["reasons"]]
    number = schema.field("feature").type.value_type.to_pandas_dtype()

    def groups() -> Iterator[pa.Table]:
        start = 0
        for size in described.row_groups:
            flat = pa.array(vectors[start : start + size].astype(number).reshape(-1))
            columns = [pa.FixedSizeListArray.from_arrays(flat, width)]
            columns.append(pa.array(reasons[start : start + size], pa.string()))
            yield pa.Table.from_arrays(columns, schema=schema)
            start += size

    shard_jobs.write_derived_shard(job.out, described.file, groups(), job.settings(described), {})


def store_features(
    folder: str,
    out: str,
    recipe: Recipe,
    dtype: FeatureType,
    *,
    precision: Precision,
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
    keys = FeatureKeys(data.manifest.content_hash, state_hash(tower), transform.key(), dtype, precision)
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
