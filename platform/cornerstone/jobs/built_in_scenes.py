"""Prepares the built-in scenes for training: shards, tokenizer, evaluation sets and pretrained tower, written once and kept."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from pathlib import Path
from typing import Any

from cornerstone.data.conversations.chat import SYSTEM
from cornerstone.data.derive import MIN_SIMILARITY, derive
from cornerstone.data.documents import PackingConfig, PackingKeys
from cornerstone.data.documents.config import Rule
from cornerstone.data.manifest import FILE as MANIFEST
from cornerstone.data.mixture import write_mixture
from cornerstone.data.parallel import map_here
from cornerstone.data.scenes.sets import EVALUATION_SETS, ON_DEMAND
from cornerstone.data.scenes.tokenizer import texts_of, train_wordpiece
from cornerstone.data.scenes.write import write_conversations, write_documents, write_evaluation_sets, write_scenes
from cornerstone.data.shards import DataSet
from cornerstone.data.storage import Location
from cornerstone.data.texts import FILE as TOKENIZER
from cornerstone.hashing import digest
from cornerstone.jobs.packing import write_packing
from cornerstone.recipes.conversations import SceneConversations
from cornerstone.recipes.documents import SceneDocuments
from cornerstone.recipes.labelled import LabelledScenes
from cornerstone.recipes.pairs import Scenes
from cornerstone.runtime.home import home

Say = Callable[[str], None]
TOWER = ("config.json", "model.safetensors")


@dataclass(frozen=True)
class BuiltInScenes:
    """Folders of the built-in scenes: training pairs, evaluation sets and image tower ("": none was asked for)."""

    train: str
    sets: tuple[str, ...]
    tower: str


def prepare_scenes(
    scenes: Scenes, image_size: int, say: Say, *, tower: bool = True, named: Sequence[str] = ()
) -> BuiltInScenes:
    """Write the parts that are missing, one after another, the pretrained tower if it is asked for. Parts are reused.

    The evaluation sets are the usual ones, and of those on demand the `named` ones.
    """
    root = home().join("scenes")
    world: dict[str, Any] = {"seed": scenes.seed, "image_size": image_size, **scenes.world}
    texts: dict[str, Any] = {name: True for name in ("rewrites", "short") if getattr(scenes, name)}
    train = root.join(f"train-{digest({'pairs': scenes.pairs, **world, **texts})}")
    if not train.join(MANIFEST).exists():
        with timed(say, f"scenes: drawing and captioning {scenes.pairs:,} images of {image_size} px"):
            write_scenes(train, pairs=scenes.pairs, **world, **texts)
    if not train.join(TOKENIZER).exists():
        with timed(say, "scenes: training a WordPiece vocabulary on their captions"):
            train.join(TOKENIZER).write_text(train_wordpiece(texts_of(DataSet.open(train))))
    sets = root.join(f"sets-{digest({'images': scenes.evaluation_images, **world})}")
    wanted = (*EVALUATION_SETS, *(name for name in ON_DEMAND if name in named))
    missing = [name for name in wanted if not sets.join(name, MANIFEST).exists()]
    if missing:
        with timed(
            say, f"scenes: writing evaluation sets of {scenes.evaluation_images:,} images each ({', '.join(missing)})"
        ):
            write_evaluation_sets(sets, images=scenes.evaluation_images, sets=missing, **world)
    pretrained = scenes_tower(scenes, image_size, say) if tower else ""
    return BuiltInScenes(train.uri, tuple(sets.join(name).uri for name in wanted), pretrained)


def prepare_labelled(scenes: LabelledScenes, image_size: int, say: Say) -> BuiltInScenes:
    """Write the labelled images to train and to test a classifier on, if they are missing. They have no image tower."""
    world: dict[str, Any] = {"seed": scenes.seed, "image_size": image_size}
    world |= {"cells": scenes.cells} if scenes.cells != 3 else {}
    world |= {"images": scenes.images, "class_images": scenes.test_images}
    folder = home().join("scenes", f"labelled-{digest(world)}")
    if missing := [name for name in ("labelled", "class") if not folder.join(name, MANIFEST).exists()]:
        with timed(say, f"scenes: writing {scenes.images:,} labelled images, and {scenes.test_images:,} to test on"):
            write_evaluation_sets(folder, sets=missing, **world)
    return BuiltInScenes(folder.join("labelled").uri, (folder.join("class").uri,), "")


def prepare_conversations(scenes: SceneConversations, image_size: int, say: Say) -> BuiltInScenes:
    """Write the conversations that are missing, to learn from and to ask. They have no image tower."""
    world: dict[str, Any] = {"seed": scenes.seed, "image_size": image_size}
    world |= {"cells": scenes.cells} if scenes.cells != 3 else {}
    numbers = {"conversations": scenes.conversations, "conversations-validation": scenes.test}
    found = {}
    for name, rows in numbers.items():
        found[name] = folder = home().join("scenes", f"{name}-{digest({'conversations': rows, **world})}")
        if not folder.join(MANIFEST).exists():
            with timed(say, f"scenes: writing {rows:,} {name} with images of {image_size} px"):
                write_conversations(folder, conversations=rows, set=name, **world)
    train = found["conversations"]
    if not train.join(TOKENIZER).exists():
        around = repeat(f"{SYSTEM} USER: ASSISTANT:", scenes.conversations)
        with timed(say, "scenes: training a WordPiece vocabulary on the conversations"):
            train.join(TOKENIZER).write_text(train_wordpiece(chain(texts_of(DataSet.open(train)), around)))
    return BuiltInScenes(train.uri, (f"conversations={found['conversations-validation'].uri}",), "")


def prepare_documents(scenes: SceneDocuments, image_size: int, say: Say) -> BuiltInScenes:
    """Write and pack the documents that are missing, without Ray. Existing parts are reused. They have no image tower."""
    train, validation, probe = _document_sets(scenes, image_size, say)
    tokenizer = train.join(TOKENIZER).read_text()
    packed = _training(train, tokenizer, scenes), _packed(validation, tokenizer, scenes)
    return BuiltInScenes(packed[0], (f"documents={packed[1]}", probe.uri), "")


def prepare_document_pairs(scenes: SceneDocuments, image_size: int, say: Say) -> BuiltInScenes:
    """The same documents as pairs of an image and its matched sentence, with the same tokenizer and the same probe."""
    train, validation, probe = _document_sets(scenes, image_size, say)
    pairs = [_matched(folder) for folder in (train, validation)]
    if not pairs[0].join(TOKENIZER).exists():
        pairs[0].join(TOKENIZER).write_text(train.join(TOKENIZER).read_text())
    return BuiltInScenes(pairs[0].uri, (f"validation={pairs[1].uri}", probe.uri), "")


def _document_sets(scenes: SceneDocuments, image_size: int, say: Say) -> tuple[Location, Location, Location]:
    """Folders of the training documents, with a tokenizer, of those for validation, and of labelled images."""
    world: dict[str, Any] = {"seed": scenes.seed, "image_size": image_size}
    world |= {name: getattr(scenes, name) for name in ("redundancy", "context", "mismatch")}
    world |= {"cells": scenes.cells} if scenes.cells != 3 else {}
    train = _documents("documents", scenes.documents, world, say)
    if not train.join(TOKENIZER).exists():
        with timed(say, "scenes: training a WordPiece vocabulary on the documents"):
            train.join(TOKENIZER).write_text(train_wordpiece(texts_of(DataSet.open(train))))
    validation = _documents("documents-validation", scenes.validation, world, say)
    pictures: dict[str, Any] = {"seed": scenes.seed, "image_size": image_size}
    pictures |= {"cells": scenes.cells} if scenes.cells != 3 else {}
    sets = home().join("scenes", f"probe-{digest({'images': scenes.probe_images, **pictures})}")
    probe = sets.join("probe")
    if not probe.join(MANIFEST).exists():
        with timed(say, f"scenes: writing {scenes.probe_images:,} labelled images to probe the tower with"):
            write_evaluation_sets(sets, images=scenes.probe_images, sets=["probe"], **pictures)
    return train, validation, probe


def _training(documents: Location, tokenizer: str, scenes: SceneDocuments) -> str:
    """The packing, or mixture of packings, that is trained on."""
    if scenes.form == "obelics":
        return _packed(documents, tokenizer, scenes, "obelics")
    packed = _packed(documents, tokenizer, scenes)
    if scenes.form == "mmc4":
        return packed
    random = _packed(_placed_at_random(_matched(documents)), tokenizer, scenes, "laion")
    if scenes.form == "laion-random":
        return random
    mixed = home().join("scenes", f"mixture-{digest({'members': [random, packed]})}")
    if not mixed.join(MANIFEST).exists():
        write_mixture(mixed, [(random, "1"), (packed, "1")], name="laion-random + mmc4")
    return mixed.uri


def _documents(name: str, count: int, world: dict[str, Any], say: Say) -> Location:
    folder = home().join("scenes", f"{name}-{digest({'documents': count, **world})}")
    if not folder.join(MANIFEST).exists():
        with timed(say, f"scenes: writing {count:,} {name} with images of {world['image_size']} px"):
            write_documents(folder, documents=count, set=name, **world)
    return folder


def _packed(folder: Location, tokenizer: str, scenes: SceneDocuments, rule: Rule = "mmc4") -> str:
    config = PackingConfig(token_budget=scenes.token_budget, image_tokens=scenes.image_tokens, rule=rule)
    keys = PackingKeys.of(DataSet.open(folder).manifest.content_hash, tokenizer, config)
    place = home().join("scenes", f"packing-{keys.digest()}")
    if not place.join(MANIFEST).exists():
        write_packing(folder, place, tokenizer, config, mapped=map_here)
    return place.uri


def _matched(folder: Location) -> Location:
    """The pairs of some documents: each image that is similar enough to its matched sentence, as packing takes them."""
    place = home().join("scenes", f"pairs-{digest({'parent': DataSet.open(folder).manifest.content_hash})}")
    if not place.join(MANIFEST).exists():
        derive("mmc4-pair", folder, place, min_similarity=MIN_SIMILARITY, mapped=map_here)
    return place


def _placed_at_random(pairs: Location) -> Location:
    """Pairs as documents of one image and one text each (LAION-Random)."""
    place = home().join("scenes", f"random-{digest({'parent': DataSet.open(pairs).manifest.content_hash})}")
    if not place.join(MANIFEST).exists():
        derive("laion-random", pairs, place, name="laion-random", mapped=map_here)
    return place


def scenes_tower(scenes: Scenes, image_size: int, say: Say) -> str:
    """The folder of the image tower in timm's layout. The tower is pretrained once, on images of its own."""
    from cornerstone.jobs.scenes_tower import pretrain_tower

    settings = {"seed": scenes.seed, "tower_images": scenes.tower_images, "size": image_size, **scenes.world}
    kept = home().join("scenes", f"tower-{digest({**settings, 'pairs': 0, 'evaluation_images': 0})}")
    if not kept.join(TOWER[0]).exists():
        what = f"scenes: pretraining the image tower on {scenes.tower_images:,} images of its own"
        with timed(say, what), tempfile.TemporaryDirectory() as folder:
            world: dict[str, Any] = {"seed": scenes.seed, "image_size": image_size, **scenes.world}
            pretrain_tower(Path(folder), images=scenes.tower_images, **world)
            for name in reversed(TOWER):  # config.json last: the tower counts as missing until it exists
                kept.join(name).write_bytes((Path(folder) / name).read_bytes())
    return kept.uri


class timed:
    """Context manager that announces a step and then reports how long it took."""

    def __init__(self, say: Say, what: str) -> None:
        self.say, self.what = say, what

    def __enter__(self) -> None:
        self.say(f"{self.what} ...")
        self.start = time.monotonic()

    def __exit__(self, *error: object) -> None:
        if error[0] is None:
            self.say(f"  done in {time.monotonic() - self.start:.0f} s")
