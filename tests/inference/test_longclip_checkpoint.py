"""Long-CLIP's released weights: the features of its authors' code, from a checkpoint with their names."""

from __future__ import annotations

import json

import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from torch.nn.functional import normalize

import cornerstone
from cornerstone.cli import main
from cornerstone.errors import CornerstoneError
from cornerstone.inference.convert import convert_long_clip
from cornerstone.inference.longclip_checkpoint import FIRST, REST, from_checkpoint
from cornerstone.models.positions import stretched
from cornerstone.runtime.tokenizer import clip_tokenizer


@pytest.fixture(scope="module")
def reference(test_data):
    path = test_data / "reference" / "longclip_tiny.safetensors"
    if not path.exists():
        pytest.skip(f"no {path}")
    with safe_open(path, "pt") as file:
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        about = file.metadata()
    state = {name.removeprefix("model."): value for name, value in found.items() if name.startswith("model.")}
    return state, {name: value for name, value in found.items() if name.startswith("io.")}, about


def made(layers: int = 1, positions: int = 248, width: int = 64) -> dict[str, torch.Tensor]:
    """A checkpoint with random weights, for machines without the reference."""
    generator = torch.Generator().manual_seed(0)
    shapes = {FIRST: (positions, width), REST: (positions, width), "token_embedding.weight": (50, width)}
    shapes |= {"text_projection": (width, 24), "visual.proj": (width, 24), "logit_scale": ()}
    shapes |= {"visual.class_embedding": (width,), "visual.conv1.weight": (width, 3, 8, 8)}
    shapes |= {"visual.positional_embedding": (17, width)}
    shapes |= {
        f"{norm}.{kind}": (width,)
        for norm in ("ln_final", "visual.ln_pre", "visual.ln_post")
        for kind in ("weight", "bias")
    }
    for block in [f"{t}transformer.resblocks.{i}." for t in ("", "visual.") for i in range(layers)]:
        shapes |= {f"{block}{norm}.{kind}": (width,) for norm in ("ln_1", "ln_2") for kind in ("weight", "bias")}
        linear = {"mlp.c_fc": (4 * width, width), "mlp.c_proj": (width, 4 * width), "attn.out_proj": (width, width)}
        for name, shape in linear.items():
            shapes |= {f"{block}{name}.weight": shape, f"{block}{name}.bias": shape[:1]}
        shapes |= {f"{block}attn.in_proj_weight": (3 * width, width), f"{block}attn.in_proj_bias": (3 * width,)}
    return {name: torch.randn(shape, generator=generator) * 0.2 for name, shape in shapes.items()}


@torch.no_grad()
def test_features_are_the_authors(reference, tmp_path):
    state, io, about = reference
    safetensors.torch.save_file(state, tmp_path / "longclip.safetensors")
    said: list[str] = []
    out = str(tmp_path / "out")
    convert_long_clip(str(tmp_path / "longclip.safetensors"), out, clip_tokenizer(), say=said.append)
    assert "49,408 ids, the checkpoint 150" in said[0]
    assert "248 tokens, 48 px" in said[1]
    model = cornerstone.load(out)
    lengths = torch.tensor(json.loads(about["lengths"]))
    ids = io["io.text_ids"]
    text = model.encoder.encode_text(ids, lengths)
    torch.testing.assert_close(text, normalize(io["io.text_features"], dim=-1), rtol=0, atol=1e-5)
    image = model.encode_image(io["io.images"])
    torch.testing.assert_close(image, normalize(io["io.image_features"], dim=-1), rtol=0, atol=1e-5)
    # Not only their direction, and every token.
    theirs = model.module.model
    raw = theirs.get_text_features(ids)
    torch.testing.assert_close(raw.pooler_output, io["io.text_features"], rtol=0, atol=2e-5)
    torch.testing.assert_close(raw.last_hidden_state[:2, ::8], io["io.token_outputs"], rtol=0, atol=2e-5)


def test_rows_from_20_on_are_of_the_second_table_and_rounding_keeps_exact_weights(reference):
    state, _, _ = reference
    table = from_checkpoint(state).state["text_model.embeddings.position_embedding.weight"]
    assert torch.equal(table[:20], state[FIRST][:20])
    assert torch.equal(table[20:], state[REST][20:])
    rounded = from_checkpoint(state, half=True).state  # the reference's weights are exact in fp16
    assert all(torch.equal(value, rounded[name]) for name, value in from_checkpoint(state).state.items())


def test_half_rounds_linear_layers_alone():
    state = made()
    exact, rounded = (from_checkpoint(state, half=half).state for half in (False, True))
    changed = {name for name, value in exact.items() if not torch.equal(value, rounded[name])}
    kept = {name for name in exact if "norm" in name or "position_embedding" in name or "token_embedding" in name}
    assert changed == set(exact) - kept - {"vision_model.embeddings.class_embedding", "logit_scale"}


def test_the_command_stretches_clip(tmp_path):
    state = made(positions=77)
    del state[REST]
    torch.save({"state_dict": {f"module.{name}": value.half() for name, value in state.items()}}, tmp_path / "clip.pt")
    main(["convert", "longclip", str(tmp_path / "clip.pt"), "--stretch", "--out", str(tmp_path / "out")])
    model = cornerstone.load(str(tmp_path / "out"))
    assert (model.text_input.max_tokens, model.image_size) == (248, 32)
    table = model.module.model.text_model.embeddings.position_embedding.weight
    torch.testing.assert_close(table, stretched(state[FIRST].half()), rtol=0, atol=1e-6)
    with pytest.raises(SystemExit):  # the folder is taken
        main(["convert", "longclip", str(tmp_path / "clip.pt"), "--stretch", "--out", str(tmp_path / "out")])


def test_other_architectures_are_refused(tmp_path):
    state = made()
    clip = {name: value for name, value in state.items() if name != REST}
    with pytest.raises(CornerstoneError, match=r"missing 1: positional_embedding_res.* --stretch makes"):
        from_checkpoint(clip)
    with pytest.raises(
        CornerstoneError, match=r"left over 1: positional_embedding_res \(248, 64\).*leave out --stretch"
    ):
        from_checkpoint(state, stretch=True)
    lacks = {name: value for name, value in state.items() if name != "visual.transformer.resblocks.0.ln_1.bias"}
    with pytest.raises(
        CornerstoneError, match=r"missing 1: visual\.transformer\.resblocks\.0\.ln_1\.bias; left over 0: none"
    ):
        from_checkpoint(lacks)
    with pytest.raises(CornerstoneError, match=r"missing 39: .*, \.\.; left over 1: layer1\.weight \(3,\)"):
        from_checkpoint({"layer1.weight": torch.zeros(3)})
    with pytest.raises(CornerstoneError, match=r"\(248, 64\), positional_embedding_res \(100, 64\)"):
        from_checkpoint(state | {REST: torch.zeros(100, 64)})
    with pytest.raises(CornerstoneError, match="this one is 96 wide"):
        from_checkpoint(made(width=96))
    state["ln_final.weight"] = torch.zeros(65)
    safetensors.torch.save_file(state, tmp_path / "x.safetensors")
    with pytest.raises(CornerstoneError, match=r"final_layer_norm\.weight \(65,\) instead of \(64,\)"):
        convert_long_clip(str(tmp_path / "x.safetensors"), str(tmp_path / "out"), clip_tokenizer())


class Harmful:
    """What a pickle may hold beside tensors."""

    def __reduce__(self):
        return print, ("unpickled",)


def test_only_tensors_are_unpickled_and_options_of_other_formats_are_refused(tmp_path, capsys):
    torch.save({"a": Harmful()}, tmp_path / "x.pt")
    for arguments in (["x.pt"], ["x.pt", "--token-limit", "64"]):
        with pytest.raises(SystemExit):
            main(["convert", "longclip", str(tmp_path / arguments[0]), *arguments[1:], "--out", str(tmp_path / "out")])
    printed = capsys.readouterr().out
    assert "cannot be read as weights" in printed
    assert "--token-limit has no effect on longclip, only on lotlip" in printed
    assert "unpickled\n" not in printed
