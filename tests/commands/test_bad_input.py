"""What a user may give by mistake, as it is typed: the message names what is wrong and what to change. Nothing starts Ray."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import tiny_released
import torch
from transformers import BertConfig, BertModel

from cornerstone.cli import main
from cornerstone.data.documents import PackingConfig
from cornerstone.data.parallel import map_here
from cornerstone.data.records import Document, Segment
from cornerstone.data.shards import ShardWriter
from cornerstone.data.texts import plain_tokenizer, vocabulary_size
from cornerstone.jobs import packing


class Harmful:
    """What a pickle may hold beside tensors."""

    def __reduce__(self):
        return print, ("unpickled",)


@pytest.fixture(scope="module")
def places(tmp_path_factory, pairs_folder, tiny_tower, small_data, wordpiece):
    """Folders and files by the names that the commands below use."""
    root = tmp_path_factory.mktemp("bad")
    torch.save({"state_dict": {"layer": Harmful()}}, root / "harmful.pt")
    safetensors.torch.save_file({"a.weight": torch.zeros(3), "b.bias": torch.zeros(2)}, root / "other.safetensors")
    for name, file in (("hf", "model.safetensors"), ("oc", "open_clip_model.safetensors")):
        folder = root / name
        made = tiny_released.clip(folder) if name == "hf" else tiny_released.open_clip_folder(folder, {})
        shutil.copytree(made, root / f"{name}-pickle")
        (root / f"{name}-pickle" / file).unlink()
        for pickled in ("pytorch_model.bin", "open_clip_pytorch_model.bin"):
            shutil.copy(root / "harmful.pt", root / f"{name}-pickle" / pickled)
    shutil.copytree(tiny_tower, root / "tower-pickle")
    (root / "tower-pickle" / "model.safetensors").unlink()
    shutil.copy(root / "harmful.pt", root / "tower-pickle" / "pytorch_model.bin")
    words = vocabulary_size(plain_tokenizer(wordpiece.read_text()))
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=words, max_position_embeddings=64, **sizes)).save_pretrained(root / "bert")
    broken = [small_data.pair(i, **({"image": b"torn"} if i < 3 else {})) for i in range(20)]
    small_data.write(root / "torn", broken)
    small_data.write(root / "lossy", map(small_data.pair, range(20)), source={"format": "coco", "quarantined": 5})
    (root / "plain").mkdir()
    (root / "plain" / "tokenizer.json").write_text(tiny_released.t5_like().to_str().replace("</s>", "#"))
    with ShardWriter(root / "documents", name="documents", kind="documents") as writer:
        for i in range(8):
            image = Segment(image=small_data.picture(i), extra=json.dumps({"matched_sim": 0.5}))
            writer.add(Document(str(i), (image, Segment(text="one two three"))))
    config = PackingConfig(token_budget=64, image_tokens=4)
    packing.write_packing(str(root / "documents"), str(root / "packed"), wordpiece.read_text(), config, mapped=map_here)
    named = {path.name.replace(".", "_").replace("-", "_"): str(path) for path in root.iterdir()}
    return {**named, "root": str(root), "pairs": pairs_folder, "tower": tiny_tower, "tokenizer": str(wordpiece)}


PICKLE = "it is a pickle of more than tensors, .*only tensors are unpickled"
TRAIN = "train --preset photos --train {pairs} --tokenizer {tokenizer} --batch-size 8 --steps 4"
LCL = "train --preset scenes-lcl --batch-size 2 --steps 4"
LOTLIP = {
    "convert lotlip {other_safetensors} --tokenizer {tokenizer} --out {root}/x": "Not a LoTLIP checkpoint: missing 6: "
    "logit_scale, .*; left over 2: a.weight (3,), b.bias (2,)",
    "convert lotlip {harmful_pt} --tokenizer {tokenizer} --out {root}/x": "cannot be read as weights: " + PICKLE,
    "evaluate {hf_pickle} --data {pairs}": "Cannot open .*: " + PICKLE,
    "evaluate {oc_pickle} --data {pairs}": "Cannot open .*: " + PICKLE,
    TRAIN
    + " --image-tower {tower_pickle} --recipe.method.image.size 32": "Cannot load the image tower .*weights_only=True blocked",
    TRAIN + " --image-tower {tower} --recipe.method.image.size 32 --recipe.method.text.name {bert}"
    " --recipe.method.text.token-limit 128": "has 64 positions, fewer than the token limit 128: lower "
    "--recipe.method.text.token-limit",
    "evaluate {hf} --data {torn}": "3 of the 20 rows of the evaluation set torn have no image that can be read, more than "
    "1.0%: `cornerstone data verify .*torn` names them; repair the set, or allow more with --bad-row-limit SHARE",
    "evaluate {hf} --data {lossy}": "5 of the 25 rows of the evaluation set lossy were left out when it was imported, more "
    "than 1.0% .*quarantine.jsonl.*--bad-row-limit",
    "evaluate open_clip:ViT-B-61/openai --data {pairs}": "did you mean 'ViT-B-16'",
    "evaluate hf:openai/clip-vit-base-patch61 --data {pairs}": "does not answer.*did you mean 'openai/clip-vit-base-patch16'",
    "transfer hf:openai/clip-vit-base-patch61 --train {pairs} --eval {pairs}": "did you mean 'openai/clip-vit-base-patch16'",
}
DOCUMENTS = {
    "data pack {pairs} --tokenizer {tokenizer} --out {root}/x": "holds pairs, but documents are needed",
    "data pack {documents} --tokenizer {plain} --out {root}/x": "no tokens that begin and end a text.*Use a BERT tokenizer",
    "data pack {documents} --tokenizer {tokenizer} --budget 100 --out {root}/x": "expected --image-tokens of 1 or more, and "
    "--budget of 200 or more",
    LCL
    + " --train {pairs}": "holds pairs, but packed documents are needed here. Make documents of them with `cornerstone",
    LCL
    + " --train {documents}": "holds documents, but packed documents are needed here. Pack them: `cornerstone data pack",
    LCL
    + " --train {packed}": "has places for 4 tokens of an image, but the method 'lcl' gives 16 at 64 pixels: pack the "
    "documents with --image-tokens 16",
    LCL
    + " --train {packed} --recipe.method.image.size 32": "Images of 64 pixels do not fit the image tower, which sees 32: "
    "set --recipe.data.image-size 32",
    TRAIN.replace("{pairs}", "{documents}"): "holds documents, but pairs are needed",
    TRAIN.replace("{pairs}", "{packed}"): "holds packed documents, but pairs are needed",
    "transfer {hf} --train {pairs} --eval {pairs} --image-size 64": "sees 32 pixels, but --image-size 64 was given",
}


@pytest.mark.parametrize("command", [*LOTLIP, *DOCUMENTS])
def test_the_message_says_what_is_wrong_and_what_to_change(command, places, capsys, monkeypatch):
    expected = (LOTLIP | DOCUMENTS)[command]
    for module in ("hugging_face", "hub", "open_clip_models"):
        monkeypatch.setattr(f"cornerstone.inference.released.{module}.hub_answers", lambda: False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(SystemExit) as ended:
        main([part.format(**places) for part in command.split()])
    said = capsys.readouterr().out
    assert ended.value.code == 1
    assert re.search(re.escape(expected).replace(r"\.\*", ".*"), said), said
    assert "Traceback" not in said
    assert "unpickled\n" not in said
    assert not (Path(places["root"]) / "x").exists()


def test_a_share_of_missing_images_may_be_allowed(places, capsys):
    main(["evaluate", places["hf"], "--data", places["torn"], "--bad-row-limit", "0.2", "--device", "cpu"])
    said = capsys.readouterr().out
    assert re.search(r"eval/torn/rows_left_out\s+3", said), said
    main(["evaluate", places["hf"], "--data", places["lossy"], "--bad-row-limit", "0.3", "--device", "cpu"])
    assert "lossy: 20 rows" in (said := capsys.readouterr().out)
    assert "5 left out at import" in said


@pytest.mark.parametrize("option", ["no-corner-mask", "registers"])
def test_a_mask_without_corners_is_said_to_have_no_effect(option, places, capsys):
    given = TRAIN.format(**places) + f" --image-tower {places['tower']} --recipe.method.image.size 32 --dry-run"
    given += " --recipe.method.text.corner-tokens 0 --recipe.method.text.no-corner-mask"
    main([*given.split(), *(["--recipe.method.text.registers"] if option == "registers" else [])])
    said = capsys.readouterr().out
    assert said.count(f"--recipe.method.text.{option} has no effect with 0 learnable tokens") == 1
