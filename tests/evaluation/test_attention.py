"""Attention maps: patches in the space of texts, boxes and energy, and the task on the built-in scenes."""

from __future__ import annotations

import json

import numpy as np
import open_clip
import pytest
import tiny_released
import torch
from scene_rows import scene_of
from torch.nn.functional import normalize

import cornerstone
from cornerstone.data.pairs.image_input import StoredFeatures
from cornerstone.data.pairs.views import Box
from cornerstone.data.scenes.boxes import boxes_of
from cornerstone.data.scenes.draw import background, paint
from cornerstone.data.scenes.sets import pair
from cornerstone.data.scenes.world import NOUNS, ScenesSpec
from cornerstone.data.scenes.write import write_evaluation_sets
from cornerstone.data.texts import SentenceFormat, TextInput
from cornerstone.errors import CornerstoneError
from cornerstone.evaluation.attention import area, attention_maps, covered, energy_inside
from cornerstone.evaluation.judged import chance_of, intervals_of, metrics_of
from cornerstone.evaluation.offline import evaluate_model
from cornerstone.evaluation.sets import requested_sets
from cornerstone.evaluation.tasks import EvaluationInputs
from cornerstone.inference.saved_model import SavedModel
from cornerstone.models.image_tower import build_image_tower
from cornerstone.models.lotlip import Lotlip
from cornerstone.models.method import Inputs
from cornerstone.recipes import CornerText, ImageTower, LotlipConfig


def tower(**options):
    sizes = {"width": 16, "layers": 2, "heads": 2, "patch": 8, "size": 32}
    config = ImageTower("vit_tiny_patch16_224", pretrained=False, locked=False, **sizes, **options)
    return build_image_tower(config).eval()


def images(n=3, seed=0):
    return torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_a_patch_goes_the_way_of_the_class_token():
    made = tower(projection=12)
    tokens = made.model.forward_features(images())
    expected = torch.stack([made.projection(made.model.forward_head(tokens[:, i : i + 1])) for i in range(1, 17)], 1)
    torch.testing.assert_close(made.pooled_patches(images()), expected)


@torch.no_grad()
def test_of_an_average_the_last_norm_stands_behind_the_mean():
    """Without the norm's own weights the mean of the patches that are normed after it is not theirs; its direction is."""
    made = tower(pooling="average")
    patches = made.model.forward_features(images())[:, 1:]
    expected = torch.nn.functional.layer_norm(patches, (16,), made.model.fc_norm.weight, made.model.fc_norm.bias, 1e-6)
    torch.testing.assert_close(made.pooled_patches(images()), expected)


@pytest.mark.parametrize("pooling", ["attention", "none"])
def test_towers_without_such_a_path_say_so(pooling):
    with pytest.raises(CornerstoneError, match="pools otherwise"):
        tower(pooling=pooling).pooled_patches(images())


@torch.no_grad()
def test_patches_are_row_by_row():
    """Without attention a patch knows its own pixels alone."""
    made = tower()
    made.model.blocks = torch.nn.Identity()
    changed = images(1).clone()
    changed[:, :, 8:16, 16:24] += 1  # the second row, the third column
    differs = (made.pooled_patches(images(1)) - made.pooled_patches(changed)).abs().sum(-1)[0] > 1e-6
    maps = attention_maps(differs.float()[None, :, None] * 2 - 1, torch.ones(1, 1))
    assert (maps[0] > 0).nonzero().tolist() == [[1, 2]]


@torch.no_grad()
def test_clip_of_transformers_and_of_open_clip(tmp_path):
    ours = cornerstone.load(tiny_released.clip(tmp_path / "hf"))
    theirs = ours.module.model
    hidden = theirs.vision_model(pixel_values=images()).last_hidden_state
    expected = theirs.visual_projection(theirs.vision_model.post_layernorm(hidden))
    torch.testing.assert_close(normalize(expected[:, 0], dim=-1), ours.encode_image(images()), rtol=0, atol=1e-5)
    torch.testing.assert_close(normalize(expected[:, 1:], dim=-1), ours.encode_patches(images()), rtol=0, atol=1e-5)

    folder = tiny_released.open_clip_folder(tmp_path / "oc", {})
    ours, model = cornerstone.load(folder), open_clip.create_model(f"local-dir:{folder}").eval()
    model.visual.output_tokens = True
    _, tokens = model.visual(images())
    torch.testing.assert_close(
        normalize(tokens @ model.visual.proj, dim=-1), ours.encode_patches(images()), rtol=0, atol=1e-5
    )


def test_models_without_patches_in_the_space_of_texts_say_so(tmp_path):
    model = cornerstone.load(tiny_released.siglip(tmp_path, tiny_released.t5_like()))
    with pytest.raises(CornerstoneError, match="no patches in the space of texts"):
        model.encode_patches(images())


def test_energy_is_what_lies_in_the_boxes():
    boxes = [Box(0.5, 0.0, 1.0, 0.25), Box(0.75, 0.0, 1.0, 0.5)]  # x first, and they overlap
    inside = covered(boxes, 4)
    assert inside.tolist() == [[0, 0, 1, 1], [0, 0, 0, 1], [0] * 4, [0] * 4]
    assert area(inside) == pytest.approx(100 * 3 / 16)
    map_GG = torch.full((4, 4), -0.5)
    map_GG[0, 2], map_GG[3, 0] = 0.5, -0.25
    assert energy_inside(map_GG, inside) == pytest.approx(80)  # 1 of 1 + 1/4 above the lowest
    assert energy_inside(map_GG + 7, inside) == pytest.approx(80, rel=1e-4)
    for same in (0.3, float("nan")):
        assert energy_inside(torch.full((4, 4), same), inside) == area(inside)
    half = covered([Box(0.0, 0.0, 0.125, 0.25)], 4)
    assert half[0, 0] == pytest.approx(0.5)
    with pytest.raises(CornerstoneError, match="15 patches are no square"):
        attention_maps(torch.ones(1, 15, 2), torch.ones(1, 2))


def test_boxes_are_where_the_objects_were_drawn():
    """Outside all boxes an image is its background; inside each of them it is not."""
    for i in range(20):
        row = pair(ScenesSpec(set="long-human", image_size=224), i)
        scene = scene_of(row.extra)
        boxes = boxes_of(row.extra, row.captions[0].text, 224)
        assert [box.salient for box in boxes] == [True] + [False] * (len(scene.things) - 1)
        painted = (paint(scene, 224) != background(scene.background, 224)).any(-1)
        covers = covered(boxes, 224).bool().numpy()
        assert (painted & ~covers).sum() == 0
        for box in boxes:
            assert painted[covered([box], 224).bool().numpy()].mean() > 0.15


def test_only_what_is_mentioned_has_a_box():
    row = pair(ScenesSpec(set="long-human"), 0)
    second = NOUNS[scene_of(row.extra).things[1].species]
    (box,) = boxes_of(row.extra, f"We see a {second.title()}, and more.", 64)
    assert not box.salient
    assert boxes_of(row.extra, f"a {second}x", 64) == boxes_of("{}", second, 64) == []


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    write_evaluation_sets(folder, images=12, sets=["long-human", "short"], workers=1)
    return folder


@pytest.fixture(scope="module")
def model(wordpiece, tiny_tower):
    config = LotlipConfig(
        image=ImageTower(tiny_tower, pretrained=True, size=32),
        text=CornerText(name="", width=16, layers=1, heads=2, token_limit=64),
    )
    made, text = build_image_tower(config.image), wordpiece.read_text()
    method = Lotlip.build(config, Inputs(SentenceFormat(text, 62).vocab_size, made.width, made), seed=0)
    return SavedModel(method, text, {})


def test_the_task_on_scenes_has_intervals_and_the_area_as_chance(scenes, model):
    sets = requested_sets([str(scenes / "long-human")], "attention")
    results = evaluate_model(model, sets)
    found, chance, intervals = metrics_of(results), chance_of(results), intervals_of(results)
    assert list(found) == [f"eval/long-human/{name}" for name in ("energy", "energy_salient", "energy_other")]
    for name, value in found.items():
        low, high = intervals[name]
        assert low < value < high
        assert 0 < chance[name] < 100
    expected = [area(covered(boxes_of(r.extra, r.captions[0].text, 64), 4)) for r in rows(scenes)]
    assert chance["eval/long-human/energy"] == pytest.approx(np.mean(expected), rel=1e-5)
    maps = attention_maps(
        model.encode_patches(torch.stack([model.transform(r.image) for r in rows(scenes)])),
        model.encode_text([r.captions[0].text for r in rows(scenes)]),
    )
    inside = [covered(boxes_of(r.extra, r.captions[0].text, 64), 4) for r in rows(scenes)]
    expected = [energy_inside(one, where) for one, where in zip(maps, inside, strict=True)]
    assert found["eval/long-human/energy"] == pytest.approx(np.mean(expected), rel=1e-3)


def rows(scenes):
    spec = ScenesSpec(**json.loads((scenes / "long-human" / "manifest.json").read_text())["source"]["scenes"])
    return [pair(spec, i) for i in range(12)]


def test_who_cannot_be_judged_is_told(scenes, model, pairs_folder):
    with pytest.raises(CornerstoneError, match="No set can be judged by attention: the data gives"):
        requested_sets([pairs_folder], "attention")
    (one,) = requested_sets([str(scenes / "short")], "attention")
    texts = TextInput("sentences", model.tokenizer_json, 32)
    with pytest.raises(CornerstoneError, match="stored features stand for its images"):
        one.source(EvaluationInputs(StoredFeatures(("x",), 8), texts, ""))
