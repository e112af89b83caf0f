"""Ways to read the same photographs, for `benchmark_data.py`: Cornerstone's, webdataset's and open_clip's."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

from cornerstone.data.images import Transform
from cornerstone.data.layout import SEGMENT_UNITS, Layout, StreamSpec
from cornerstone.data.mixture import Mixture
from cornerstone.data.pairs.samples import Draws, Pictures, Texts
from cornerstone.data.plan import Plan
from cornerstone.data.records import Caption, Pair
from cornerstone.data.shards import ShardWriter
from cornerstone.data.texts import TextTokenizer
from cornerstone.runtime.tokenizer import load_tokenizer

BATCH, SIDE, LIMIT = 128, 224, 128
SECONDS, WARM, SETTLE = 15.0, 8, 5.0
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
    """So many rows, the photographs again and again in random order."""
    order = np.random.default_rng(0).permutation(np.arange(rows) % len(pairs))
    with ShardWriter(str(folder), name=folder.name, rows_per_shard=512) as writer:
        for place in order.tolist():
            writer.add(pairs[place])
    return str(folder)


def write_tars(folder: Path, pairs: list[Pair]) -> list[str]:
    """The same photographs as WebDataset tars."""
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
    """The real one; loading it takes seconds, which belong to nobody's first batch."""
    return load_tokenizer("bert-base-uncased")


def spec_of(data: Mixture, steps: int) -> StreamSpec:
    """An endless run over the shards: a random crop, a raw text, three sentences of a long one."""
    return StreamSpec(
        data=data.folders,
        plan=Plan(data.parts, BATCH, seed=0),
        draws=Draws(0, sub_captions=3),
        pictures=Pictures(Transform(SIDE, (0.9, 1.0))),
        texts=Texts(vocabulary(), LIMIT, corners=2),
        steps=steps,
    )


def cornerstones(
    folder: str, start: int = 0, steps: int = 1_000_000, segment_units: int = SEGMENT_UNITS
) -> Iterator[Any]:
    """Batches through Ray Data, as a Ray Train worker of half a CPU beside them gets them; first of all, when it is ready."""
    from cornerstone.data.execution import ray_datasets, ray_stream

    layout = Layout(spec_of(Mixture.open(folder), steps), 1, segment_units)
    yield None
    datasets: dict[str, Any] = ray_datasets(layout, lambda: start, actors=2, cpus_per_actor=0.75)
    shards = {name: build().streaming_split(1, equal=True)[0] for name, build in datasets.items()}
    with contextlib.closing(ray_stream(layout, start, shards.__getitem__)) as stream:
        for step in range(start, steps):
            yield stream.training(step)


def webdatasets(tars: list[str]) -> Iterator[Any]:
    """The same work by webdataset in two workers of PyTorch's DataLoader."""
    import torch
    import webdataset as wds

    transform, tokenizer = Transform(SIDE, (0.9, 1.0)), TextTokenizer(vocabulary(), limit=LIMIT, corners=2)
    yield None

    def pixels(data: bytes) -> np.ndarray:
        return transform(data, row=len(data))

    def batch(samples: list[tuple[np.ndarray, bytes, bytes]]) -> tuple[Any, ...]:
        from cornerstone.data.batches import pad_lists
        from cornerstone.data.texts import sub_captions

        images, raw, long = zip(*samples, strict=True)
        drawn = [". ".join(sub_captions(text.decode())[:3]) for text in long]
        ids = tokenizer.encode([text.decode() for text in raw] + drawn)
        return torch.from_numpy(np.stack(images)), *pad_lists(ids[: len(raw)]), *pad_lists(ids[len(raw) :])

    dataset = (
        wds.WebDataset(tars, shardshuffle=len(tars), resampled=True)
        .shuffle(1000)
        .to_tuple("jpg", "txt", "long")
        .map_tuple(pixels, lambda raw: raw, lambda long: long)
        .batched(BATCH, collation_fn=batch, partial=False)
    )
    yield from torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=2)


def open_clips(tars: list[str]) -> Iterator[Any]:
    """open_clip's way: its pipeline, transform (floats, normalised) and tokenizer, one text an image."""
    import cornerstone.models  # noqa: F401, I001 - mends torchvision before open_clip imports it
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


WAYS: dict[str, tuple[str, Callable[[Path], Iterator[Any]]]] = {
    "cornerstone": ("Cornerstone (2 decode actors)", lambda folder: cornerstones(str(folder / "pairs"), steps=10_000)),
    "webdataset": (
        "webdataset, DataLoader of 2 workers, same transform and tokenizer",
        lambda folder: webdatasets(sorted(map(str, (folder / "tars").iterdir()))),
    ),
    "open_clip": (
        "webdataset, open_clip's transform and tokenizer",
        lambda folder: open_clips(sorted(map(str, (folder / "tars").iterdir()))),
    ),
}
"""Ways to read, each measured in a process of its own: a DataLoader forks, which Ray's threads do not survive, and an idle
Ray takes a tenth of a core."""


def timed(batches: Iterator[Any]) -> dict[str, Any]:
    """Seconds to the first batch, rows a second after the first few, the gaps between batches, and who computed meanwhile."""
    next(batches)
    time.sleep(SETTLE)
    begun = time.perf_counter()
    next(batches)
    first = time.perf_counter() - begun
    for _ in range(WARM):
        next(batches)
    times, used = [time.perf_counter()], processors()
    while times[-1] - times[0] < SECONDS:
        next(batches)
        times.append(time.perf_counter())
    seconds, now = times[-1] - times[0], processors()
    batches.close()  # type: ignore[attr-defined]
    gaps, who = np.diff(times).tolist(), {name: (now[name] - used.get(name, 0.0)) / seconds for name in now}
    return {"first": first, "rate": BATCH * len(gaps) / seconds, "gaps": gaps, "who": who}


def processors() -> dict[str, float]:
    """Processor seconds of this process and of those below it, by what they are."""
    used: dict[str, float] = {}
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        with contextlib.suppress(psutil.Error):
            times, command = process.cpu_times(), " ".join(process.cmdline())
            name = next((what for sign, what in WHO.items() if sign in command), "the rest of Ray")
            used[name] = used.get(name, 0.0) + times.user + times.system
    return used


EXECUTOR = "executor of Ray Data"
WHO = {
    "MapWorker": "decode actors",
    "SplitCoordinator": EXECUTOR,
    "ray::Read": "source of units",
    "raylet/raylet": "raylet",
    sys.argv[0]: "consumer, and loader workers",
}
"""What a process is, by a part of its command."""
