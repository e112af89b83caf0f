"""A tiny tower and small shards with known bad rows, on which whole runs take seconds."""

from __future__ import annotations

import colorsys
import io
from dataclasses import dataclass
from pathlib import Path

import pytest

TORN, TEXTLESS = (7, 40, 83), (22, 61)
"""Rows whose image is torn, and rows without any text."""
LARGE = range(88, 92)
"""Rows that take a while to decode; with seed 3 they stand in the first block, which others could overtake."""


@dataclass(frozen=True)
class Shards:
    """Folders: 100 training pairs with the bad rows above, a set for retrieval and one for classification."""

    train: str
    retrieval: str
    classes: str
    tower: str


@pytest.fixture(scope="session")
def tiny_tower(tmp_path_factory) -> str:
    """A folder in timm's layout: a vision transformer for 32 pixels, its weights drawn once."""
    import cornerstone.models  # noqa: F401, I001 - mends torchvision before timm is imported
    import timm
    import torch
    from timm.models import save_for_hf

    folder = tmp_path_factory.mktemp("tower")
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tower = timm.create_model("vit_tiny_patch16_224", num_classes=0, **sizes)
        for parameter in tower.parameters():  # far from uniform attention: pictures must look different
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.3)
    seen = {"input_size": (3, 32, 32), "mean": (0.5,) * 3, "std": (0.5,) * 3}
    save_for_hf(tower, str(folder), model_config={"model_args": sizes, "pretrained_cfg": seen}, safe_serialization=True)
    return str(folder)


def picture(i: int, enlarged: int = 1) -> bytes:
    """Four fields whose colours nobody else has."""
    from PIL import Image

    image = Image.new("RGB", (40, 36))
    for place in range(4):
        colour = colorsys.hsv_to_rgb(
            (i * 0.618 + place * 0.27 * (1 + i % 3)) % 1, 0.4 + 0.15 * (i % 5), 0.5 + 0.1 * place
        )
        image.paste(tuple(round(255 * c) for c in colour), (20 * (place % 2), 18 * (place // 2), 40, 36))
    stream = io.BytesIO()
    image.resize((40 * enlarged, 36 * enlarged), Image.Resampling.NEAREST).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(scope="session")
def shards(tmp_path_factory, small_data, wordpiece, tiny_tower) -> Shards:
    from cornerstone.data.records import Caption

    def pair(i: int):
        image = picture(i)
        return small_data.pair(i, image=image[: len(image) // 2] if i in TORN else image, width=40, height=36)

    def training(i: int):
        if i in TEXTLESS:
            return small_data.pair(i, captions=(Caption("web", "raw", "  "), Caption("a", "long", "")))
        if i in LARGE:
            return small_data.pair(i, image=picture(i, enlarged=120), width=4800, height=4320)
        return pair(i)

    folder = tmp_path_factory.mktemp("shards")
    train = small_data.write(folder / "train", map(training, range(100)))
    (Path(train) / "tokenizer.json").write_text(wordpiece.read_text())
    retrieval = small_data.write(
        folder / "birds", map(pair, range(70, 103)), tasks=("retrieval",)
    )  # a torn one is in it
    names = {"classes": ("cat", "dog", "bus", "sky"), "prompts": ("a photo of a {}.",), "tasks": ("classification",)}
    return Shards(train, retrieval, small_data.write(folder / "kinds", map(pair, range(200, 240)), **names), tiny_tower)
