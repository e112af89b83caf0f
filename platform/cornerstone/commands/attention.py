"""`cornerstone attention`: where models look, side by side in one picture."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from cornerstone.commands.terminal import say
from cornerstone.errors import CornerstoneError

if TYPE_CHECKING:
    from torch import Tensor

    from cornerstone.data.pairs.views import Box
    from cornerstone.inference.opened_model import OpenedModel

EXPERIMENT = "attention"


@dataclass(frozen=True)
class AttentionCommand:
    """Draw attention maps: the cosine of a text with each patch of an image, for several models side by side."""

    models: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="[NAME=]MODEL..")]
    """Runs' folders, or released models (open_clip:NAME/TAG, hf:NAME, a folder); NAME stands above the model's column."""
    out: str
    """The PNG file to write."""
    images: tuple[str, ...] = ()
    """Picture files, as many as texts; or one picture for all texts."""
    texts: tuple[str, ...] = ()
    """Texts, as many as pictures; or one text for all pictures."""
    data: str = ""
    """A folder of shards of pairs, in place of --images and --texts: its first rows with their first long (or raw) captions. Of
    built-in scenes the boxes of what a text mentions are drawn, and the energy in them is written below each map."""
    rows: int = 4
    """Rows of --data."""
    scale: Literal["common", "each"] = "common"
    """common: equal colours are equal cosines; each: every map from its own lowest to its highest cosine."""
    mlflow_run: str = ""
    """Log the picture to this MLflow run, by its id. Without it, if MLFLOW_TRACKING_URI names a server or store, to a new run
    of the experiment `attention`."""
    device: str = "auto"
    """Where the models compute: auto (a GPU if there is one), cpu, cuda, cuda:1."""

    def run(self) -> None:
        """Compute the maps, draw them, and log the picture."""
        from cornerstone.evaluation.attention import attention_maps
        from cornerstone.evaluation.attention_picture import Shown, draw_attention
        from cornerstone.inference.load import load
        from cornerstone.runtime.device import device_named

        if not self.out.lower().endswith(".png"):
            raise CornerstoneError(f"--out {self.out}: expected a file that ends in .png.")
        pairs = self._pairs()
        names: list[str] = []
        maps: list[Tensor] = []
        seen: list[Any] = []
        for given in self.models:
            name, model_name = _named(given)
            model = load(model_name, device_named(self.device))
            pixels = [model.pixels(image) for image, _, _ in pairs]
            maps.append(
                attention_maps(*_features(model, [image for image, _, _ in pairs], [text for _, text, _ in pairs]))
            )
            seen, names = seen or pixels, [*names, name]
        shown = [
            Shown(pixels.transpose(1, 2, 0), text, tuple(one[i].cpu() for one in maps), tuple(boxes))
            for i, (pixels, (_, text, boxes)) in enumerate(zip(seen, pairs, strict=True))
        ]
        path = draw_attention(shown, names, self.out, scale=self.scale)
        say(f"{len(names)} model{'s' if len(names) > 1 else ''}, {len(pairs)} images: {path}")
        self._log(path)

    def _pairs(self) -> list[tuple[bytes, str, list[Box]]]:
        """Image, text and boxes of each row of the picture."""
        if bool(self.data) == bool(self.images or self.texts):
            raise CornerstoneError("Give either --images FILE.. and --texts TEXT.., or --data DIR.")
        if self.data:
            return _rows_of(self.data, self.rows)
        count = max(len(self.images), len(self.texts))
        if not all(len(given) in (1, count) for given in (self.images, self.texts)):
            raise CornerstoneError(
                f"{len(self.images)} images and {len(self.texts)} texts: give as many of each, or one image, or one text."
            )
        images, texts = ((*given,) * (count if len(given) == 1 else 1) for given in (self.images, self.texts))
        return [(_bytes(image), text, []) for image, text in zip(images, texts, strict=True)]

    def _log(self, path: Path) -> None:
        from cornerstone.tracking.address import VARIABLE, tracking_address
        from cornerstone.tracking.mlflow_records import Records, log_file

        if self.mlflow_run:
            address = tracking_address()
            log_file(address, self.mlflow_run, path)
            say(f"logged to the run {self.mlflow_run} at {address}")
        elif os.environ.get(VARIABLE):
            records = Records(EXPERIMENT, say=say)
            run = records.start(path.stem, {f"cornerstone.model_{i}": name for i, name in enumerate(self.models)})
            records.artifact(run, path)
            records.finish(run)
            if run is not None and not records.problem:
                say(f"logged to the run {run} of the experiment {EXPERIMENT} at {records.uri}")


def _named(given: str) -> tuple[str, str]:
    """`[NAME=]MODEL` as name and model; the name defaults to the last part of the model's."""
    name, equals, model = given.partition("=")
    if equals and "/" not in name and ":" not in name:
        return name, model
    parts = [part for part in given.rstrip("/").split("/") if part != "model"]
    return parts[-1], given


def _features(model: OpenedModel, images: list[bytes], texts: list[str]) -> tuple[Tensor, Tensor]:
    """(N, P, D) of the images' patches, (N, D) of the texts."""
    import torch

    pixels = torch.stack([model.transform(image) for image in images])
    return model.encode_patches(pixels).float().cpu(), model.encode_text(texts).float().cpu()


def _rows_of(folder: str, count: int) -> list[tuple[bytes, str, list[Box]]]:
    import numpy as np

    from cornerstone.data.scenes.boxes import boxes_of
    from cornerstone.data.shards import DataSet, Reader

    data = DataSet.open(folder, "pairs")
    table = Reader(data, ["image", "width", "captions", "extra"]).take(np.arange(min(count, data.manifest.rows)))
    found: list[tuple[bytes, str, list[Box]]] = []
    for row in table.to_pylist():
        texts = {caption["role"]: caption["text"] for caption in reversed(row["captions"] or [])}
        if text := texts.get("long") or texts.get("raw"):
            found.append((row["image"], text, boxes_of(row["extra"] or "{}", text, row["width"])))
    if not found:
        raise CornerstoneError(
            f"The first {count} rows of {folder} have no caption: name another folder, or raise --rows."
        )
    return found


def _bytes(image: str) -> bytes:
    from cornerstone.data.storage import Location

    place = Location.of(image)
    if not place.exists():
        raise CornerstoneError(f"No picture at {image}: check --images.")
    return place.read_bytes()
