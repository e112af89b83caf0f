"""Sources over small folders, as the preparation of a recipe would make them."""

from __future__ import annotations

from collections.abc import Sequence

from cornerstone.data.images import Transform
from cornerstone.data.mixture import Mixture
from cornerstone.data.pairs.drawing import TextDraws
from cornerstone.data.pairs.image_input import DecodedImages, ImageInput
from cornerstone.data.pairs.source import PairEvaluation, PairSource
from cornerstone.data.pairs.views import View, Wanted
from cornerstone.data.texts import TextInput

LONG: View = (Wanted("long"),)
RAW: View = (Wanted("raw"),)


def texts_of(tokenizer: str, limit: int, corners: int = 2) -> TextInput:
    """Texts of at most `limit` tokens, of which corners take some."""
    return TextInput("sentences", tokenizer, limit - corners)


def pair_source(
    folder: str | Sequence[str],
    tokenizer: str,
    images: ImageInput | Transform,
    *,
    limit: int = 32,
    seed: int = 0,
    sub_captions: int = 2,
    captioners: tuple[str, ...] = (),
) -> PairSource:
    """Training pairs of a folder or mixture."""
    mixture = Mixture.open(folder)
    images = DecodedImages(images) if isinstance(images, Transform) else images
    draws = TextDraws(seed, sub_captions, captioners)
    return PairSource(mixture.folders, mixture.parts, images, texts_of(tokenizer, limit), draws)


def pair_evaluation(
    folder: str, tokenizer: str, images: ImageInput | Transform, view: View = LONG, *, limit: int = 32
) -> PairEvaluation:
    """An evaluation set of a folder."""
    images = DecodedImages(images) if isinstance(images, Transform) else images
    texts = texts_of(tokenizer, limit)
    return PairEvaluation(folder, len(Mixture.open(folder)), images.for_evaluation(""), texts, view)
