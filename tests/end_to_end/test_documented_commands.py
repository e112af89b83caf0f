"""Every command of an experiment that its docstring, the README or a job file names, with --dry-run.

It is parsed, defined, prepared and takes one step.

Towers, data and steps become as small as they can be after the experiment has defined its points, so that what is documented
is what is parsed. Folders that a user would have become small ones of the same kind. Neither Ray nor the network is used.
"""

from __future__ import annotations

import re
import runpy
from dataclasses import fields, replace
from functools import partial
from typing import Any

import pytest

from cornerstone.data.documents import PackingConfig
from cornerstone.data.parallel import map_here
from cornerstone.data.records import Caption
from cornerstone.data.scenes.tokenizer import texts_of, train_wordpiece
from cornerstone.data.scenes.write import write_documents
from cornerstone.data.shards import DataSet
from cornerstone.jobs import built_in_scenes
from cornerstone.jobs.packing import write_packing
from cornerstone.recipes import DocumentData, DocumentPairs, LabelledData, PairData, Recipe, preset
from cornerstone.recipes.conversations import ConversationData
from cornerstone.sweeps import Sweep
from cornerstone.training import dry_run as dry_run_module
from cornerstone.training.prepare import Preparer

from .conftest import REPOSITORY, documents, jobs

SIZE, PATCH = 64, 16
SOURCES = ("longIB", "longLLA", "longSV")
"""The captioners of DreamLIP."""
ELSEWHERE = re.compile(r"s3://bucket/[\w./-]+|\bdata/(?:train|val)\b|runs/RUN/model|timm:[\w.]+")
"""What a user has, and a test has not."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory, small_data, wordpiece, tiny_tower, smoke_scenes):
    """Small pairs with rewrites, labels and DreamLIP's captioners; a packing of scenes' documents; a tower."""
    place = tmp_path_factory.mktemp("bucket")
    captions = (
        Caption("web", "raw", "a raw caption"),
        Caption("model", "rewrite", "another raw caption"),
        *(Caption(by, "long", f"{by} one. {by} two. {by} three. {by} four.") for by in SOURCES),
    )
    pairs = small_data.write(
        place / "pairs",
        (small_data.pair(i, captions=captions) for i in range(50)),
        classes=("cat", "dog", "bus", "sky"),
    )
    (place / "pairs" / "tokenizer.json").write_text(wordpiece.read_text())
    write_documents(place / "documents", documents=60, set="documents", workers=1)
    tokenizer = train_wordpiece(texts_of(DataSet.open(str(place / "documents"))), 300)
    packing = PackingConfig(token_budget=256, image_tokens=(SIZE // PATCH) ** 2)
    write_packing(place / "documents", place / "packed", tokenizer, packing, mapped=map_here)
    return {"pairs": pairs, "packed": str(place / "packed"), "tower": tiny_tower}


def small(recipe: Recipe, folders: dict[str, str]) -> Recipe:
    """The recipe with the smallest towers and data that it can have; all else as the command says."""
    own, data = bool(recipe.data.train), recipe.data
    rows = 8 if isinstance(data, DocumentData) else 32
    recipe = replace(recipe.with_optimization(steps=2, warmup_steps=0, batch_size=rows), precision="fp32")
    recipe = recipe.with_data(tokenizer="") if own else replace(recipe, data=small_scenes(data))
    image, text = recipe.method.image_tower, recipe.method.text_tower
    if image is not None and image.name:
        if own and image.pretrained and not isinstance(data, DocumentData):
            recipe = recipe.with_image(name=folders["tower"], size=32)
        elif image.name != folders["tower"]:
            sizes = {"width": 32, "layers": 1, "heads": 2, "patch": PATCH, "size": SIZE}
            recipe = recipe.with_image(name="vit_tiny_patch16_224", pretrained=False, **sizes)
    if text is not None:
        recipe = recipe.with_text(name="", width=16, layers=1, heads=2)
    small_parts: dict[str, Any] = {"tokens": (SIZE // PATCH) ** 2, "min_block": 2, "pooling_heads": 2}
    recipe = recipe.with_method(**{f.name: small_parts[f.name] for f in fields(recipe.method) if f.name in small_parts})
    if (language := getattr(recipe.method, "language", None)) is not None:
        recipe = recipe.with_method(language=replace(language, width=32, layers=1, heads=2))
    return recipe.with_data(image_size=SIZE) if isinstance(data, DocumentData) else recipe


def small_scenes(data: Any) -> Any:
    """The built-in data in the sizes of `smoke`, which the session makes once, or as small."""
    smoke = preset("smoke").data.scenes
    few = {"pairs": smoke.pairs, "evaluation_images": smoke.evaluation_images, "tower_images": smoke.tower_images}
    if isinstance(data, DocumentPairs):
        return replace(data, documents=replace(data.documents, documents=60, validation=40, probe_images=40))
    if isinstance(data, DocumentData):
        return replace(data, scenes=replace(data.scenes, documents=60, validation=40, probe_images=40))
    if isinstance(data, LabelledData):
        return replace(data, scenes=replace(data.scenes, images=40, test_images=20))
    if isinstance(data, ConversationData):
        return replace(data, scenes=replace(data.scenes, conversations=60, test=20))
    assert isinstance(data, PairData)
    limit = data.limit_rows and min(data.limit_rows, smoke.pairs)
    return replace(data, scenes=replace(data.scenes, **few), limit_rows=limit)


def here(argument: str, folders: dict[str, str]) -> str:
    """An argument with its folder of elsewhere in place."""

    def found(named: re.Match[str]) -> str:
        kind = "packed" if "packed" in named[0] else "tower" if re.match(r"timm:|runs/|.*model$", named[0]) else "pairs"
        return folders[kind]

    return ELSEWHERE.sub(found, argument)


@pytest.fixture
def dry(folders, monkeypatch):
    """Run a command with --dry-run in this process; returns the points that it would run, and leaves them prepared."""
    points = []
    only, dry_run = Sweep.only, dry_run_module.dry_run

    def chosen(sweep, names):
        points[:] = only(sweep, names)
        return points

    def smaller(recipe, placement, **given):
        return dry_run(small(recipe, folders), replace(placement, threads_per_worker=1), **given)

    for name in ("write_documents", "write_evaluation_sets"):  # few rows: a process that writes them starts for longer
        monkeypatch.setattr(built_in_scenes, name, partial(getattr(built_in_scenes, name), workers=1))
    monkeypatch.setattr(Sweep, "only", chosen)
    monkeypatch.setattr(dry_run_module, "dry_run", smaller)
    monkeypatch.setattr(dry_run_module, "TIMED_STEPS", 1)

    def run(file, arguments):
        argv = [str(REPOSITORY / "experiments" / file), *(here(one, folders) for one in arguments), "--dry-run"]
        monkeypatch.setattr("sys.argv", argv)
        runpy.run_path(argv[0], run_name="__main__")
        return points

    return run


@pytest.fixture(scope="module")
def preparer():
    """One for all commands: what they share is opened once."""
    return Preparer(lambda text: None, compute_features=False)


@pytest.mark.parametrize("command", [command for _, command in (*documents(), *jobs())], ids=" ".join)
def test_the_documented_command_can_run(command, dry, preparer, folders, capsys):
    file, *arguments = command
    points = dry(file, arguments)
    said = capsys.readouterr().out
    assert "nothing was started and nothing recorded" in said
    assert f"MLflow experiment {file.removesuffix('.py')} at" in said
    for point in points:
        for recipe in (point.recipe, *(candidate.recipe for candidate in point.candidates)):
            prepared = preparer.prepare(small(recipe, folders))
            assert prepared.rows > 0
            captions_alone = isinstance(recipe.data, ConversationData) and recipe.data.style == "plain"
            judged = recipe.evaluation.sets or not (recipe.data.train or captions_alone)
            assert bool(prepared.sets) == bool(judged)
