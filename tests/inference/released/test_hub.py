"""`hf:NAME` of repositories in other layouts than transformers', from the hub's cache, and `hf:FOLDER`."""

from __future__ import annotations

import shutil
from pathlib import Path
from unittest.mock import MagicMock

import pytest
import tiny_released
import torch

import cornerstone
from cornerstone.cli import main
from cornerstone.errors import CornerstoneError
from cornerstone.inference.saved_model import save_model
from cornerstone.models.image_tower import build_image_tower
from cornerstone.models.method import Inputs
from cornerstone.models.siglip import Siglip
from cornerstone.recipes.siglip import SiglipConfig
from cornerstone.recipes.towers import BertText, ImageTower
from cornerstone.runtime.tokenizer import load_tokenizer

TEXTS = ["a red bus. the sky is blue.", "the tree"]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of a hub that does not answer; it takes a folder as the repository of a name."""
    for module in ("hugging_face", "hub"):
        monkeypatch.setattr(f"cornerstone.inference.released.{module}.hub_answers", lambda: False)
    kept = tmp_path / "cache"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(kept))

    def put(folder: str, name: str) -> str:
        repository = kept / f"models--{name.replace('/', '--')}"
        shutil.copytree(folder, repository / "snapshots" / ("0" * 40))
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text("0" * 40)
        return f"hf:{name}"

    return put


def saved(folder: Path, tiny_tower: str) -> str:
    """A model of a method that transformers does not have, as a run leaves it."""
    config = SiglipConfig(
        image=ImageTower(tiny_tower, size=32), text=BertText("", width=16, layers=1, heads=2, token_limit=24)
    )
    tower = build_image_tower(config.image)
    model = Siglip.build(config, Inputs(30522, tower.width, tower), seed=0)
    save_model(str(folder), model, recipe={}, tokenizer_json=load_tokenizer("bert-base-uncased"), image_tower=tower)
    return str(folder)


@pytest.mark.parametrize("layout", ["transformers", "open_clip", "saved", "exported"])
def test_a_name_opens_as_its_folder_does(layout, cache, tmp_path, tiny_tower):
    if layout == "transformers":
        folder = tiny_released.clip(tmp_path / "model")
    elif layout == "open_clip":
        folder = tiny_released.open_clip_folder(tmp_path / "model", {})
    else:
        folder = saved(tmp_path / "model", tiny_tower)
        if layout == "exported":
            main(["export", folder, "--out", str(tmp_path / "out")])
            folder = str(tmp_path / "out")
    expected = cornerstone.load(folder)
    images = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    for name in (f"hf:{folder}", cache(folder, "somebody/a-model")):
        model = cornerstone.load(name)
        torch.testing.assert_close(model.encode_text(TEXTS), expected.encode_text(TEXTS), rtol=0, atol=0)
        torch.testing.assert_close(model.encode_image(images), expected.encode_image(images), rtol=0, atol=0)


def test_what_is_not_in_the_cache(cache, tmp_path):
    with pytest.raises(CornerstoneError, match="hub does not answer, and 'somebody/another' is not in its cache"):
        cornerstone.load("hf:somebody/another")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CornerstoneError, match=r"No model at .*empty"):
        cornerstone.load(f"hf:{tmp_path / 'empty'}")


def test_a_name_that_the_hub_refuses_is_an_error_with_the_nearest_name(cache, monkeypatch):
    from huggingface_hub.errors import RepositoryNotFoundError

    for module in ("hugging_face", "hub"):
        monkeypatch.setattr(f"cornerstone.inference.released.{module}.hub_answers", lambda: True)

    def unknown(*given, **options):
        raise RepositoryNotFoundError("404 Client Error", response=MagicMock())

    monkeypatch.setattr("transformers.utils.hub.hf_hub_download", unknown)
    known = "openai/clip-vit-base-patch32"
    with pytest.raises(CornerstoneError, match=rf"^Cannot open hf:openai/clip-vit-base-patch31: .*mean '{known}'"):
        cornerstone.load("hf:openai/clip-vit-base-patch31")


@pytest.mark.parametrize("name", ["./missing/folder", "some body/x", "a/b/c"])
def test_what_is_no_name_of_the_hub_is_an_error(name, cache):
    with pytest.raises(CornerstoneError, match=r"'.*' is not in its cache|^Cannot open hf:"):
        cornerstone.load(f"hf:{name}")
