"""Conversations, or pairs as such, become a source."""

from __future__ import annotations

from typing import ClassVar

from cornerstone.data.conversations.chat import Chat
from cornerstone.data.conversations.source import READERS, ConversationSource
from cornerstone.data.images import Transform
from cornerstone.data.manifest import Kind
from cornerstone.data.mixture import Mixture
from cornerstone.data.pairs.image_input import DecodedImages
from cornerstone.data.texts import TextInput
from cornerstone.errors import CornerstoneError
from cornerstone.evaluation.sets import EvaluationSet
from cornerstone.evaluation.tasks import EvaluationInputs
from cornerstone.recipes.conversations import ConversationData
from cornerstone.recipes.recipe import Recipe
from cornerstone.training.shared import Shared


class ConversationSources:
    """The sources of a recipe that is trained on conversations."""

    manifest_kinds: ClassVar[tuple[Kind, ...]] = tuple(READERS)
    reads_texts: ClassVar[bool] = True
    stored_features = False

    def __init__(
        self, recipe: Recipe, data: Mixture, tokenizer: str, sets: tuple[EvaluationSet, ...], shared: Shared
    ) -> None:
        talks, image, texts = recipe.data, recipe.method.image_tower, TextInput.of_method(recipe.method, tokenizer)
        if not isinstance(talks, ConversationData) or image is None or texts is None:
            raise CornerstoneError(
                f"The method {recipe.method.kind!r} reads no images and texts: it learns no answers."
            )
        if len(data.sets) > 1:
            raise CornerstoneError(f"{data.location} is a mixture: give one folder of conversations (--train).")
        form, images = texts.open(), DecodedImages(Transform(image.size, talks.crop_scale))
        chat = Chat(tokenizer, form.first, form.last, form.max_tokens, talks.style)
        self.train = ConversationSource.of(data.sets[0], images, chat, recipe.seed)
        inputs = EvaluationInputs(images.for_evaluation(""), texts, tokenizer)
        self.evaluations = tuple(one.source(inputs) for one in sets)

    @staticmethod
    def special_ids(tokenizer: str) -> None:
        """Conversations have no special tokens but what begins and ends them."""
