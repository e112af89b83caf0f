"""The recipe of a transfer: a task on an image tower, the tower frozen or trained too (LCL, appendix A.2 and Table 8).

With data of the user's own the steps, batches and rates are the paper's. Without, each task has built-in scenes of its own
and a schedule of a minute on two cores.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, get_args

from cornerstone.recipes.caption_transfer import CaptionTransferConfig
from cornerstone.recipes.classifier import ClassifierConfig
from cornerstone.recipes.conversations import ConversationData
from cornerstone.recipes.dialogue_transfer import DialogueTransferConfig
from cornerstone.recipes.labelled import LabelledData
from cornerstone.recipes.language import CausalText
from cornerstone.recipes.pairs import PairData, Scenes
from cornerstone.recipes.recipe import Evaluation, Optimization, Recipe
from cornerstone.recipes.retrieval_transfer import RetrievalTransferConfig
from cornerstone.recipes.towers import BertText, ImageTower

TransferTask = Literal["classification", "retrieval", "caption", "dialogue"]
TRANSFER_TASKS: tuple[TransferTask, ...] = get_args(TransferTask)
_INSTRUCTED_RATE = 2e-5
"""Of a pretrained language model in the second stage."""
_SCENES_LIMIT = 32
"""Tokens of a raw caption of scenes, which has about a dozen words."""


@dataclass(frozen=True)
class TaskData:
    """Data and schedule of one task. 0 and "" stand for the task's usual value."""

    train: str = ""
    """Folder of the task's training split: labelled images, or pairs; empty for the built-in scenes."""
    eval: tuple[str, ...] = ()
    """Its test sets, `[NAME=]DIR`; a set with the name of one of the paper's stands beside the paper's numbers."""
    tokenizer: str = ""
    """Of pairs: by name or folder."""
    steps: int = 0
    """Optimizer steps; the warmup follows in proportion."""
    batch_size: int = 0
    """Rows of a step, over all workers."""
    learning_rate: float = 0.0
    """Of the new parts, the same for every tower."""


@dataclass(frozen=True)
class DialogueData(TaskData):
    """Data and schedule of the transfer to dialogue; those of the base are the second stage's."""

    alignment: str = ""
    """Folder of the first stage's pairs, or conversations; empty for the first answers of the second one's."""
    alignment_steps: int = 0
    alignment_batch_size: int = 0
    alignment_learning_rate: float = 0.0
    language_model: str = ""
    """A pretrained causal language model by its Hugging Face name or folder; empty for a new one."""


class Stage(NamedTuple):
    """One run of a transfer. Each stage but the first one begins with the model of the one before."""

    name: str
    recipe: Callable[[ImageTower, bool, TaskData, str], Recipe]
    """From the tower, whether it is frozen, the task's data, and the folder of the model of the stage before (or "")."""


def stages(task: TransferTask) -> tuple[Stage, ...]:
    """The runs of a transfer in their order: one, and of dialogue two."""
    if task in _STAGES:
        return _STAGES[task]
    return (Stage(task, lambda tower, frozen, data, before: transfer_recipe(task, tower, frozen, data)),)


def transfer_recipe(task: TransferTask, tower: ImageTower, frozen: bool, data: TaskData | None = None) -> Recipe:
    """A task on `tower`, which names weights or an architecture from scratch; its pooling is not used.

    Of several stages it is the last one, with nothing learnt before.
    """
    data, tower = data or TaskData(), replace(tower, pooling="none", projection=0)
    recipe = scenes_recipe(task, tower, frozen)
    if data.train:
        recipe = paper_recipe(task, tower, frozen).with_data(train=data.train)
    if data.tokenizer:
        recipe = recipe.with_data(tokenizer=data.tokenizer)
    if data.eval:
        recipe = recipe.with_evaluation(sets=data.eval)
    if data.batch_size:
        recipe = recipe.with_optimization(batch_size=data.batch_size)
    if data.learning_rate:
        recipe = recipe.with_optimization(learning_rate=data.learning_rate)
    if isinstance(data, DialogueData) and data.language_model:
        recipe = recipe.with_method(language_model=data.language_model)
        recipe = recipe if data.tokenizer else recipe.with_data(tokenizer=data.language_model)
        recipe = recipe if data.learning_rate else recipe.with_optimization(learning_rate=_INSTRUCTED_RATE)
    return recipe.with_steps(data.steps) if data.steps else recipe


def paper_recipe(task: TransferTask, tower: ImageTower, frozen: bool = True) -> Recipe:
    """A task with the paper's schedule, on data that are yet to be named."""
    return replace(_MADE[task](replace(tower, locked=frozen), False), precision="bf16")


def scenes_recipe(task: TransferTask, tower: ImageTower, frozen: bool = True) -> Recipe:
    """A task on built-in scenes."""
    return _MADE[task](replace(tower, locked=frozen), True)


def from_run(model: str, tower: ImageTower) -> ImageTower:
    """The image tower of a run's folder `model`, which was trained as `tower`."""
    return ImageTower(model, size=tower.size, pooling="none")


def from_scratch_like(tower: ImageTower) -> ImageTower:
    """The same architecture with random weights; `tower` names a timm model, no folder."""
    return replace(tower, pretrained=False, pooling="none", projection=0, drop_path=0.0)


def _classification(tower: ImageTower, scenes: bool) -> Recipe:
    return Recipe(
        name="transfer-classification",
        method=ClassifierConfig(frozen=tower.locked, image=replace(tower, locked=True)),  # `frozen` decides
        data=LabelledData(),
        optimization=_schedule(400, 64, 1e-3) if scenes else _schedule(14_000, 8_192, 1e-4, warmup=1_500),
    )


def _retrieval(tower: ImageTower, scenes: bool) -> Recipe:
    text = BertText("", token_limit=77)
    if scenes:
        text = BertText("", width=128, layers=2, heads=4, token_limit=_SCENES_LIMIT)
    recipe = Recipe(
        name="transfer-retrieval",
        # A tower from scratch has nothing to lose by the rate of the new parts.
        method=RetrievalTransferConfig(tower, text, tower_lr_factor=0.01 if tower.pretrained or tower.locked else 1.0),
        data=PairData(sub_captions=0) if not scenes else _scenes_pairs(),
        optimization=_schedule(1_000, 64, 5e-4) if scenes else _schedule(5_000, 16_384, 1e-3, warmup=500),
        evaluation=Evaluation(built_in=("short",)),
    )
    return recipe if scenes else recipe.with_data(tokenizer="bert-base-uncased")


def _caption(tower: ImageTower, scenes: bool) -> Recipe:
    language, limit = CausalText(), 77
    if scenes:
        language, limit = CausalText(width=128, layers=2, heads=4, positions=256), _SCENES_LIMIT
    method = CaptionTransferConfig(language, tower.locked, image=replace(tower, locked=True), token_limit=limit)
    recipe = Recipe(
        name="transfer-caption",
        method=method,
        data=PairData(sub_captions=0) if not scenes else _scenes_pairs(),
        optimization=_schedule(400, 64, 1e-3) if scenes else _schedule(20_000, 512, 1e-4, warmup=1_000),
        evaluation=Evaluation(built_in=("short",)),
    )
    return recipe if scenes else recipe.with_data(tokenizer="facebook/opt-125m")


def _dialogue(tower: ImageTower, scenes: bool) -> Recipe:
    """The second stage of LLaVA-1.5. A new language model learns at the rate of the new parts: 2e-5 would not change it."""
    language, limit = CausalText(), 1_792
    if scenes:
        language, limit = CausalText(width=128, layers=2, heads=4, positions=256), 192
    method = DialogueTransferConfig(
        frozen=tower.locked,
        tower_lr_factor=0.1 if tower.pretrained or tower.locked else 1.0,
        image=replace(tower, locked=True),
        language=language,
        token_limit=limit,
    )
    return Recipe(
        name="transfer-dialogue",
        method=method,
        data=ConversationData(),
        optimization=_schedule(400, 32, 1e-3) if scenes else _schedule(5_198, 128, 1e-3, warmup=156),
    )


def _aligned(tower: ImageTower, frozen: bool, data: TaskData, before: str) -> Recipe:
    """The first stage: the projector alone learns captions, and the tower is frozen in every mode."""
    given = data if isinstance(data, DialogueData) else DialogueData(**vars(data))
    own = replace(given, eval=(), train=given.alignment or given.train, steps=0, batch_size=0, learning_rate=0.0)
    recipe = transfer_recipe("dialogue", tower, True, own)
    usual = _schedule(100, 32, 1e-3, warmup=10) if not own.train else _schedule(1_091, 512, 1e-3, warmup=30)
    recipe = replace(recipe, name="transfer-dialogue-alignment", optimization=usual)
    recipe = recipe.with_method(stage="projector").with_data(style="plain")
    if given.alignment_batch_size:
        recipe = recipe.with_optimization(batch_size=given.alignment_batch_size)
    if given.alignment_learning_rate:
        recipe = recipe.with_optimization(learning_rate=given.alignment_learning_rate)
    return recipe.with_steps(given.alignment_steps) if given.alignment_steps else recipe


def _instructed(tower: ImageTower, frozen: bool, data: TaskData, before: str) -> Recipe:
    """The second stage, on the tower and with the projector of the first one's model."""
    recipe = transfer_recipe("dialogue", from_run(before, tower), frozen, data).with_method(projector=before)
    scratch = not (frozen or tower.pretrained)
    return recipe.with_method(tower_lr_factor=1.0) if scratch else recipe


def _scenes_pairs() -> PairData:
    return PairData(
        sub_captions=0, crop_scale=(1.0, 1.0), scenes=Scenes(pairs=8_000, evaluation_images=500, short=True)
    )


def _schedule(steps: int, batch_size: int, learning_rate: float, warmup: int = 40) -> Optimization:
    return Optimization(steps, batch_size, learning_rate, warmup, weight_decay=1e-4, betas=(0.9, 0.999), eps=1e-8)


_MADE: dict[TransferTask, Callable[[ImageTower, bool], Recipe]] = {
    "classification": _classification,
    "retrieval": _retrieval,
    "caption": _caption,
    "dialogue": _dialogue,
}
_STAGES: dict[TransferTask, tuple[Stage, ...]] = {
    "dialogue": (Stage("dialogue, first stage", _aligned), Stage("dialogue", _instructed)),
}
