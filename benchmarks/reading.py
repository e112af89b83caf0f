"""Ways to read the same photographs: Cornerstone's, webdataset's and open_clip's. Also the photographs themselves."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import tarfile
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil
from PIL import Image

from cornerstone.data.images import Transform
from cornerstone.data.layout import UNITS_PER_EXECUTION, Layout, StreamSpec
from cornerstone.data.mixture import Mixture
from cornerstone.data.pairs.drawing import TextDraws
from cornerstone.data.pairs.image_input import DecodedImages
from cornerstone.data.pairs.source import PairSource
from cornerstone.data.plan import Plan
from cornerstone.data.records import Caption, Pair
from cornerstone.data.shards import ShardWriter
from cornerstone.data.texts import SentenceFormat, TextInput
from cornerstone.runtime.tokenizer import load_tokenizer

BATCH, SIDE, TOKEN_LIMIT = 128, 224, 128
SECONDS, WARM_UP_BATCHES, SETTLE_SECONDS = 15.0, 8, 5.0
DATA = Path(os.environ.get("CORNERSTONE_TEST_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")


def photographs() -> list[Pair]:
    """The sample photographs as JPEG, each with a raw and a long text."""
    pairs = []
    for name in ("openstax", "coco", "flowers"):
        for line in (DATA / name / "captions.jsonl").read_text().splitlines():
            row = json.loads(line)
            image = Image.open(DATA / name / row["image"]).convert("RGB")
            image.thumbnail((448, 448))
            stream = io.BytesIO()
            image.save(stream, "JPEG", quality=90)
            texts = [text for text in row.get("captions", []) if text] or ["a photograph of a flower"]
            captions = (Caption("web", "raw", texts[-1]), Caption("alt", "long", texts[0]))
            pairs.append(Pair(f"{name}/{row['image']}", stream.getvalue(), *image.size, captions))
    return pairs


def write_shards(folder: Path, pairs: list[Pair], rows: int) -> str:
    """Write `rows` rows: the photographs, repeated as often as needed, in random order. Returns the folder."""
    order = np.random.default_rng(0).permutation(np.arange(rows) % len(pairs))
    with ShardWriter(str(folder), name=folder.name, rows_per_shard=512) as writer:
        for place in order.tolist():
            writer.add(pairs[place])
    return str(folder)


def write_tars(folder: Path, pairs: list[Pair]) -> list[str]:
    """Write the same photographs as WebDataset tars. Returns their paths."""
    folder.mkdir()
    files = []
    for first in range(0, len(pairs), 128):
        files.append(str(folder / f"{first // 128:05d}.tar"))
        with tarfile.open(files[-1], "w") as tar:
            for number, pair in enumerate(pairs[first : first + 128], first):
                parts = {
                    "jpg": pair.image,
                    "txt": pair.captions[0].text.encode(),
                    "long": pair.captions[1].text.encode(),
                }
                for ending, content in parts.items():
                    info = tarfile.TarInfo(f"{number:06d}.{ending}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return files


@functools.cache
def vocabulary() -> str:
    """BERT's vocabulary. Loaded before the clock starts, since loading takes seconds."""
    return load_tokenizer("bert-base-uncased")


def spec_of(data: Mixture, steps: int, batch: int = BATCH) -> StreamSpec:
    """A run over the shards: a random crop, a raw caption, three sentences of a long caption."""
    images = DecodedImages(Transform(SIDE, (0.9, 1.0)))
    texts = TextInput("sentences", vocabulary(), TOKEN_LIMIT - 2)
    train = PairSource(data.folders, data.parts, images, texts, TextDraws(0, sub_captions=3))
    return StreamSpec(train, Plan(data.parts, batch, seed=0), steps)


def cornerstone_batches(
    folder: str,
    start: int = 0,
    steps: int = 1_000_000,
    units_per_execution: int = UNITS_PER_EXECUTION,
    batch: int = BATCH,
) -> Generator[Any]:
    """Batches through Ray Data, as a Ray Train worker that takes half a CPU gets them. Yields None first."""
    from cornerstone.data.execution import ray_datasets, ray_stream

    layout = Layout(spec_of(Mixture.open(folder), steps, batch), 1, units_per_execution)
    yield None
    datasets: dict[str, Any] = ray_datasets(layout, lambda: start, actors=2, cpus_per_actor=0.75)
    shards = {name: build().streaming_split(1, equal=True)[0] for name, build in datasets.items()}
    stream = ray_stream(layout, start, shards.__getitem__)
    for step in range(start, steps):
        yield stream.batch(step)


def webdataset_batches(tars: list[str]) -> Generator[Any]:
    """The same work by webdataset in two workers of PyTorch's DataLoader. Yields None first, when set-up is done."""
    import torch
    import webdataset as wds

    transform, tokenizer = Transform(SIDE, (0.9, 1.0)), SentenceFormat(vocabulary(), TOKEN_LIMIT - 2)
    yield None

    def pixels(data: bytes) -> npt.NDArray[np.uint8]:
        return transform(data, row=len(data))

    def batch(samples: list[tuple[npt.NDArray[np.uint8], bytes, bytes]]) -> tuple[Any, ...]:
        from cornerstone.data.batch import pad_lists
        from cornerstone.data.texts import sub_captions

        images, raw, long = zip(*samples, strict=True)
        drawn = [sub_captions(text.decode())[:3] for text in long]
        ids = tokenizer.encode([sub_captions(text.decode()) for text in raw] + drawn)
        return torch.from_numpy(np.stack(images)), *pad_lists(ids[: len(raw)]), *pad_lists(ids[len(raw) :])

    dataset = (
        wds.WebDataset(tars, shardshuffle=len(tars), resampled=True)
        .shuffle(1000)
        .to_tuple("jpg", "txt", "long")
        .map_tuple(pixels, lambda raw: raw, lambda long: long)
        .batched(BATCH, collation_fn=batch, partial=False)
    )
    yield from torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=2)


def open_clip_batches(tars: list[str]) -> Generator[Any]:
    """open_clip's pipeline, transform (normalised floats) and tokenizer, one text per image. Yields None first."""
    import cornerstone.models  # noqa: F401, I001 - repairs torchvision before open_clip imports it
    import open_clip
    import torch
    import webdataset as wds

    transform = open_clip.image_transform(SIDE, is_train=True)
    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    yield None
    pipeline = wds.DataPipeline(
        wds.ResampledShards(tars),
        wds.tarfile_to_samples(),
        wds.shuffle(1000),
        wds.decode("pilrgb"),
        wds.rename(image="jpg;png;jpeg;webp", text="txt"),
        wds.map_dict(image=transform, text=lambda text: tokenizer(text)[0]),
        wds.to_tuple("image", "text"),
        wds.batched(BATCH, partial=False),
    )
    yield from torch.utils.data.DataLoader(pipeline, batch_size=None, num_workers=2)


WAYS: dict[str, tuple[str, Callable[[Path], Generator[Any]]]] = {
    "cornerstone": (
        "Cornerstone (2 decode actors)",
        lambda folder: cornerstone_batches(str(folder / "pairs"), steps=10_000),
    ),
    "webdataset": (
        "webdataset, DataLoader of 2 workers, same transform and tokenizer",
        lambda folder: webdataset_batches(sorted(map(str, (folder / "tars").iterdir()))),
    ),
    "open_clip": (
        "webdataset, open_clip's transform and tokenizer",
        lambda folder: open_clip_batches(sorted(map(str, (folder / "tars").iterdir()))),
    ),
}
"""Name and batches of each way, given the folder with `pairs` (shards) and `tars`. Each is measured in a process of its own:
a DataLoader forks, which Ray's threads do not survive, and an idle Ray takes a tenth of a core."""


def timed(batches: Generator[Any]) -> dict[str, Any]:
    """Seconds to the `first` batch; after the warm-up, `rate` in rows per second, `gaps` between batches, `cores` by role.

    `batches` yields None when its set-up is done, then batches.
    """
    next(batches)
    time.sleep(SETTLE_SECONDS)
    begun = time.perf_counter()
    next(batches)
    first = time.perf_counter() - begun
    for _ in range(WARM_UP_BATCHES):
        next(batches)
    times, used = [time.perf_counter()], processor_seconds_by_role()
    while times[-1] - times[0] < SECONDS:
        next(batches)
        times.append(time.perf_counter())
    seconds, now = times[-1] - times[0], processor_seconds_by_role()
    batches.close()
    gaps, cores = np.diff(times).tolist(), {role: (now[role] - used.get(role, 0.0)) / seconds for role in now}
    return {"first": first, "rate": BATCH * len(gaps) / seconds, "gaps": gaps, "cores": cores}


def processor_seconds_by_role() -> dict[str, float]:
    """Processor seconds of this process and its descendants, summed by their role."""
    used: dict[str, float] = {}
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        with contextlib.suppress(psutil.Error):
            times, command = process.cpu_times(), " ".join(process.cmdline())
            role = next((role for sign, role in ROLES.items() if sign in command), "the rest of Ray")
            used[role] = used.get(role, 0.0) + times.user + times.system
    return used


EXECUTOR = "Ray Data's executor"
ROLES = {
    "MapWorker": "decode actors",
    "SplitCoordinator": EXECUTOR,
    "ray::Read": "source of units",
    "raylet/raylet": "raylet",
    "-m benchmarks.": "consumer, and loader workers",
}
"""The role of a process, by a part of its command line."""
