"""Exported models open without this package where transformers has the architecture, and here again."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import tiny_released
import torch

import cornerstone
from cornerstone.cli import main
from cornerstone.inference.saved_model import save_model
from cornerstone.models.image_tower import build_image_tower
from cornerstone.models.lotlip import Lotlip
from cornerstone.models.method import Inputs
from cornerstone.recipes.lotlip import LotlipConfig
from cornerstone.recipes.towers import CornerText, ImageTower
from cornerstone.runtime.tokenizer import load_tokenizer
from cornerstone.transfer.towers import open_tower

TEXTS = ["a red bus. the sky is blue.", "the tree", "a long text of many words. " * 20]
CUT_AFTER_A_SENTENCE = "a long text. " * 20


def saved(folder, tiny_tower, **text) -> str:
    """A model whose features differ between texts and between positions."""
    config = LotlipConfig(
        image=ImageTower(tiny_tower, pretrained=True, size=32),
        text=CornerText(**({"name": "", "width": 16, "layers": 2, "heads": 2, "token_limit": 24} | text)),
    )
    tower = build_image_tower(config.image)
    model = Lotlip.build(config, Inputs(30522, tower.width, tower), seed=0)
    with torch.no_grad():
        for parameter in model.text.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.3)
    recipe = {"name": "tiny", "method": {"kind": "lotlip"}}
    content = {"data": "0123456789abcdef"}
    tokenizer = load_tokenizer("bert-base-uncased")
    save_model(str(folder), model, recipe=recipe, tokenizer_json=tokenizer, image_tower=tower, content=content)
    return str(folder)


ELSEWHERE = """
import json, sys
for part in ("inference", "data", "recipes"):  # importing them fails; the environment's hook for torchvision needs the rest
    sys.modules[f"cornerstone.{part}"] = None
import torch
from PIL import Image
folder = sys.argv[1]
code = open(f"{folder}/README.md").read().split("```python\\n")[1].split("```")[0]
texts = repr(json.loads(sys.argv[2]))
code = code.replace('folder = "."', f"folder = {folder!r}").replace('["a red bus. the street is narrow."]', texts)
exec(code.replace("bus.jpg", f"{folder}/bus.png"))
print(json.dumps([text.tolist(), image.tolist()]))
"""


def test_a_dual_encoder_opens_by_the_code_of_its_card(tmp_path, tiny_tower, small_data):
    model = cornerstone.load(saved(tmp_path / "run" / "model", tiny_tower))
    main(["export", str(tmp_path / "run"), "--out", str(tmp_path / "out")])
    (tmp_path / "out" / "bus.png").write_bytes(small_data.picture(0))
    command = [sys.executable, "-c", ELSEWHERE, str(tmp_path / "out"), json.dumps(TEXTS)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    text, image = (torch.tensor(found) for found in json.loads(done.stdout.splitlines()[-1]))
    torch.testing.assert_close(text, model.encode_text(TEXTS), rtol=0, atol=1e-5)
    # Processors of other libraries resize first and crop then, and may resize otherwise than Pillow: near, not equal.
    expected = model.encode_image(model.transform(small_data.picture(0))[None])
    assert (image @ expected.T).item() > 0.95
    again = cornerstone.load(f"hf:{tmp_path / 'out'}")
    pixels = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(again.encode_image(pixels), model.encode_image(pixels), rtol=0, atol=1e-5)
    texts = [*TEXTS, "", CUT_AFTER_A_SENTENCE]
    torch.testing.assert_close(again.encode_text(texts), model.encode_text(texts), rtol=0, atol=1e-5)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "- data: `0123456789abcdef`" in card
    assert '"kind": "lotlip"' in card
    tower = open_tower(f"hf:{tmp_path / 'out'}")  # for a transfer
    with torch.no_grad():
        torch.testing.assert_close(tower(pixels).patches, model.module.image_tower(pixels).patches, rtol=0, atol=1e-5)


def test_metrics_of_the_run_are_in_the_card(tmp_path, tiny_tower):
    saved(tmp_path / "run" / "model", tiny_tower)
    result = tmp_path / "result.json"
    result.write_text(json.dumps({"eval/val/i2t_r1": 12.5, "details": {"eval/val/i2t_r1": {"queries": 8}}}))
    main(["export", str(tmp_path / "run" / "model"), "--out", str(tmp_path / "out"), "--metrics", str(result)])
    assert "| eval/val/i2t_r1 | 12.50 |" in (tmp_path / "out" / "README.md").read_text()


def test_what_transformers_has_not_is_copied_and_said(tmp_path, tiny_tower, capsys):
    model = cornerstone.load(saved(tmp_path / "model", tiny_tower, corner_mask=False))
    main(["export", str(tmp_path / "model"), "--out", str(tmp_path / "out")])
    assert "opens with Cornerstone only: its [CLS] attends to learnable tokens" in " ".join(
        capsys.readouterr().out.split()
    )
    card = (tmp_path / "out" / "README.md").read_text()
    assert "opens with Cornerstone only**: its [CLS] attends to learnable tokens" in card
    again = cornerstone.load(str(tmp_path / "out"))
    torch.testing.assert_close(again.encode_text(TEXTS), model.encode_text(TEXTS), rtol=0, atol=1e-6)
    import timm

    tower = timm.create_model(f"local-dir:{tmp_path / 'out' / 'image_tower'}", pretrained=True).eval()
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        found = torch.nn.functional.normalize(tower(pixels), dim=-1)
    torch.testing.assert_close(found, model.encode_image(pixels), rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["siglip", "naflex"])
def test_a_released_model_is_written_in_its_own_layout(tmp_path, small_data, family):
    make = getattr(tiny_released, family)
    folder = make(tmp_path / family, tiny_released.t5_like() if family == "siglip" else tiny_released.gemma_like())
    main(["export", folder, "--out", str(tmp_path / "out")])
    first, second = cornerstone.load(folder), cornerstone.load(f"hf:{tmp_path / 'out'}")
    torch.testing.assert_close(second.encode_text(TEXTS), first.encode_text(TEXTS), rtol=0, atol=1e-6)
    np.testing.assert_array_equal(second.pixels(small_data.picture(3)), first.pixels(small_data.picture(3)))
    assert "by the architecture that config.json names" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(("out", "said"), [("taken", "is not empty"), ("s3://bucket/x", "a folder of this machine")])
def test_where_it_cannot_be_written(tmp_path, out, said, capsys):
    folder = tiny_released.siglip(tmp_path / "taken", tiny_released.t5_like())
    with pytest.raises(SystemExit):
        main(["export", folder, "--out", out if "://" in out else str(tmp_path / out)])
    assert said in capsys.readouterr().out
