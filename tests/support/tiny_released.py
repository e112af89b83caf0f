"""Small random models of each released family, in the layout of the library that releases them."""

from __future__ import annotations

import json
from pathlib import Path

import cornerstone.models  # noqa: F401 - repairs torchvision before open_clip is imported

# isort: split
import open_clip
import safetensors.torch
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AlignConfig,
    AlignModel,
    CLIPConfig,
    CLIPModel,
    PreTrainedTokenizerFast,
    Siglip2Config,
    Siglip2Model,
    SiglipConfig,
    SiglipModel,
)

from cornerstone.runtime.tokenizer import clip_tokenizer, load_tokenizer

TEXT = "a red blue bus sky tree is the on photo of cat two dogs run sea calm café bar 35 stars its open amp Two"
PIXELS = 32
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION = {**SIZES, "image_size": PIXELS, "patch_size": 8}


def words_tokenizer(first: tuple[str, ...], end: str) -> Tokenizer:
    """A vocabulary of words that ends a text with `end` and begins none, as T5's and Gemma's."""
    vocabulary = {word: i for i, word in enumerate((*first, *TEXT.split(), *".,;!'&_"))}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(single=f"$A {end}", special_tokens=[(end, vocabulary[end])])
    made.add_special_tokens(list(first))
    return made


def t5_like() -> Tokenizer:
    return words_tokenizer(("<pad>", "</s>", "<unk>"), "</s>")


def gemma_like() -> Tokenizer:
    return words_tokenizer(("<pad>", "<eos>", "<bos>", "<unk>"), "<eos>")


def _saved(folder: Path, model, tokenizer: str, seen: dict | None = None) -> str:
    for parameter in model.parameters():  # larger than libraries draw them, so that features differ
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    model.eval().save_pretrained(folder)
    (folder / "tokenizer.json").write_text(tokenizer)
    if seen:
        (folder / "preprocessor_config.json").write_text(json.dumps(seen))
    return str(folder)


def clip(folder: Path, context: int = 77, end: int = 49407) -> str:
    """CLIP, or Long-CLIP with more positions; `end` 2 is what old files say of the token that ends a text."""
    text = {
        **SIZES,
        "vocab_size": 49408,
        "max_position_embeddings": context,
        "eos_token_id": end,
        "bos_token_id": 49406,
        "intermediate_size": 4 * SIZES["hidden_size"],
    }
    config = CLIPConfig(text_config=text, vision_config=VISION, projection_dim=24)
    seen = {"size": PIXELS, "crop_size": PIXELS, "resample": 3, "do_center_crop": True}
    return _saved(folder, CLIPModel(config), clip_tokenizer(), seen)


def siglip(folder: Path, tokenizer: Tokenizer) -> str:
    text = {**SIZES, "vocab_size": 64, "max_position_embeddings": 64}
    return _saved(folder, SiglipModel(SiglipConfig(text_config=text, vision_config=VISION)), tokenizer.to_str())


def naflex(folder: Path, tokenizer: Tokenizer) -> str:
    """SigLIP 2 of any aspect ratio: at most 12 patches of 8 pixels, positions of a grid of 4 × 4."""
    text = {**SIZES, "vocab_size": 64, "max_position_embeddings": 64}
    vision = {**SIZES, "patch_size": 8, "num_patches": 16}
    seen = {"image_processor_type": "Siglip2ImageProcessor", "patch_size": 8, "max_num_patches": 12, "resample": 2}
    model = Siglip2Model(Siglip2Config(text_config=text, vision_config=vision))
    return _saved(folder, model, tokenizer.to_str(), seen)


def align(folder: Path) -> str:
    text = {**SIZES, "vocab_size": 30522, "max_position_embeddings": 128}
    vision = {"image_size": 600, "hidden_dim": 256, "in_channels": [32, 8], "out_channels": [8, 16], "strides": [1, 2]}
    vision |= {"kernel_sizes": [3, 3], "num_block_repeats": [1, 1], "expand_ratios": [1, 6], "depthwise_padding": []}
    vision |= {"width_coefficient": 1.0, "depth_coefficient": 1.0}
    config = AlignConfig(text_config=text, vision_config=vision, projection_dim=16)
    return _saved(folder, AlignModel(config), load_tokenizer("bert-base-uncased"))


def open_clip_folder(folder: Path, text: dict, tokenizer: Tokenizer | None = None, **options) -> str:
    """A model in open_clip's layout; `tokenizer` stands in the folder for that of a hub."""
    sizes = {"width": 64, "heads": 1, "layers": 2}
    vision = {"width": 64, "layers": 2, "head_width": 32, "patch_size": 8, "image_size": PIXELS}
    described = {"embed_dim": 24, "vision_cfg": vision, "text_cfg": {**sizes, **text}, **options.pop("model", {})}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": described, "preprocess_cfg": options}))
    model = open_clip.create_model(f"local-dir:{folder}", pretrained_text=False)
    safetensors.torch.save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    if tokenizer is not None:
        known = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="</s>", eos_token="</s>")
        known.save_pretrained(folder)
    return str(folder)
