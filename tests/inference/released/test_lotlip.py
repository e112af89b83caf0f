"""LoTLIP in its authors' layout: the features that their code gives of a tiny model, and their text format."""

from __future__ import annotations

import json
import shutil

import pytest
import safetensors.torch
import torch
from safetensors import safe_open

import cornerstone
from cornerstone.cli import main
from cornerstone.errors import CornerstoneError
from cornerstone.inference.saved_model import SavedModel, save_model
from cornerstone.runtime.tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def reference(test_data):
    path = test_data / "reference" / "lotlip_tiny.safetensors"
    if not path.exists():
        pytest.skip(f"no {path}")
    with safe_open(path, "pt") as file:
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        return found, {name: value for name, value in found.items() if name.startswith("io.")}, file.metadata()


@pytest.fixture(scope="module")
def folder(reference, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lotlip")
    weights = {name: value for name, value in reference[0].items() if name.startswith("model.")}
    safetensors.torch.save_file(weights, folder / "open_clip_model.safetensors")
    vision = {"timm_model_name": "test_vit", "image_size": 160, "timm_pool": "token", "timm_proj": "none"}
    text = {"context_length": 48, "hf_model_name": "bert-base-uncased", "num_corner_token": 2, "heads": 4}
    described = {"model_cfg": {"embed_dim": 64, "vision_cfg": vision, "text_cfg": text}}
    (folder / "open_clip_config.json").write_text(json.dumps(described))
    (folder / "tokenizer.json").write_text(load_tokenizer("bert-base-uncased"))
    return folder


def test_features_are_the_authors(folder, reference, tmp_path):
    _, io, about = reference
    model = cornerstone.load(str(folder))
    assert isinstance(model, SavedModel)
    texts = [json.loads(about[name]) for name in ("raw", "long")]
    torch.testing.assert_close(model.encode_text(texts[1]), io["io.cls_features"], rtol=0, atol=1e-5)
    both = [model.encode_text(texts[0])[:, None], model.encode_text(texts[1], corners=True)]
    torch.testing.assert_close(torch.cat(both, dim=1), io["io.text_features"], rtol=0, atol=1e-5)
    torch.testing.assert_close(model.encode_image(io["io.images"]), io["io.image_features"], rtol=0, atol=1e-5)
    by_ids = model.encode_text(io["io.tokens"][:, 1])
    torch.testing.assert_close(by_ids, io["io.cls_features"], rtol=0, atol=1e-5)
    # Saved as a model of this project, it treats texts as its authors do.
    save_model(str(tmp_path), model.module, recipe={}, tokenizer_json=model.tokenizer_json, texts=model.text_input)
    again = cornerstone.load(str(tmp_path))
    for text in ("Café &amp; bar. It's  open. ", "a cat"):
        torch.testing.assert_close(again.encode_text([text]), model.encode_text([text]), rtol=0, atol=0)
    assert again.text_format.encode_texts(["a cat. "]) == [[101, 1037, 4937, 102, 102]]


def test_weights_of_another_kind_are_refused(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "other")
    described = json.loads((folder / "open_clip_config.json").read_text())
    described["model_cfg"]["vision_cfg"]["image_size"] = 96
    (tmp_path / "other" / "open_clip_config.json").write_text(json.dumps(described))
    with pytest.raises(CornerstoneError, match="do not fit test_vit"):
        cornerstone.load(str(tmp_path / "other"))
    (tmp_path / "other" / "open_clip_model.safetensors").unlink()
    with pytest.raises(CornerstoneError, match="holds no weights"):
        cornerstone.load(str(tmp_path / "other"))
    for name in ("a.pt", "b.pt"):
        (tmp_path / "other" / name).touch()
    with pytest.raises(CornerstoneError, match=r"which of a\.pt, b\.pt is meant"):
        cornerstone.load(f"hf:{tmp_path / 'other'}")


def test_a_folder_without_tokenizer_and_with_weights_of_another_name(folder, reference, tmp_path):
    """As a release with one .pt file: BERT's tokenizer is taken, only tensors are unpickled."""
    shutil.copy(folder / "open_clip_config.json", tmp_path)
    torch.save(
        {"state_dict": safetensors.torch.load_file(folder / "open_clip_model.safetensors")}, tmp_path / "epoch_10.pt"
    )
    texts = json.loads(reference[2]["long"])
    found = cornerstone.load(f"hf:{tmp_path}").encode_text(texts)
    torch.testing.assert_close(found, reference[1]["io.cls_features"], rtol=0, atol=1e-5)


def test_the_command_converts(folder, reference, tmp_path):
    out, source = str(tmp_path / "out"), str(folder / "open_clip_model.safetensors")
    options = ["--image-tower", "test_vit", "--token-limit", "48", "--text-heads", "4"]
    main(["convert", "lotlip", source, *options, "--tokenizer", str(folder), "--out", out])
    texts = json.loads(reference[2]["long"])
    expected = reference[1]["io.cls_features"]
    torch.testing.assert_close(cornerstone.load(out).encode_text(texts), expected, rtol=0, atol=1e-5)
