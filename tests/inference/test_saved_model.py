from __future__ import annotations

import io
import json

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers

from cornerstone.data.images import Transform
from cornerstone.errors import CornerstoneError
from cornerstone.inference.saved_model import load, save_model
from cornerstone.models.image_tower import build_image_tower
from cornerstone.models.lotlip import Lotlip
from cornerstone.models.method import Inputs
from cornerstone.recipes.lotlip import LotlipConfig
from cornerstone.recipes.towers import CornerText, ImageTower

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "red", "blue", "bus", "sky", "tree", "is", "the", ".", "on"]
TEXTS = ["a red bus. the sky is blue.", "the tree", "", "a bus is on the blue tree. a red sky. the bus is red. a tree"]


def tokenizer_json() -> str:
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer.to_str()


def build(locked: bool = True) -> Lotlip:
    config = LotlipConfig(
        image=ImageTower("test_vit.r160_in1k", pretrained=False, locked=locked, size=64),
        text=CornerText(name="", width=16, layers=1, heads=2, token_limit=14),
    )
    tower = build_image_tower(config.image, seed=3)
    return Lotlip.build(config, Inputs(len(WORDS), 64, tower), seed=3).eval()


def save(folder, model, **changes):
    arguments = {"config": model.config, "recipe": {"name": "test"}, "tokenizer_json": tokenizer_json()}
    save_model(str(folder), model, **(arguments | changes))


@pytest.mark.parametrize("locked", [True, False])
def test_a_saved_model_gives_the_same_features(tmp_path, locked):
    model = build(locked)
    save(tmp_path / "model", model)
    loaded = load(str(tmp_path))  # a run's folder opens too
    images = torch.randn(3, 3, 64, 64)
    torch.testing.assert_close(loaded.encode_image(images), model.encode_image(images), rtol=0, atol=0)
    (ids,) = loaded.text_format.encode_texts(TEXTS[:1])
    expected = model.encode_text(torch.tensor([ids]), torch.tensor([len(ids)]), corners=True)
    torch.testing.assert_close(loaded.encode_text(TEXTS[:1], corners=True), expected, rtol=0, atol=1e-6)
    assert loaded.recipe == {"name": "test"}
    assert loaded.module.image_tower.training is False
    assert next(loaded.module.image_tower.parameters()).requires_grad is not locked


def test_texts_and_ids_as_the_authors_lay_them_out_agree(tmp_path):
    save(tmp_path, build())
    loaded = load(str(tmp_path))
    assert loaded.encode_text(TEXTS).shape == (4, 64)
    features = loaded.encode_text(TEXTS, corners=True)
    assert features.shape == (4, 3, 64)
    torch.testing.assert_close(features[:, 0], loaded.encode_text(TEXTS), rtol=0, atol=1e-6)
    vocabulary = len(WORDS)
    laid_out = torch.zeros(4, 16, dtype=torch.long)
    for row, ids in zip(laid_out, loaded.text_format.encode_texts(TEXTS), strict=True):
        ids = ids or loaded.text_format.empty
        ids = [ids[0], vocabulary, vocabulary + 1, *ids[1:]]
        row[: len(ids)] = torch.tensor(ids)
    torch.testing.assert_close(loaded.encode_text(laid_out, corners=True), features, rtol=0, atol=1e-6)
    for i, text in enumerate(TEXTS):
        torch.testing.assert_close(loaded.encode_text([text], corners=True)[0], features[i], rtol=0, atol=1e-6)
    with pytest.raises(CornerstoneError, match="one string"):
        loaded.encode_text("a bus")


def test_the_transform_is_the_evaluation_streams(tmp_path):
    save(tmp_path, build())
    loaded = load(str(tmp_path))
    pixels = np.random.default_rng(0).integers(0, 256, (90, 130, 3), dtype=np.uint8)
    picture, stream = Image.fromarray(pixels), io.BytesIO()
    picture.save(stream, "PNG")
    square = torch.from_numpy(Transform(64, train=False)(stream.getvalue()))
    given = loaded.transform(picture)
    assert given.shape == (3, 64, 64)
    torch.testing.assert_close(loaded.transform(stream.getvalue()), given, rtol=0, atol=0)
    torch.testing.assert_close(loaded.encode_image(given[None]), loaded.encode_image(square[None]), rtol=0, atol=1e-5)


def test_nothing_is_asked_of_a_hub(tmp_path, monkeypatch):
    model = build()
    name_only = LotlipConfig(
        image=ImageTower("vit_base_patch16_224.augreg_in21k", size=64),
        text=CornerText("bert-base-uncased", token_limit=14),
    )
    save(tmp_path, model, config=name_only)

    def refuse(*_, **__):
        raise AssertionError("a hub was asked")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    monkeypatch.setattr("transformers.BertModel.from_pretrained", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(load(str(tmp_path)).encode_image(images), model.encode_image(images), rtol=0, atol=0)


def test_a_consolidated_state_replaces_the_modules_own(tmp_path):
    model, other = build(), build()
    state = {name: value + 1 for name, value in model.state_dict().items()}
    save(tmp_path, model, state=state, image_tower=other.image_tower)
    loaded = load(str(tmp_path)).module
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_what_is_no_model_is_refused(tmp_path):
    with pytest.raises(CornerstoneError, match=r"No model at .*lacks config\.json"):
        load(str(tmp_path / "nowhere"))
    save(tmp_path, build())
    described = json.loads((tmp_path / "config.json").read_text())

    def with_config(**changes):
        (tmp_path / "config.json").write_text(json.dumps(described | changes))
        return load(str(tmp_path))

    with pytest.raises(CornerstoneError, match="update it"):
        with_config(version=99)
    with pytest.raises(CornerstoneError, match=r"'somewhere\.else:Config' cannot be imported"):
        with_config(method=described["method"] | {"kind": "elsewhere"}, config_class="somewhere.else:Config")
    with pytest.raises(CornerstoneError, match=r"has no field 'novelty'.*update this one"):
        with_config(method=described["method"] | {"novelty": 1})
    with pytest.raises(CornerstoneError, match="do not fit"):
        with_config(
            build=described["build"]
            | {"vocab_size": 20, "text_tower": described["build"]["text_tower"] | {"vocab_size": 20}}
        )
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(CornerstoneError, match=r"lacks tokenizer\.json"):
        with_config()


def test_a_model_of_version_1_still_opens(tmp_path):
    """What runs left before methods had short names: the class is named, the temperature has another name."""
    model = build()
    save(tmp_path, model)
    described = json.loads((tmp_path / "config.json").read_text())
    new_fields = ("pooling", "projection", "drop_path", "layer_scale")
    method = {name: value for name, value in described["method"].items() if name != "kind"}
    method["image"] = {name: value for name, value in method["image"].items() if name not in new_fields}
    old = {"version": 1, "implementation": "cornerstone.models.lotlip:Lotlip", "method": method}
    kept = {name: described[name] for name in ("build", "image_tower")}
    (tmp_path / "config.json").write_text(json.dumps(old | kept))
    weights = safetensors.torch.load_file(tmp_path / "model.safetensors")
    weights["log_scale"] = weights.pop("logit_scale")
    safetensors.torch.save_file(weights, tmp_path / "model.safetensors")
    loaded = load(str(tmp_path))
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(loaded.encode_image(images), model.encode_image(images), rtol=0, atol=0)
    assert torch.equal(loaded.module.logit_scale, model.logit_scale)


def test_a_method_of_ones_own_comes_back_as_itself(tmp_path):
    """A subclass is saved under its own kind, and found by it in a process that has not imported it."""
    from recording import RecordedConfig

    model = build()
    config = RecordedConfig(image=model.config.image, text=model.config.text, seen=str(tmp_path))
    save(tmp_path, model, config=config)
    loaded = load(str(tmp_path))
    assert type(loaded.module).__name__ == "RecordedLotlip"
    assert loaded.module.config == config


def test_a_method_without_a_name_of_its_own_is_refused():
    with pytest.raises(TypeError, match="needs a `kind` and an `implementation` of its own"):

        class Nameless(LotlipConfig):
            pass

    with pytest.raises(TypeError, match="the kind 'lotlip' is"):

        class Taken(LotlipConfig):
            kind = "lotlip"
            implementation = "x:Y"
