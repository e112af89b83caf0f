"""Released checkpoints become model folders that `cornerstone.load` opens."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor

from cornerstone.data.documents.config import SpecialIds
from cornerstone.data.storage import Location
from cornerstone.data.texts import FILE as TOKENIZER
from cornerstone.data.texts import plain_tokenizer, vocabulary_size
from cornerstone.errors import CornerstoneError
from cornerstone.hashing import as_json
from cornerstone.inference.lcl_checkpoint import Heads, from_checkpoint
from cornerstone.inference.longclip_checkpoint import from_checkpoint as long_clip_from_checkpoint
from cornerstone.inference.released.hugging_face import CLIP_MEAN, CLIP_STD
from cornerstone.inference.saved_model import save_model
from cornerstone.models.image_tower import VISUAL, build_image_tower
from cornerstone.models.lcl import Lcl
from cornerstone.models.loading import load_weights, why_unreadable
from cornerstone.models.method import Inputs

Say = Callable[[str], None]
SPECIALS = 3
"""Rows behind the vocabulary: the image's placeholder, <BoI>, <EoI>."""


def convert_lcl(source: str, out: str, tokenizer: str, heads: Heads | None = None, say: Say = print) -> None:
    """Write LCL's released weights as a model folder.

    Args:
        source: A `.pt`, `.bin` or `.safetensors` file with the authors' names.
        tokenizer: The text of a `tokenizer.json`; the released models' is CLIP's.
        heads: Numbers of attention heads where they are not one for every 64 places.

    Raises CornerstoneError if the file is no LCL checkpoint.
    """
    checkpoint = from_checkpoint(read_state(source), heads or _heads_in(source))
    tower = build_image_tower(checkpoint.config.image)
    words = checkpoint.rows - SPECIALS
    ids = SpecialIds(words - 2, words - 1, 0, words, words + 1, words + 2)
    module = Lcl(checkpoint.config, Inputs(words, tower.width, tower, special_ids=ids))
    load_weights(module, checkpoint.state, f"The weights in {source} are not those of one LCL model")
    known = vocabulary_size(plain_tokenizer(tokenizer))
    if known != words:
        say(
            f"The tokenizer has {known:,} ids, the checkpoint {words:,}: it is kept with the model, but encode_documents needs "
            f"ids of the tokenizer that the checkpoint was trained with."
        )
    recipe = {"name": "converted", "method": as_json(checkpoint.config), "source": Path(source).name}
    save_model(out, module, recipe=recipe, tokenizer_json=tokenizer)
    parameters = sum(p.numel() for p in module.parameters())
    visual = sum(v.numel() for n, v in checkpoint.state.items() if n.startswith(VISUAL))
    say(f"LCL: {parameters:,} parameters ({visual:,} of the image tower, {tower.size} px) in {out}")


def convert_long_clip(
    source: str, out: str, tokenizer: str, *, stretch: bool = False, half: bool = False, say: Say = print
) -> None:
    """Write Long-CLIP's released weights as a CLIP in the layout of transformers, which `cornerstone.load` opens as well.

    See `longclip_checkpoint.from_checkpoint` for `stretch` and `half`. Raises CornerstoneError if the file is no Long-CLIP.
    """
    from transformers import CLIPConfig, CLIPModel

    if "://" in out:
        raise CornerstoneError(f"Long-CLIP is written by transformers, to a folder of this machine: {out} is a URI.")
    config, state = long_clip_from_checkpoint(read_state(source), stretch=stretch, half=half)
    model = CLIPModel(CLIPConfig(**config))
    load_weights(model, state, f"The weights in {source} are not those of one Long-CLIP")
    text, size = config["text_config"], config["vision_config"]["image_size"]
    if (known := vocabulary_size(plain_tokenizer(tokenizer))) != text["vocab_size"]:
        say(
            f"The tokenizer has {known:,} ids, the checkpoint {text['vocab_size']:,}: only ids of its own can be encoded."
        )
    folder = Path(out).expanduser()
    model.save_pretrained(folder)
    (folder / TOKENIZER).write_text(tokenizer)
    (folder / "preprocessor_config.json").write_text(json.dumps(clip_preprocessing(size), indent=1) + "\n")
    parameters = sum(p.numel() for p in model.parameters())
    say(f"Long-CLIP: {parameters:,} parameters, {text['max_position_embeddings']} tokens, {size} px in {out}")


def clip_preprocessing(size: int) -> dict[str, object]:
    """The preprocessor_config.json of CLIP."""
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": size},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_convert_rgb": True,
        "do_normalize": True,
        "image_mean": list(CLIP_MEAN),
        "image_std": list(CLIP_STD),
    }


def read_state(source: str) -> Mapping[str, Tensor]:
    """The tensors of a checkpoint file. Only tensors are unpickled. CornerstoneError if it cannot be read."""
    place = Location.of(source)
    if not place.exists():
        raise CornerstoneError(f"There is no file {source}.")
    try:
        if source.endswith(".safetensors"):
            return safetensors.torch.load(place.read_bytes())
        with place.open_input() as file:
            loaded = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # of pickle, zip and safetensors, all of their own kinds
        raise CornerstoneError(f"{source} cannot be read as weights: {why_unreadable(error)}.") from error
    for name in ("state_dict", "model", "module"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(name), Mapping):
            loaded = loaded[name]
    if not isinstance(loaded, Mapping):
        raise CornerstoneError(f"{source} holds a {type(loaded).__name__}; expected a mapping of names to tensors.")
    return {name: value for name, value in loaded.items() if isinstance(value, Tensor)}


def _heads_in(source: str) -> Heads:
    """The numbers of heads in the file's metadata, as small reference files have them."""
    if not source.endswith(".safetensors") or not Path(source).is_file():
        return Heads()
    with safe_open(source, "pt") as file:
        said = {name: json.loads(value) for name, value in (file.metadata() or {}).items() if value.startswith("{")}
    vision, text, pool = (said.get(name, {}) for name in ("vision", "text", "pool"))
    width = vision.get("head_width", 0)
    return Heads(vision["width"] // width if width else 0, text.get("heads", 0), pool.get("attn_num_heads", 0))
