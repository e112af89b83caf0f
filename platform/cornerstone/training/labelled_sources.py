"""Labelled images become a source."""

from __future__ import annotations

from typing import ClassVar

from cornerstone.data.images import Transform
from cornerstone.data.manifest import Kind
from cornerstone.data.mixture import Mixture
from cornerstone.data.pairs.image_input import DecodedImages
from cornerstone.data.pairs.labelled import LabelledImages, class_places
from cornerstone.data.shards import DataSet
from cornerstone.errors import CornerstoneError
from cornerstone.evaluation.sets import EvaluationSet
from cornerstone.recipes.labelled import LabelledData
from cornerstone.recipes.recipe import Recipe
from cornerstone.training.shared import Shared


class LabelledSources:
    """The sources of a recipe that is trained on labelled images."""

    manifest_kinds: ClassVar[tuple[Kind, ...]] = ("pairs",)
    reads_texts: ClassVar[bool] = False
    stored_features = False

    def __init__(
        self, recipe: Recipe, data: Mixture, tokenizer: str, sets: tuple[EvaluationSet, ...], shared: Shared
    ) -> None:
        labelled, image = recipe.data, recipe.method.image_tower
        if not isinstance(labelled, LabelledData) or image is None:
            raise CornerstoneError(f"The method {recipe.method.kind!r} has no image tower to train on labelled images.")
        if len(data.sets) > 1:
            raise CornerstoneError(
                f"{data.location} is a mixture, whose members may count their classes differently: give one folder (--train)."
            )
        (train,) = data.sets
        images = DecodedImages(Transform(image.size, labelled.crop_scale))
        self.train = LabelledImages.of(train, images, class_places(train, train), recipe.seed)
        opened = [DataSet.open(judged.folder, "pairs") for judged in sets]
        fixed = images.for_evaluation("")
        self.evaluations = tuple(LabelledImages.of(test, fixed, class_places(train, test)) for test in opened)

    @staticmethod
    def special_ids(tokenizer: str) -> None:
        """Images have no tokens."""
