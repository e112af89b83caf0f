"""Prepares the built-in scenes: shards, tokenizer, evaluation sets and a pretrained image tower, each created once and kept."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from cornerstone.data.manifest import FILE as MANIFEST
from cornerstone.data.scenes.sets import EVALUATION_SETS
from cornerstone.data.scenes.tokenizer import texts_of, train_wordpiece
from cornerstone.data.scenes.write import write_evaluation_sets, write_scenes
from cornerstone.data.shards import DataSet
from cornerstone.data.texts import FILE as TOKENIZER
from cornerstone.hashing import digest
from cornerstone.recipes.pairs import Scenes
from cornerstone.runtime.home import home

Say = Callable[[str], None]
TOWER = ("config.json", "model.safetensors")


@dataclass(frozen=True)
class BuiltInScenes:
    """Paths of the parts of the built-in data set."""

    train: str
    sets: tuple[str, ...]
    tower: str


def prepare_scenes(scenes: Scenes, image_size: int, say: Say) -> BuiltInScenes:
    """Create the parts that are missing, one after another; existing ones are reused."""
    root = home().join("scenes")
    world = {"seed": scenes.seed, "image_size": image_size}
    train = root.join(f"train-{digest({'pairs': scenes.pairs, **world})}")
    if not train.join(MANIFEST).exists():
        with timed(say, f"scenes: drawing and captioning {scenes.pairs:,} images of {image_size} px"):
            write_scenes(train, pairs=scenes.pairs, seed=scenes.seed, image_size=image_size)
    if not train.join(TOKENIZER).exists():
        with timed(say, "scenes: training a WordPiece vocabulary on their captions"):
            train.join(TOKENIZER).write_text(train_wordpiece(texts_of(DataSet.open(train))))
    sets = root.join(f"sets-{digest({'images': scenes.evaluation_images, **world})}")
    missing = [name for name in EVALUATION_SETS if not sets.join(name, MANIFEST).exists()]
    if missing:
        with timed(
            say, f"scenes: writing evaluation sets of {scenes.evaluation_images:,} images ({', '.join(missing)})"
        ):
            write_evaluation_sets(
                sets, images=scenes.evaluation_images, seed=scenes.seed, image_size=image_size, sets=missing
            )
    return BuiltInScenes(
        train.uri, tuple(sets.join(name).uri for name in EVALUATION_SETS), scenes_tower(scenes, image_size, say)
    )


def scenes_tower(scenes: Scenes, image_size: int, say: Say) -> str:
    """The folder of the scenes' image tower, in timm's layout; pretrains it, on images of its own, if it does not exist."""
    from cornerstone.jobs.scenes_tower import pretrain_tower

    kept = home().join(
        "scenes", f"tower-{digest({**asdict(scenes), 'pairs': 0, 'evaluation_images': 0, 'size': image_size})}"
    )
    if not kept.join(TOWER[0]).exists():
        what = f"scenes: pretraining the image tower on {scenes.tower_images:,} images of its own"
        with timed(say, what), tempfile.TemporaryDirectory() as folder:
            pretrain_tower(Path(folder), seed=scenes.seed, image_size=image_size, images=scenes.tower_images)
            for name in reversed(TOWER):  # config.json last: a folder without it counts as unfinished
                kept.join(name).write_bytes((Path(folder) / name).read_bytes())
    return kept.uri


class timed:
    """Context manager that prints what is being done, and how long it took."""

    def __init__(self, say: Say, what: str) -> None:
        self.say, self.what = say, what

    def __enter__(self) -> None:
        self.say(f"{self.what} ...")
        self.start = time.monotonic()

    def __exit__(self, *error: object) -> None:
        if error[0] is None:
            self.say(f"  done in {time.monotonic() - self.start:.0f} s")
