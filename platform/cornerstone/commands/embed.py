"""`cornerstone embed`: features of texts or images in a file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from cornerstone.commands.terminal import bar, say, write_json

_SHOWN = 3


@dataclass(frozen=True)
class EmbedCommand:
    """Write the features of texts, or of a folder's images, to a file."""

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    """A run's folder or its `model`; a released model: open_clip:NAME/TAG, hf:NAME, or a folder in the layout of either."""
    out: str
    """What to write, by its ending: .parquet (columns key, feature), .npz (arrays keys, features), .npy (features; their keys
    beside it in a .keys.json)."""
    text: tuple[str, ...] = ()
    """Texts; each is its own key."""
    images: str = ""
    """A folder of pictures, whose keys are their paths below it, or of shards of pairs."""
    device: str = "auto"
    """Where the model computes: auto (a GPU if there is one), cpu, cuda, cuda:1."""
    json: str = ""
    """Write the counts, the width and the reasons of broken images to this file."""

    def run(self) -> None:
        """Compute and write the features."""
        from cornerstone.errors import CornerstoneError
        from cornerstone.inference.embed import check_ending, embed_images, embed_texts, write
        from cornerstone.inference.load import load
        from cornerstone.runtime.device import device_named

        if bool(self.text) == bool(self.images):
            raise CornerstoneError("Give either --text TEXT.. or --images DIR.")
        check_ending(self.out)
        model, progress = load(self.model, device_named(self.device)), bar("embedding")
        if self.text:
            embedded = embed_texts(model, self.text, progress)
        else:
            embedded = embed_images(model, self.images, progress)
        write(embedded, self.out)
        if self.json:
            write_json(self.json, embedded.summary())
        what = "texts" if self.text else "images"
        say(f"{len(embedded.keys):,} {what}, features of width {embedded.features.shape[-1]} in {self.out}")
        if embedded.bad:
            shown = "; ".join(f"{key}: {reason}" for key, reason in list(embedded.bad.items())[:_SHOWN])
            say(f"{len(embedded.bad):,} broken images were left out: {shown}")
