"""How LoTLIP's authors lay out weights and token ids: what is read of their released checkpoints.

B texts, T places, m corners.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from cornerstone.errors import CornerstoneError
from cornerstone.models.loading import misnamed

_WORDS = "text.transformer.embeddings.word_embeddings.weight"
_PREFIXES = {"text.transformer.": "text.bert.", "text.proj.": "text.project."}
_VISUAL = "visual.trunk."
_BUFFERS = ("position_ids", "token_type_ids")
_BERT = ("embeddings.position_embeddings.weight", "encoder.layer.0.intermediate.dense.bias", "pooler.dense.weight")
_NEEDED = (_WORDS, *(f"text.transformer.{name}" for name in _BERT), "text.proj.weight", "logit_scale")
"""Some weights that tell LoTLIP from other architectures, and the sizes of its text tower."""
_KNOWN = (*_PREFIXES, _VISUAL, "logit_scale")


class LotlipCheckpoint(NamedTuple):
    """A checkpoint in this project's names."""

    method: dict[str, Tensor]
    """The state of `Lotlip` but for its image tower."""
    image: dict[str, Tensor]
    """The state of the timm model (`TimmTower.model`)."""
    corners: int


def from_checkpoint(state: Mapping[str, Tensor], *, vocab_size: int) -> LotlipCheckpoint:
    """Rename the authors' weights; corners are the rows of the word embeddings from `vocab_size` on.

    Names may begin with `model.` or `module.`. Raises CornerstoneError if a weight is missing, unknown, or the
    embeddings have fewer rows than the vocabulary.
    """
    state = {_stripped(name): value for name, value in state.items()}
    left = {name: value for name, value in state.items() if not name.startswith(_KNOWN)}
    if said := misnamed([name for name in _NEEDED if name not in state], left):
        raise CornerstoneError(f"Not a LoTLIP checkpoint: {said}. Give the file that its authors released.")
    rows = len(state[_WORDS])
    if rows < vocab_size:
        raise CornerstoneError(
            f"The checkpoint's word embeddings have {rows} rows, fewer than the tokenizer's {vocab_size} ids: "
            f"give the tokenizer that it was trained with (bert-base-uncased has 30522)."
        )
    method, image = {"logit_scale": state.pop("logit_scale").reshape(1)}, {}
    words = state.pop(_WORDS)
    method["text.bert.embeddings.word_embeddings.weight"] = words[:vocab_size].clone()
    if rows > vocab_size:
        method["text.corners"] = words[vocab_size:].clone()
    for name, value in state.items():
        prefix = next((p for p in _PREFIXES if name.startswith(p)), "")
        if name.startswith(_VISUAL):
            image[name.removeprefix(_VISUAL)] = value
        elif not name.endswith(_BUFFERS):
            method[_PREFIXES[prefix] + name.removeprefix(prefix)] = value
    return LotlipCheckpoint(method, image, rows - vocab_size)


def without_corners(ids_BT: Tensor, *, vocab_size: int, corners: int) -> tuple[Tensor, Tensor]:
    """Ids (B, T − m) without the corners, and lengths (B), from ids whose places 1 .. m hold `vocab_size` + k.

    Padding is 0; a text's length reaches to its last id that is not 0. Raises CornerstoneError for another layout.
    """
    expected_m = torch.arange(vocab_size, vocab_size + corners, device=ids_BT.device)
    present_B = (ids_BT != 0).any(1)
    if ids_BT.shape[1] <= corners or not bool((ids_BT[present_B, 1 : 1 + corners] == expected_m).all()):
        raise CornerstoneError(
            f"Token ids of shape {tuple(ids_BT.shape)} do not have the {corners} corners {expected_m.tolist()} after "
            f"the first token: expected [CLS], corner 1 .. m, text, 0 for padding. Or give the texts themselves."
        )
    ids_BT = torch.cat([ids_BT[:, :1], ids_BT[:, 1 + corners :]], dim=1)
    if bool((ids_BT >= vocab_size).any()):
        raise CornerstoneError(f"Token ids hold {int(ids_BT.max())}, but the vocabulary ends at {vocab_size - 1}.")
    place_T = torch.arange(1, ids_BT.shape[1] + 1, device=ids_BT.device)
    return ids_BT, ((ids_BT != 0) * place_T).amax(1)


def _stripped(name: str) -> str:
    for prefix in ("module.", "model."):
        name = name.removeprefix(prefix)
    return name
