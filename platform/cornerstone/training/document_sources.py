"""Packed documents become a source."""

from __future__ import annotations

from typing import ClassVar

from cornerstone.data.documents.config import SpecialIds
from cornerstone.data.documents.source import PackedSource
from cornerstone.data.images import Transform
from cornerstone.data.manifest import Kind
from cornerstone.data.mixture import Mixture
from cornerstone.data.pairs.image_input import DecodedImages
from cornerstone.data.texts import TextInput
from cornerstone.errors import CornerstoneError
from cornerstone.evaluation.sets import EvaluationSet
from cornerstone.evaluation.tasks import EvaluationInputs
from cornerstone.recipes.documents import DocumentData
from cornerstone.recipes.recipe import Recipe
from cornerstone.training.shared import Shared


class DocumentSources:
    """The sources of a recipe that is trained on packed documents."""

    manifest_kinds: ClassVar[tuple[Kind, ...]] = ("packing",)
    reads_texts: ClassVar[bool] = True
    stored_features = False

    def __init__(
        self, recipe: Recipe, data: Mixture, tokenizer: str, sets: tuple[EvaluationSet, ...], shared: Shared
    ) -> None:
        documents, image = recipe.data, recipe.method.image_tower
        if not isinstance(documents, DocumentData):
            raise CornerstoneError(f"The recipe's data are {recipe.data.kind}; expected documents.")
        transform = Transform(documents.image_size, documents.crop_scale)
        self.train = PackedSource.of(data.sets, data.parts, tokenizer, transform, recipe.seed)
        _check_images(recipe, documents, self.train)
        size = image.size if image is not None else documents.image_size
        texts = TextInput.of_method(recipe.method, tokenizer)
        inputs = EvaluationInputs(DecodedImages(Transform(size, train=False)), texts, tokenizer)
        self.evaluations = tuple(one.source(inputs) for one in sets)

    @staticmethod
    def special_ids(tokenizer: str) -> SpecialIds:
        """What stands between the words of a document."""
        return SpecialIds.of(tokenizer)


def _check_images(recipe: Recipe, documents: DocumentData, packed: PackedSource) -> None:
    """Raise CornerstoneError if images have another size, or fewer or more tokens, than the method reads."""
    image, wanted = recipe.method.image_tower, recipe.method.image_tokens
    if image is not None and image.size != documents.image_size:
        raise CornerstoneError(
            f"Images of {documents.image_size} pixels do not fit the image tower, which sees {image.size}: set "
            f"--recipe.data.image-size {image.size}."
        )
    for folder, config in zip(packed.packings, packed.configs, strict=True):
        if wanted and config.image_tokens != wanted:
            raise CornerstoneError(
                f"{folder} has places for {config.image_tokens} tokens of an image, but the method {recipe.method.kind!r} "
                f"gives {wanted} at {documents.image_size} pixels: pack the documents with --image-tokens {wanted}."
            )
