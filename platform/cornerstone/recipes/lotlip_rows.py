"""The rows of LoTLIP's tables, each made of a recipe of LoTLIP: presets and experiments take them from here.

| row | tables | towers |
|---|---|---|
| `lit`, `lit-long`, `longclip` | 2 | the recipe's locked image tower |
| `registers`, `unmasked` | 7, 3 | the same |
| `clip`, `clip-long`, `scratch` | 8 | both from scratch |
| `siglip`, `filip`, `laclip` | 4, 5 | both from scratch |
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from cornerstone.errors import CornerstoneError
from cornerstone.recipes.filip import FilipConfig
from cornerstone.recipes.long_clip import LongClipConfig
from cornerstone.recipes.lotlip import LotlipConfig, from_scratch, with_sub_captions
from cornerstone.recipes.pairs import PairData
from cornerstone.recipes.recipe import Recipe
from cornerstone.recipes.siglip import SiglipConfig


def lit(recipe: Recipe) -> Recipe:
    """LiT: raw captions alone, no corner tokens."""
    return with_sub_captions(lit_long(recipe), 0)


def lit_long(recipe: Recipe) -> Recipe:
    """LiT with long captions."""
    return recipe.with_text(corner_tokens=0)


def long_clip(recipe: Recipe) -> Recipe:
    """LiT with Long-CLIP's primary component matching. Its authors, who fine-tune CLIP, start the scale at 100:
    `--recipe.method.loss.initial-scale 100`."""
    method = _lotlip(recipe)
    return replace(recipe, method=LongClipConfig(method.image, method.text.plain()))


def registers(recipe: Recipe) -> Recipe:
    """Register tokens in place of the corner tokens: their outputs are thrown away."""
    return recipe.with_text(corner_mask=False, registers=True)


def unmasked(recipe: Recipe) -> Recipe:
    """Corner tokens without the mask."""
    return recipe.with_text(corner_mask=False)


def clip(recipe: Recipe) -> Recipe:
    """CLIP: LiT's recipe from scratch."""
    return from_scratch(lit(recipe))


def clip_long(recipe: Recipe) -> Recipe:
    """The same with long captions."""
    return from_scratch(lit_long(recipe))


def siglip(recipe: Recipe) -> Recipe:
    """SigLIP from scratch, on raw captions."""
    recipe = clip(recipe)
    method = _lotlip(recipe)
    return replace(recipe, method=SiglipConfig(method.image, method.text.plain()))


def filip(recipe: Recipe) -> Recipe:
    """FILIP from scratch, on raw captions."""
    recipe = clip(recipe)
    method = _lotlip(recipe)
    image, text = replace(method.image, pooling="none"), method.text.plain()
    return replace(recipe, method=FilipConfig(image, text, embedding=min(256, text.width)))


def laclip(recipe: Recipe) -> Recipe:
    """LaCLIP from scratch: each step draws the raw caption or one of its rewrites, which the data must have."""
    recipe = clip(recipe)
    assert isinstance(recipe.data, PairData)
    return recipe.with_data(rewrites=True, scenes=replace(recipe.data.scenes, rewrites=True))


ROWS: dict[str, Callable[[Recipe], Recipe]] = {
    "lit": lit,
    "lit-long": lit_long,
    "longclip": long_clip,
    "registers": registers,
    "unmasked": unmasked,
    "clip": clip,
    "clip-long": clip_long,
    "scratch": from_scratch,
    "siglip": siglip,
    "filip": filip,
    "laclip": laclip,
}
"""By the end of a preset's name."""


def _lotlip(recipe: Recipe) -> LotlipConfig:
    if not isinstance(recipe.method, LotlipConfig):
        raise CornerstoneError(f"A row of LoTLIP's tables is made of LoTLIP's recipe, not of {recipe.method.kind!r}.")
    return recipe.method
