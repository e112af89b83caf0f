"""Packed documents become a source. A dual encoder on documents is evaluated zero-shot on pairs."""

from __future__ import annotations

from typing import ClassVar

from cornerstone.data.documents.config import SpecialIds
from cornerstone.data.documents.source import PackedSource
from cornerstone.data.images import Transform
from cornerstone.data.manifest import Kind
from cornerstone.data.mixture import Mixture
from cornerstone.data.pairs.image_input import DecodedImages
from cornerstone.data.pairs.source import PairEvaluation
from cornerstone.data.texts import TextInput
from cornerstone.errors import CornerstoneError
from cornerstone.evaluation.sets import EvaluationSet
from cornerstone.recipes.documents import DocumentData
from cornerstone.recipes.recipe import Recipe
from cornerstone.training.shared import Shared


class DocumentSources:
    """The sources of a recipe that is trained on packed documents."""

    manifest_kind: ClassVar[Kind] = "packing"
    stored_features = False

    def __init__(
        self, recipe: Recipe, data: Mixture, tokenizer: str, sets: tuple[EvaluationSet, ...], shared: Shared
    ) -> None:
        documents, image, text = recipe.data, recipe.method.image_tower, recipe.method.text_tower
        if not isinstance(documents, DocumentData):
            raise CornerstoneError(f"The recipe's data are {recipe.data.kind}; expected documents.")
        if sets and (image is None or text is None):
            raise CornerstoneError(
                f"The method {recipe.method.kind!r} has no image and text tower to be evaluated zero-shot: leave out --eval."
            )
        transform = Transform(documents.image_size, documents.crop_scale)
        self.train = PackedSource.of(data.sets, data.parts, tokenizer, transform, recipe.seed)
        self.evaluations: tuple[PairEvaluation, ...] = ()
        if image is not None and text is not None:
            images, texts = DecodedImages(Transform(image.size, train=False)), TextInput.of(text, tokenizer)
            self.evaluations = tuple(one.source(images, texts) for one in sets)

    @staticmethod
    def special_ids(tokenizer: str) -> SpecialIds:
        """What stands between the words of a document."""
        return SpecialIds.of(tokenizer)
