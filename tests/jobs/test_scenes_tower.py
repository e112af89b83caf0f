from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
import torch

import cornerstone.models  # noqa: F401 - mends torchvision before timm is imported
from cornerstone.data.scenes.draw import paint
from cornerstone.data.scenes.world import Scene, Thing
from cornerstone.errors import CornerstoneError
from cornerstone.jobs import scenes_tower
from cornerstone.jobs.scenes_tower import TowerTraining, content_of, pixels, pretrain_tower

TINY = {"width": 64, "heads": 4, "depth": 1, "images": 96, "epochs": 1, "held_out": 60}


def weights(folder) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def test_a_short_pretraining_is_above_chance_on_all_that_a_picture_shows(tmp_path):
    told = []
    plan = {"depth": 2, "images": 3840, "epochs": 2, "held_out": 500, "min_objects": 6, "max_objects": 9}
    found = pretrain_tower(tmp_path, progress=lambda done, total: told.append((done, total)), **plan)
    assert told[0] == (1, 240)
    assert told[-1] == (240, 240)
    assert found["background"] > 0.9  # chance 1/6
    assert found["salient"] > 5 / 96
    assert found["colour"] > 3 / 8  # of objects that are not salient
    assert found["shape"] > 1.5 / 12
    assert found["empty"] > 0.9


def test_the_folder_opens_with_timm_and_gives_the_trained_features(tmp_path, monkeypatch):
    import timm

    kept = []
    save = scenes_tower._save

    def keep(tower, folder, plan):
        kept.append(tower)
        save(tower, folder, plan)

    monkeypatch.setattr(scenes_tower, "_save", keep)
    pretrain_tower(tmp_path / "tower", **TINY)
    loaded = timm.create_model(f"local-dir:{tmp_path / 'tower'}", pretrained=True, num_classes=0).eval()
    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        feature_BD = loaded(images)
        torch.testing.assert_close(feature_BD, kept[0].eval()(images), rtol=0, atol=0)
        torch.testing.assert_close(feature_BD, loaded.forward_features(images)[:, 0], rtol=0, atol=0)  # the class token
    assert feature_BD.shape == (3, 64)
    described = json.loads((tmp_path / "tower" / "config.json").read_text())["pretrained_cfg"]
    assert (described["mean"], described["std"], described["input_size"]) == ([0.5] * 3, [0.5] * 3, [3, 64, 64])


def test_the_same_plan_gives_the_same_tower_and_leaves_torch_as_it_was(tmp_path):
    found, threads = [], torch.get_num_threads()
    try:
        for name, others in (("a", 1), ("b", 2)):
            torch.manual_seed(others)
            torch.set_num_threads(others)
            before = torch.get_rng_state()
            found.append(pretrain_tower(tmp_path / name, **TINY))
            assert torch.equal(torch.get_rng_state(), before)
            assert torch.get_num_threads() == others
    finally:
        torch.set_num_threads(threads)
    assert found[0] == found[1]
    assert weights(tmp_path / "a") == weights(tmp_path / "b")
    pretrain_tower(tmp_path / "c", **TINY, seed=1)
    assert weights(tmp_path / "c") != weights(tmp_path / "a")


@pytest.mark.parametrize("plan", [{"image_size": 32, "patch": 8}, {"image_size": 100, "cells": 4, "max_objects": 10}])
def test_other_sizes(tmp_path, plan):
    import timm

    pretrain_tower(tmp_path, **TINY | plan)
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=0)
    assert loaded(torch.zeros(1, 3, plan["image_size"], plan["image_size"])).shape == (1, 64)


def test_targets_are_what_the_scene_holds():
    scene = Scene(3, 4, (Thing(13, 8), Thing(95, 0)))
    content = content_of([scene])
    assert content.colour_BC.tolist() == [[7, 8, 8, 8, 8, 8, 8, 8, 1]]
    assert content.shape_BC.tolist() == [[11, 12, 12, 12, 12, 12, 12, 12, 1]]
    assert content.small_BC.tolist() == [[True] + [False] * 8]
    assert (content.background_B.tolist(), content.salient_B.tolist()) == ([4], [13])


def test_pixels_are_normalised_with_a_half():
    picture = paint(Scene(3, 4, (Thing(13, 8), Thing(95, 0))), 64)
    expected = (picture.astype(np.float64).transpose(2, 0, 1) / 255 - 0.5) / 0.5
    np.testing.assert_allclose(pixels([picture])[0].numpy(), expected, atol=1e-6)


def test_the_towers_pictures_are_of_its_own_and_held_out_ones_too():
    settings = TowerTraining()
    train, held_out = (settings.scenes(stream, np.arange(200)) for stream in ("train", "held-out"))
    assert len({repr(scene) for scene in train + held_out}) == 400


@pytest.mark.parametrize("wrong", [{"heads": 7}, {"patch": 65}, {"images": 0}, {"cells": 6}])
def test_an_impossible_plan_is_refused(tmp_path, wrong):
    with pytest.raises(CornerstoneError):
        pretrain_tower(tmp_path, **wrong)
