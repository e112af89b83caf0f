"""Names in a recipe become absolute paths and URIs, and empty ones the built-in scenes: workers run in other folders."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from cornerstone.data.shards import DataSet
from cornerstone.data.storage import absolute
from cornerstone.errors import CornerstoneError, did_you_mean
from cornerstone.evaluation.sets import split_name
from cornerstone.jobs.built_in_scenes import (
    BuiltInScenes,
    prepare_conversations,
    prepare_document_pairs,
    prepare_documents,
    prepare_labelled,
    prepare_scenes,
)
from cornerstone.recipes.conversations import ConversationData
from cornerstone.recipes.documents import DocumentData, DocumentPairs, SceneDocuments
from cornerstone.recipes.labelled import LabelledData
from cornerstone.recipes.pairs import PairData
from cornerstone.recipes.recipe import Recipe
from cornerstone.recipes.towers import ImageTower
from cornerstone.training.shared import Shared


def resolved(recipe: Recipe, shared: Shared) -> Recipe:
    """The recipe with absolute names, and with the built-in data set, evaluation sets and tower if it names none."""
    recipe = _with_absolute_names(recipe)
    if recipe.data.train:
        if (image := recipe.method.image_tower) is not None and not image.name:
            raise CornerstoneError(
                f"The preset {recipe.name!r} takes its image tower from the built-in scenes; with your own --train name one: "
                f"--image-tower vit_small_patch16_224.augreg_in21k, or a folder in timm's layout; or use --preset photos."
            )
        return _with_classes(recipe)
    return _with_classes(_built_in(recipe)(shared))


def check_named(recipe: Recipe) -> None:
    """Raise CornerstoneError if a recipe names no training data and there are no built-in ones for it."""
    if not recipe.data.train:
        _built_in(recipe)


def _with_absolute_names(recipe: Recipe) -> Recipe:
    """Towers too: a folder given as a relative path would not be found when the model is saved, on another machine."""
    if recipe.data.train:
        recipe = recipe.with_data(train=absolute(recipe.data.train))
    image, text = recipe.method.image_tower, recipe.method.text_tower
    if image is not None and _is_folder(image.name):
        recipe = recipe.with_image(name=absolute(image.name))
    if text is not None and _is_folder(text.name):
        recipe = recipe.with_text(name=absolute(text.name))
    if folders := {part: absolute(name) for part, name in recipe.method.weights.items() if _is_folder(name)}:
        recipe = recipe.with_method(**folders)
    sets = tuple(f"{name}={folder}" if name else folder for name, folder in map(split_name, recipe.evaluation.sets))
    return recipe.with_evaluation(sets=sets)


def _is_folder(name: str) -> bool:
    return bool(name) and ("://" in name or Path(name).expanduser().is_dir())


def _built_in(recipe: Recipe) -> Callable[[Shared], Recipe]:
    """What gives the recipe its built-in data. One with a tokenizer of its own, or without a tower, may have none."""
    data, image = recipe.data, recipe.method.image_tower
    if isinstance(data, DocumentData) and not data.tokenizer:
        return lambda shared: _with_scene_documents(recipe, data, shared)
    if image is not None and image.name:
        if isinstance(data, LabelledData):
            return lambda shared: _with_labelled_scenes(recipe, data, image.size, shared)
        if isinstance(data, ConversationData) and not data.tokenizer:
            return lambda shared: _with_conversation_scenes(recipe, data, image.size, shared)
        if isinstance(data, DocumentPairs) and not data.tokenizer:
            return lambda shared: _with_document_pairs(recipe, data.documents, image.size, shared)
    if isinstance(data, PairData) and image is not None and not (image.name and data.tokenizer):
        return lambda shared: _with_scene_pairs(recipe, data, image, shared)
    raise CornerstoneError(
        f"The preset {recipe.name!r} trains on your own data: name them with --train DIR and --eval DIR (`cornerstone data "
        f"import` makes such folders). The presets smoke, scenes, scenes-long, scenes-lcl and scenes-coca bring their own."
    )


def _with_scene_pairs(recipe: Recipe, data: PairData, image: ImageTower, shared: Shared) -> Recipe:
    scenes, size, own, named = data.scenes, image.size, not image.name, recipe.evaluation.built_in
    built_in = shared.once(
        ("scenes", scenes, size, own, named),
        lambda: prepare_scenes(scenes, size, shared.say, tower=own, named=named),
    )
    return _with(recipe.with_image(name=built_in.tower) if own else recipe, built_in)


def _with_scene_documents(recipe: Recipe, data: DocumentData, shared: Shared) -> Recipe:
    built_in = shared.once(
        ("scene documents", data.scenes, data.image_size),
        lambda: prepare_documents(data.scenes, data.image_size, shared.say),
    )
    return _with(recipe, built_in)


def _with_labelled_scenes(recipe: Recipe, data: LabelledData, size: int, shared: Shared) -> Recipe:
    key = ("labelled scenes", data.scenes, size)
    return _with(recipe, shared.once(key, lambda: prepare_labelled(data.scenes, size, shared.say)))


def _with_conversation_scenes(recipe: Recipe, data: ConversationData, size: int, shared: Shared) -> Recipe:
    """Captions alone answer no question, so that the first stage is not judged by answers."""
    key = ("conversation scenes", data.scenes, size)
    built_in = shared.once(key, lambda: prepare_conversations(data.scenes, size, shared.say))
    return _with(recipe, built_in if data.style == "vicuna" else replace(built_in, sets=()))


def _with(recipe: Recipe, built_in: BuiltInScenes) -> Recipe:
    """The recipe with the built-in training data and, unless it names sets of its own, evaluation sets."""
    split, wanted = [split_name(one) for one in built_in.sets], recipe.evaluation.built_in
    names = [name or folder.rpartition("/")[2] for name, folder in split]
    for name in wanted:
        if name not in names:
            raise CornerstoneError(
                f"{name!r} is none of the built-in sets of {recipe.data.kind}{did_you_mean(name, names)} "
                f"(--recipe.evaluation.built-in)"
            )
    sets = tuple(one for name, one in zip(names, built_in.sets, strict=True) if not wanted or name in wanted)
    return recipe.with_data(train=built_in.train).with_evaluation(sets=recipe.evaluation.sets or sets)


def _with_classes(recipe: Recipe) -> Recipe:
    """A classifier's head has as many outputs as its training data has classes."""
    if not isinstance(recipe.data, LabelledData):
        return recipe
    return recipe.with_method(classes=len(DataSet.open(recipe.data.train, "pairs").manifest.classes))


def _with_document_pairs(recipe: Recipe, documents: SceneDocuments, size: int, shared: Shared) -> Recipe:
    built_in = shared.once(
        ("scene document pairs", documents, size), lambda: prepare_document_pairs(documents, size, shared.say)
    )
    return _with(recipe, built_in)
