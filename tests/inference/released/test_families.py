"""Each released family against the library that releases it: a small random model, its own tokenizer and processor."""

from __future__ import annotations

import json
from pathlib import Path

import open_clip
import pytest
import tiny_released
import torch
from PIL import Image
from torch.nn.functional import normalize
from transformers import (
    AlignModel,
    CLIPModel,
    CLIPTokenizer,
    PreTrainedTokenizerFast,
    Siglip2Model,
    SiglipModel,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.efficientnet.image_processing_pil_efficientnet import EfficientNetImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

import cornerstone
from cornerstone.data.released_images import PatchTransform
from cornerstone.errors import CornerstoneError

TEXTS = ["a photo of a cat", "two dogs run", "the sea is calm", "a red bus is on the sea " * 60]
EVEN = (66, 48)
"""A size whose centre both libraries round alike."""


def picture(size=EVEN) -> Image.Image:
    noise = torch.randint(0, 255, (6, 8, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    return Image.fromarray(noise.numpy()).resize(size, Image.Resampling.BICUBIC)


def assert_features(model, texts, expected_text, image, expected_image):
    torch.testing.assert_close(model.encode_text(texts), normalize(expected_text, dim=-1), rtol=0, atol=1e-5)
    mine = model.encode_image(model.transform(image)[None])
    torch.testing.assert_close(mine, normalize(expected_image, dim=-1), rtol=0, atol=1e-5)
    pixels = torch.from_numpy(model.pixels(image))[None]
    torch.testing.assert_close(model.encode_image(pixels), mine, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("context", "end"), [(77, 49407), (77, 2), (248, 49407)])
@torch.no_grad()
def test_clip_and_long_clip_in_the_layout_of_transformers(tmp_path, context, end):
    folder = tiny_released.clip(tmp_path, context, end)
    theirs = CLIPModel.from_pretrained(folder)
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    ids = tokenizer(TEXTS, padding="max_length", max_length=context, truncation=True, return_tensors="pt")
    seen = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    pixels = seen(picture(), return_tensors="pt")["pixel_values"]
    model = cornerstone.load(folder)
    assert model.text_input.max_tokens == context
    text, image = theirs.get_text_features(**ids).pooler_output, theirs.get_image_features(pixels).pooler_output
    assert_features(model, TEXTS, text, picture(), image)


@torch.no_grad()
def test_pixels_of_a_model_without_normalisation_are_between_0_and_1(tmp_path):
    folder = tiny_released.clip(tmp_path)
    described = Path(folder) / "preprocessor_config.json"
    described.write_text(json.dumps({**json.loads(described.read_text()), "do_normalize": False}))
    pixels = CLIPImageProcessorPil.from_pretrained(folder)(picture(), return_tensors="pt")["pixel_values"]
    image = CLIPModel.from_pretrained(folder).get_image_features(pixels).pooler_output
    model = cornerstone.load(folder)
    assert_features(model, TEXTS, model.encode_text(TEXTS), picture(), image)


@pytest.mark.parametrize(("made", "pad"), [(tiny_released.t5_like, 1), (tiny_released.gemma_like, 0)])
@torch.no_grad()
def test_siglip_and_siglip_2_are_padded_to_their_last_position(tmp_path, made, pad):
    folder = tiny_released.siglip(tmp_path, made())
    theirs = SiglipModel.from_pretrained(folder)
    known = PreTrainedTokenizerFast(tokenizer_object=made())
    known.pad_token_id = pad
    ids = known(TEXTS, padding="max_length", max_length=64, truncation=True, return_tensors="pt").input_ids
    assert ids[0, -1] == pad
    assert ids[-1, -1] == 1  # the token that ends a text stays
    resample = 3 if pad else 2
    seen = SiglipImageProcessorPil(size={"height": 32, "width": 32}, resample=resample)
    pixels = seen(picture(), return_tensors="pt")["pixel_values"]
    text, image = theirs.get_text_features(ids).pooler_output, theirs.get_image_features(pixels).pooler_output
    model = cornerstone.load(folder)
    assert_features(model, TEXTS, text, picture(), image)
    model.module.pad = 5
    assert not torch.allclose(model.encode_text(TEXTS[:1]), normalize(text[:1], dim=-1), atol=1e-3)


def test_siglip_loses_punctuation_and_siglip_2_only_capitals(tmp_path):
    first = cornerstone.load(tiny_released.siglip(tmp_path / "1", tiny_released.t5_like()))
    second = cornerstone.load(tiny_released.siglip(tmp_path / "2", tiny_released.gemma_like()))
    assert torch.equal(first.encode_text(["A red, bus."]), first.encode_text(["a red bus"]))
    assert torch.equal(second.encode_text(["A red, bus."]), second.encode_text(["a red, bus."]))
    assert not torch.allclose(second.encode_text(["A red, bus."]), second.encode_text(["a red bus"]), atol=1e-3)


@pytest.mark.parametrize("size", [(66, 48), (40, 200), (300, 20), (32, 32)])
@torch.no_grad()
def test_siglip_2_of_any_aspect_ratio(tmp_path, size):
    folder = tiny_released.naflex(tmp_path, tiny_released.gemma_like())
    theirs = Siglip2Model.from_pretrained(folder)
    known = PreTrainedTokenizerFast(tokenizer_object=tiny_released.gemma_like())
    known.pad_token_id = 0
    ids = known(TEXTS, padding="max_length", max_length=64, truncation=True, return_tensors="pt").input_ids
    given = Siglip2ImageProcessorPil(patch_size=8, max_num_patches=12)(picture(size), return_tensors="pt")
    text, image = theirs.get_text_features(ids).pooler_output, theirs.get_image_features(**given).pooler_output
    model = cornerstone.load(folder)
    assert_features(model, TEXTS, text, picture(size), image)
    rows, columns = given["spatial_shapes"][0].tolist()
    assert model.pixels(picture(size))[0, :4].tolist() == [0, rows, 0, columns]
    both = torch.stack([model.transform(picture(size)), model.transform(picture((66, 48)))])
    torch.testing.assert_close(model.encode_image(both)[0], normalize(image, dim=-1)[0], rtol=0, atol=1e-5)


def test_more_patches_than_a_byte_counts():
    seen = PatchTransform(side=2, most=700)
    packed = seen.pixels(picture((2000, 2)))
    rows, columns = (int(high) * 256 + int(low) for high, low in packed[0, :4].reshape(2, 2))
    assert (rows, columns) == seen.grid(2000, 2)
    assert columns > 256
    assert rows * columns <= 700
    assert packed[1 + rows * columns :].max(initial=0) == 0


@torch.no_grad()
def test_align_is_masked_and_cut_to_64_tokens(tmp_path):
    folder = tiny_released.align(tmp_path)
    theirs = AlignModel.from_pretrained(folder).eval()
    known = PreTrainedTokenizerFast(tokenizer_file=str(Path(folder) / "tokenizer.json"), pad_token="[PAD]")
    ids = known(TEXTS, padding="max_length", max_length=64, truncation=True, return_tensors="pt")
    said = {"size": {"height": 346, "width": 346}, "crop_size": {"height": 289, "width": 289}, "do_center_crop": True}
    said |= {"rescale_factor": 1 / 127.5, "rescale_offset": True, "do_normalize": False, "include_top": False}
    seen = EfficientNetImageProcessorPil(**said, resample=2)
    pixels = seen(picture(), return_tensors="pt")["pixel_values"]
    text = theirs.get_text_features(ids.input_ids, ids.attention_mask).pooler_output
    image = theirs.get_image_features(pixels).pooler_output
    model = cornerstone.load(folder)
    assert_features(model, TEXTS, text, picture(), image)
    (Path(folder) / "preprocessor_config.json").write_text(json.dumps({**said, "resample": 2}))
    assert cornerstone.load(folder).module.seen == model.module.seen


OPEN_CLIP = {
    "clip": ({}, {"model": {"quick_gelu": True}}, None),
    "siglip": (
        {
            "context_length": 64,
            "vocab_size": 64,
            "hf_tokenizer_name": "in-the-folder",
            "tokenizer_kwargs": {"clean": "canonicalize"},
            "no_causal_mask": True,
            "proj_bias": True,
            "pool_type": "last",
        },
        {
            "model": {"custom_text": True, "init_logit_bias": -10},
            "mean": [0.5] * 3,
            "std": [0.5] * 3,
            "resize_mode": "squash",
        },
        tiny_released.t5_like(),
    ),
}


@pytest.mark.parametrize("family", OPEN_CLIP)
@torch.no_grad()
def test_open_clip(tmp_path, family):
    text, options, tokenizer = OPEN_CLIP[family]
    folder = tiny_released.open_clip_folder(tmp_path, text, tokenizer, **options)
    theirs, _, seen = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    theirs.eval()
    texts = [*TEXTS, "Café_bar &amp; 35 stars;  it's OPEN!"]
    ids = open_clip.get_tokenizer(f"local-dir:{folder}")(texts)
    image = picture((49, 44))  # torchvision rounds the margin of 1.5 pixels up
    model = cornerstone.load(folder)
    expected = theirs.encode_image(seen(image)[None])
    assert_features(model, texts, theirs.encode_text(ids), image, expected)


def test_a_folder_whose_weights_do_not_fit_is_refused(tmp_path):
    import safetensors.torch

    folder = Path(tiny_released.siglip(tmp_path / "hf", tiny_released.t5_like()))
    state = safetensors.torch.load_file(folder / "model.safetensors")
    del state["text_model.head.weight"]
    safetensors.torch.save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        CornerstoneError, match=r"missing 1: text_model\.head\.weight; left over 0: none; of another shape 0"
    ):
        cornerstone.load(str(folder))
    state |= {"text_model.head.weight": torch.zeros(3, 32), "another.weight": torch.zeros(2)}
    safetensors.torch.save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    said = r"left over 1: another\.weight; of another shape 1: text_model\.head\.weight \(3, 32\) instead of \(32, 32\)"
    with pytest.raises(CornerstoneError, match=said):
        cornerstone.load(str(folder))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "bert"}))
    with pytest.raises(CornerstoneError, match="is a 'bert', no dual encoder"):
        cornerstone.load(str(folder))
    other = Path(tiny_released.open_clip_folder(tmp_path / "oc", {}))
    (other / "open_clip_model.safetensors").unlink()
    with pytest.raises(CornerstoneError, match="could not be loaded"):
        cornerstone.load(str(other))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("open_clip:ViT-B-61/openai", "did you mean 'ViT-B-16'"),
        ("open_clip:ViT-B-16/opnai", "did you mean 'openai'"),
        ("open_clip:ViT-B-16", r"expected open_clip:NAME/TAG; did you mean 'ViT-B-16'"),
        ("opn_clip:ViT-B-16/openai", "did you mean 'open_clip'"),
        ("hf:openai/clip-vit-base-patch61", "hub does not answer.*did you mean 'openai/clip-vit-base-patch16'"),
        ("hf:google/siglip2-base-patch16-224", "not in its cache. Give a folder"),
        ("open_clip:ViT-B-16/openai", "hub does not answer"),
        ("no/such/folder", "No model at"),
    ],
)
def test_unknown_names_and_a_hub_that_does_not_answer(name, said, monkeypatch):
    for module in ("hugging_face", "open_clip_models"):
        monkeypatch.setattr(f"cornerstone.inference.released.{module}.hub_answers", lambda: False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CornerstoneError, match=said):
        cornerstone.load(name)
