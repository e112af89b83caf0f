"""`cornerstone features`: a locked tower over shards, once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import tyro

from cornerstone.commands.terminal import bar, say


@dataclass(frozen=True)
class FeaturesCommand:
    """Run the locked image tower over shards once, so that trials read vectors and decode no image."""

    data: tyro.conf.Positional[str]
    """Folder or URI of shards."""
    out: str
    """A new folder or URI for the features; one left by an interrupted run goes on after its finished shards."""
    recipe: str = "scenes"
    """The preset whose tower and image size are used."""
    image_tower: str | None = None
    """Another tower: a timm model name, or a folder in timm's layout."""
    dtype: Literal["float16", "float32"] = "float16"
    gpus_per_actor: float = 0.0
    """0: one where the cluster has GPUs."""
    actors: int = 0
    """Copies of the tower at work; 0: one a GPU, or one a CPU."""

    def run(self) -> None:
        """Compute and store."""
        from cornerstone.data.output import refuse_existing
        from cornerstone.data.shards import DataSet
        from cornerstone.data.storage import Location
        from cornerstone.jobs.features import store_features
        from cornerstone.recipes import preset
        from cornerstone.runtime.cluster import connect, stoppable

        recipe = preset(self.recipe)
        DataSet.open(self.data, "pairs")  # what cannot work is refused before Ray starts
        refuse_existing(Location.of(self.out))
        if self.image_tower is not None:
            recipe = recipe.with_image(name=self.image_tower)
        with connect(say), stoppable("The same command goes on after the finished shards.", say):
            manifest = store_features(
                self.data,
                self.out,
                recipe,
                self.dtype,
                actors=self.actors,
                gpus_per_actor=self.gpus_per_actor,
                progress=bar("features"),
                say=say,
            )
        say(f"{manifest.rows:,} features of width {manifest.source['width']} in {self.out}")
