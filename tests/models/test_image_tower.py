from __future__ import annotations

import json

import pytest
import safetensors.torch
import timm
import torch
from timm.models import save_for_hf

from cornerstone.errors import CornerstoneError
from cornerstone.models.image_tower import TimmTower, build_image_tower, state_hash
from cornerstone.recipes.towers import ImageTower

TINY = ImageTower("test_vit.r160_in1k", pretrained=False, size=64)


def saved(folder, model, classes=0, **model_args):
    """A folder in timm's own layout."""
    folder.mkdir(exist_ok=True)
    safetensors.torch.save_file(model.state_dict(), folder / "model.safetensors")
    described = {"architecture": "test_vit", "num_classes": classes, "model_args": model_args}
    described["pretrained_cfg"] = {
        "input_size": [3, 64, 64],
        "num_classes": classes,
        "classifier": "head",
        "mean": [0.1, 0.2, 0.3],
        "std": [0.4, 0.5, 0.6],
    }
    (folder / "config.json").write_text(json.dumps(described))
    return str(folder)


def images(dtype=torch.float32):
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)).to(dtype)


def test_the_feature_is_the_class_token_behind_the_last_norm():
    tower = build_image_tower(TINY)
    feature = tower(images()).pooled
    assert feature.shape == (2, tower.width)
    torch.testing.assert_close(feature, tower.model.forward_features(images())[:, 0], rtol=0, atol=0)


def test_a_locked_tower_neither_learns_nor_drops():
    locked, trained = build_image_tower(TINY), build_image_tower(ImageTower(TINY.name, False, locked=False, size=64))
    assert not any(p.requires_grad for p in locked.parameters())
    assert not locked.training
    assert all(p.requires_grad for p in trained.parameters())


def test_pixels_are_normalised_by_the_towers_own_mean_and_std():
    described = build_image_tower(TINY).described()
    assert described["mean"] == [0.5, 0.5, 0.5], "timm's configuration of this model"
    tower = TimmTower.rebuilt(described | {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]})
    pixels = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    by_hand = torch.stack([(pixels[:, c] / 255 - tower.mean[c]) / tower.std[c] for c in range(3)], dim=1)
    torch.testing.assert_close(tower(pixels).pooled, tower(by_hand).pooled, rtol=0, atol=1e-5)
    assert tower.bfloat16()(pixels).pooled.dtype == torch.bfloat16


def test_a_seed_decides_new_weights_and_nothing_else():
    before = torch.random.get_rng_state()
    hashes = [state_hash(build_image_tower(TINY, seed)) for seed in (0, 0, 1)]
    assert hashes[0] == hashes[1] != hashes[2]
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_folder_in_timms_layout_is_loaded_and_rebuilt_without_it(tmp_path):
    source = timm.create_model("test_vit", num_classes=0, img_size=64, init_values=0.1)
    tower = build_image_tower(ImageTower(saved(tmp_path / "tower", source, init_values=0.1), size=64))
    source.eval()
    torch.testing.assert_close(tower(images()).pooled, source(images()), rtol=0, atol=0)
    assert tower.mean == (0.1, 0.2, 0.3)
    described = json.loads(json.dumps(tower.described()))
    for file in (tmp_path / "tower").iterdir():
        file.unlink()
    again = TimmTower.rebuilt(described)
    again.load_state_dict(tower.state_dict())
    torch.testing.assert_close(again.eval()(images()).pooled, tower(images()).pooled, rtol=0, atol=0)
    assert (again.mean, again.std, again.size, again.width) == (tower.mean, tower.std, tower.size, tower.width)


def test_weights_that_timm_would_silently_leave_out_are_refused(tmp_path):
    source = timm.create_model("test_vit", num_classes=10, img_size=64)
    folder = saved(tmp_path, source, classes=10)
    build_image_tower(ImageTower(folder, size=64))  # the classifier is left out
    state = source.state_dict()
    del state["blocks.3.attn.qkv.weight"]
    safetensors.torch.save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(CornerstoneError, match=r"1 of \d+ parameters are missing, blocks\.3\.attn\.qkv\.weight"):
        build_image_tower(ImageTower(folder, size=64))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "No image tower is named"),
        ("vit_bsae_patch16_224", "Cannot load the image tower 'vit_bsae_patch16_224'"),
        ("no/such/folder", "Cannot load the image tower 'no/such/folder'"),
        ("test_resnet", "no class token"),
        ("vit_tiny_r_s16_p8_224.nosuch", "Cannot load the image tower"),
    ],
)
def test_what_cannot_be_a_tower_is_refused(name, message):
    with pytest.raises(CornerstoneError, match=message):
        build_image_tower(ImageTower(name, pretrained=False, size=64))


def test_a_tower_without_class_token_is_refused(tmp_path):
    source = timm.create_model("test_vit", num_classes=0, img_size=64, class_token=False, global_pool="avg")
    with pytest.raises(CornerstoneError, match="no class token"):
        build_image_tower(ImageTower(saved(tmp_path, source, class_token=False), size=64))


def test_a_silent_hub_is_explained(monkeypatch):
    def silent(**arguments):
        raise OSError("cannot reach the hub.")

    monkeypatch.setattr(timm, "create_model", silent)
    with pytest.raises(CornerstoneError, match=r"cannot reach the hub\..*name a folder"):
        build_image_tower(ImageTower())


def test_the_hash_sees_every_value_and_name():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    first = state_hash(model)
    assert first == state_hash(model)
    assert len(first) == 16
    model[1].running_mean[1] += 1e-7
    second = state_hash(model)
    assert second != first
    assert state_hash(torch.nn.Sequential(model[1], model[0])) != second
    assert state_hash(model.bfloat16()) != second


@pytest.mark.parametrize("pooling", ["token", "average", "attention", "none"])
def test_poolings_and_patches(pooling):
    tower = build_image_tower(ImageTower("test_vit", pretrained=False, size=64, pooling=pooling))
    pooled, patches = tower(images())
    tokens = tower.model.forward_features(images())
    assert torch.equal(patches, tokens[:, 1:])
    assert patches.shape[1] == (64 // 16) ** 2
    if pooling == "none":
        assert pooled is None
    elif pooling == "average":
        torch.testing.assert_close(pooled, tower.model.fc_norm(patches.mean(1)), rtol=0, atol=1e-6)
    else:
        assert pooled.shape == (2, tower.width)


def test_a_projection_is_trained_saved_and_rebuilt():
    config = ImageTower("test_vit", pretrained=False, size=64, locked=False, projection=24)
    tower, again = build_image_tower(config, seed=3), build_image_tower(config, seed=3)
    assert tower.width == 24
    assert tower(images()).pooled.shape == (2, 24)
    assert state_hash(tower) == state_hash(again)
    rebuilt = TimmTower.rebuilt(json.loads(json.dumps(tower.described())))
    rebuilt.load_state_dict(tower.state_dict())
    torch.testing.assert_close(rebuilt.eval()(images()).pooled, tower.eval()(images()).pooled, rtol=0, atol=0)


def test_drop_path_and_layer_scale_are_timms():
    config = ImageTower("test_vit", pretrained=False, size=64, locked=False, drop_path=0.5, layer_scale=1e-4)
    tower = build_image_tower(config)
    assert [block.ls1.gamma.unique().item() for block in tower.model.blocks] == pytest.approx([1e-4] * 6)
    assert tower.model.blocks[-1].drop_path1.drop_prob == 0.5
    assert not torch.equal(tower(images()).pooled, tower(images()).pooled)
    assert torch.equal(tower.eval()(images()).pooled, tower(images()).pooled)


def test_a_locked_tower_has_no_projection_to_train():
    with pytest.raises(CornerstoneError, match="locked image tower does not train a projection"):
        ImageTower(projection=24)


def test_a_tower_comes_from_another_run(tmp_path):
    from cornerstone.inference.saved_model import save_model
    from cornerstone.models.lotlip import Lotlip
    from cornerstone.models.method import Inputs
    from cornerstone.recipes import CornerText, LotlipConfig

    source = build_image_tower(TINY, seed=5)
    method = LotlipConfig(image=TINY, text=CornerText(name="", width=16, layers=1, heads=2))
    model = Lotlip.build(method, Inputs(30, source.width, source), seed=0)
    save_model(str(tmp_path / "model"), model, recipe={}, tokenizer_json="{}")
    tower = build_image_tower(ImageTower(str(tmp_path / "model"), size=64))
    torch.testing.assert_close(tower(images()).pooled, source(images()).pooled, rtol=0, atol=0)
    with pytest.raises(CornerstoneError, match="sees 64 pixels, the recipe says 224"):
        build_image_tower(ImageTower(str(tmp_path / "model")))


@pytest.mark.parametrize(("bias", "released"), [(0.0, True), (0.5, False)])
def test_the_projection_of_a_released_clip_is_loaded(tmp_path, bias, released):
    """timm's weights of CLIP hold it as a classifier without bias; the classifier of other weights has one."""
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2}
    model = timm.create_model("vit_base_patch16_clip_224", num_classes=24, **sizes)
    torch.nn.init.normal_(model.head.weight)
    torch.nn.init.constant_(model.head.bias, bias)
    seen = {"input_size": (3, 32, 32), "mean": (0.5,) * 3, "std": (0.5,) * 3, "num_classes": 24}
    described = {"model_args": sizes, "pretrained_cfg": seen, "num_classes": 24}
    save_for_hf(model, str(tmp_path), model_config=described, safe_serialization=True)
    images = torch.randn(2, 3, 32, 32)
    tower = build_image_tower(ImageTower(str(tmp_path), locked=False, size=32, projection=24)).eval()
    expected = model.eval()(images) - bias
    assert torch.allclose(tower(images).pooled, expected, atol=1e-5) == released
    other = build_image_tower(ImageTower(str(tmp_path), locked=False, size=32, projection=10))
    assert other.width == 10
