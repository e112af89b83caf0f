"""CLIP's released text weights in this project's tower, and Long-CLIP's stretch of their positions."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_released
import torch
from safetensors import safe_open
from torch.nn.functional import normalize
from transformers import CLIPModel

from cornerstone.errors import CornerstoneError
from cornerstone.models.clip_text import ClipTextTransformer
from cornerstone.models.positions import stretched
from cornerstone.models.released_clip import positions
from cornerstone.recipes.towers import ClipText
from cornerstone.training.shared import digest_of_text_tower

FIXTURE = Path(__file__).parents[1] / "fixtures" / "longclip_positions.safetensors"
SIZES = {"width": 32, "layers": 2, "heads": 2, "activation": "quick_gelu"}


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return tiny_released.clip(tmp_path_factory.mktemp("clip"))


def test_the_stretch_is_the_authors():
    with safe_open(FIXTURE, "pt") as file:
        table, expected, half = (file.get_tensor(name) for name in ("table", "stretched", "stretched_half"))
    torch.testing.assert_close(stretched(table), expected, rtol=0, atol=1e-6)
    assert torch.equal(stretched(table, half=True), half)
    assert torch.equal(stretched(table)[:20], table[:20])
    torch.testing.assert_close(positions(table, 200), expected[:200], rtol=0, atol=1e-6)
    assert torch.equal(positions(table, 60), table[:60])
    with pytest.raises(CornerstoneError, match="77 positions can be stretched to 248, not to 249"):
        positions(table, 249)


@pytest.mark.parametrize("limit", [77, 248])
@torch.no_grad()
def test_features_are_those_of_transformers(clip, limit):
    config = ClipText(name=clip, token_limit=limit, **SIZES)
    tower = ClipTextTransformer.build(config, 49408, 24, seed=0).eval()
    theirs = CLIPModel.from_pretrained(clip).eval()
    embedding = theirs.text_model.embeddings
    if limit > 77:
        table = stretched(embedding.position_embedding.weight)
        embedding.position_embedding = torch.nn.Embedding.from_pretrained(table)
        embedding.position_ids = torch.arange(limit)[None]
    ids = torch.randint(1, 49000, (3, limit), generator=torch.Generator().manual_seed(0))
    lengths = torch.tensor([9, 40, limit])
    for row, length in zip(ids, lengths.tolist(), strict=True):
        row[length - 1], row[length:] = 49407, 0
    expected = normalize(theirs.get_text_features(ids).pooler_output, dim=-1)
    torch.testing.assert_close(tower(ids, lengths).pooled_BD, expected, rtol=0, atol=1e-5)
    again = ClipTextTransformer.build(ClipText(token_limit=limit, **SIZES), 49408, 24, seed=0)
    again.load_state_dict(tower.state_dict())  # a saved model opens without the folder
    assert ClipTextTransformer.build(config, 49408, 24, 0, {}).token_embedding.weight.std() < 0.1


@pytest.mark.parametrize(
    ("changes", "width", "said"),
    [
        ({"activation": "gelu"}, 24, r"has activation quick_gelu, the recipe says gelu"),
        ({"layers": 3}, 24, r"--recipe\.method\.text\.layers 2"),
        ({}, 32, "gives 24 numbers, the image tower 32"),
        ({"name": "no/such-clip"}, 24, "Cannot load the text tower"),
    ],
)
def test_other_sizes_are_refused(clip, changes, width, said, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    config = ClipText(**({"name": clip, **SIZES} | changes))
    with pytest.raises(CornerstoneError, match=said):
        ClipTextTransformer.build(config, 49408, width, seed=0)


def test_the_tokenizer_must_be_clips_and_a_trailing_token_has_no_weights(clip):
    with pytest.raises(CornerstoneError, match="name CLIP's tokenizer"):
        ClipTextTransformer.build(ClipText(name=clip, **SIZES), 100, 24, seed=0)
    with pytest.raises(CornerstoneError, match="no trailing token"):
        ClipText(name=clip, pooling="trailing")


def test_the_recipes_hash_covers_the_weights(clip, tmp_path):
    config = ClipText(name=clip, **SIZES)
    other = ClipText(name=tiny_released.clip(tmp_path), **SIZES)
    assert (
        digest_of_text_tower(config, 49408) == digest_of_text_tower(config, 49408) != digest_of_text_tower(other, 49408)
    )
