"""`cornerstone features`: store the features of a locked image tower."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from cornerstone.commands.terminal import bar, say

if TYPE_CHECKING:
    from cornerstone.recipes.recipe import Recipe


def _precision_of(recipe: Recipe) -> Literal["fp32", "bf16"]:
    """What the preset says; presets of other data than pairs say nothing."""
    from cornerstone.recipes.pairs import PairData

    return recipe.data.feature_precision if isinstance(recipe.data, PairData) else "fp32"


@dataclass(frozen=True)
class FeaturesCommand:
    """Compute the features of a locked image tower once, so that trials read vectors instead of decoding images."""

    data: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DIR")]
    """Folder or URI of shards."""
    out: str
    """A new folder or URI for the features. In the folder of an interrupted run, finished shards are kept."""
    recipe: str = "scenes"
    """The preset whose image tower and image size are used."""
    image_tower: str | None = None
    """Another tower: a timm model name, or a folder in timm's layout."""
    dtype: Literal["float16", "float32"] = "float16"
    """Of the stored features."""
    precision: Literal["fp32", "bf16"] | None = None
    """In which the tower computes; by default as the preset says (recipe.data.feature_precision)."""
    gpus_per_actor: float = 0.0
    """0: one if the cluster has GPUs."""
    actors: int = 0
    """Number of actors with a copy of the tower; 0: one per GPU, or per CPU without GPUs. With GPUs, images are decoded by
    other actors, one per CPU."""

    def run(self) -> None:
        """Compute and store the features."""
        from cornerstone.data.output import refuse_existing
        from cornerstone.data.shards import DataSet
        from cornerstone.data.storage import Location
        from cornerstone.jobs.features import store_features
        from cornerstone.recipes import preset
        from cornerstone.runtime.cluster import connect, stoppable

        recipe = preset(self.recipe)
        DataSet.open(self.data, "pairs")  # report wrong arguments before Ray starts
        refuse_existing(Location.of(self.out))
        if self.image_tower is not None:
            recipe = recipe.with_image(name=self.image_tower)
        with connect(say), stoppable("Run the same command again to continue: finished shards are kept.", say):
            manifest = store_features(
                self.data,
                self.out,
                recipe,
                self.dtype,
                precision=self.precision or _precision_of(recipe),
                actors=self.actors,
                gpus_per_actor=self.gpus_per_actor,
                progress=bar("features"),
                say=say,
            )
        say(f"{manifest.rows:,} features of width {manifest.source['width']} in {self.out}")
