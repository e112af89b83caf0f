"""A causal language model that reads an image's patches and then writes its caption (LCL, appendix: captioning).

Kept of the original: patches through an MLP in front of the text, the loss on the text alone, greedy decoding. The original's
language model is pretrained: `inputs.language_model` brings one. Without it, one of `config.language` begins at random weights.

B pairs, P patches, V width of the patches, T tokens, E width of the language model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from cornerstone.data.pairs.batch import PairBatch
from cornerstone.errors import CornerstoneError
from cornerstone.models.causal_text import CausalDecoder
from cornerstone.models.image_tower import TimmTower
from cornerstone.models.language_model import LanguageModel
from cornerstone.models.method import Group, Inputs, Losses, Method, grouped
from cornerstone.models.tower_holder import TowerHolder
from cornerstone.objectives import token_losses
from cornerstone.objectives.gather import global_mean
from cornerstone.recipes.caption_transfer import CaptionTransferConfig


class Features(NamedTuple):
    """What the loss is made of."""

    token_loss_B1: Tensor
    """Of each caption the sum of −log p of its tokens."""
    correct_B1: Tensor


class CaptionTransfer(TowerHolder, Method[PairBatch, Features]):
    """Tower, MLP, language model. A batch may bring a frozen tower's patches (B, P, V) instead of images."""

    config: CaptionTransferConfig

    def __init__(self, config: CaptionTransferConfig, inputs: Inputs, seed: int = 0) -> None:
        super().__init__()
        if inputs.image_tower is None:
            raise CornerstoneError("Transfer to captioning needs an image tower, whose patches are read.")
        self.config, self.inputs = config, inputs
        self.hold(inputs.image_tower, config.frozen)
        inside: int = inputs.image_tower.model.num_features  # type: ignore[assignment]
        given, words = inputs.language_model, inputs.vocab_size
        width = config.language.width if given is None else given.width
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.to_tokens = nn.Sequential(nn.Linear(inside, width), nn.GELU(), nn.Linear(width, width))
            self.language = CausalDecoder(config.language, words) if given is None else given
            own_head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, words, bias=False))
            self.head = own_head if given is None else None

    @classmethod
    def build(cls, config: Any, inputs: Inputs, seed: int) -> Self:
        """The module to train."""
        return cls(config, inputs, seed)

    def forward(self, batch: PairBatch) -> Features:
        """The losses of the raw captions' tokens; what begins a caption is given, what ends it is predicted too."""
        tokens_BPE, ids_BT = self.image_tokens(batch.image), batch.raw_ids
        hidden = self._read(tokens_BPE, ids_BT)
        place_T = torch.arange(ids_BT.shape[1], device=ids_BT.device)
        target_BT = (place_T > 0) & (place_T < batch.raw_length[:, None]) & batch.valid[:, None]
        before_BP = ids_BT.new_zeros(tokens_BPE.shape[:2])
        losses = token_losses(
            hidden,
            torch.cat([before_BP, ids_BT], dim=1),
            torch.cat([before_BP.bool(), target_BT], dim=1),
            self.logits,
            vocabulary=self.inputs.vocab_size,
        )
        return Features(losses.sum_B1, losses.correct_B1)

    def image_tokens(self, image: Tensor) -> Tensor:
        """(B, P, E) from images (B, 3, S, S) or from a frozen tower's patches (B, P, V)."""
        patches_BPV = image
        if image.ndim != 3:
            tower = self.image_tower
            assert tower is not None, "refused when it was built"
            with torch.set_grad_enabled(torch.is_grad_enabled() and not self.config.frozen):
                patches_BPV = tower(image).patches
        tokens: Tensor = self.to_tokens(patches_BPV)
        return tokens

    def _read(self, tokens_BPE: Tensor, ids_BT: Tensor) -> Tensor:
        """(B, P + T, E): padding stands behind the text, where no earlier token sees it."""
        x = torch.cat([tokens_BPE, self.language.embed(ids_BT)], dim=1)
        if isinstance(self.language, LanguageModel):
            read: Tensor = self.language(x)
            return read
        hidden: Tensor = self.language(x, torch.zeros(x.shape[:2], dtype=torch.int64, device=x.device))
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """(…, V) of hidden states (…, E): by the head of a language model that was brought, or by the new one."""
        head = self.language.head if isinstance(self.language, LanguageModel) else self.head
        assert head is not None, "there is a new head where no language model was brought"
        found: Tensor = head(hidden)
        return found

    @torch.no_grad()
    def generate(self, image: Tensor, first: int, last: int, longest: int) -> list[list[int]]:
        """Greedy captions: for each image the ids between what begins and what ends a text, at most `longest`."""
        tokens_BPE = self.image_tokens(image)
        ids_BT = torch.full((len(image), 1), first, dtype=torch.int64, device=tokens_BPE.device)
        if isinstance(self.language, LanguageModel):
            x_BLE = torch.cat([tokens_BPE, self.language.embed(ids_BT)], dim=1)
            return self.language.generate(x_BLE, ids_BT.new_full((len(x_BLE),), x_BLE.shape[1]), last, longest)
        ended_B = torch.zeros(len(image), dtype=torch.bool, device=tokens_BPE.device)
        for _ in range(longest):
            next_B = self.logits(self._read(tokens_BPE, ids_BT)[:, -1]).argmax(-1)
            ids_BT = torch.cat([ids_BT, next_B.where(~ended_B, last)[:, None]], dim=1)
            ended_B |= next_B == last
            if bool(ended_B.all()):
                break
        return [ids[1 : [*ids[1:], last].index(last) + 1] for ids in ids_BT.tolist()]

    def losses(self, features: Features, batch: PairBatch, group: ProcessGroup | None = None) -> Losses:
        """The mean cross-entropy of a token."""
        targets = ((batch.raw_length - 1).clamp(min=0) * batch.valid).sum()
        accuracy = global_mean(features.correct_B1.sum(), targets, group)
        loss = global_mean(features.token_loss_B1.sum(), targets, group)
        return Losses({"generation": loss}, {"token_accuracy": accuracy})

    def parameter_groups(self) -> list[Group]:
        """The learning rates of the tower, and of a language model that was brought, are the new parts' times their factors."""
        if self.head is None:
            groups = grouped(self.to_tokens.parameters())
            groups += grouped(self.language.parameters(), self.config.language_lr_factor)
        else:
            groups = grouped([*self.to_tokens.parameters(), *self.language.parameters(), *self.head.parameters()])
        if self.visual is not None:
            groups += grouped(self.visual.parameters(), self.config.tower_lr_factor)
        return groups

    def described(self) -> dict[str, Any]:
        """What `rebuilt` needs besides the configuration."""
        brought = self.inputs.language_model
        return {"vocab_size": self.inputs.vocab_size} | (
            {} if brought is None else {"language_model": brought.described()}
        )

    @classmethod
    def rebuilt(cls, config: Any, described: Mapping[str, Any], image_tower: TimmTower | None) -> Self:
        """The module of a saved model, its weights still to be loaded."""
        width = image_tower.width if image_tower is not None else 0
        brought = LanguageModel.rebuilt(described["language_model"]) if "language_model" in described else None
        return cls(config, Inputs(described["vocab_size"], width, image_tower, language_model=brought))
