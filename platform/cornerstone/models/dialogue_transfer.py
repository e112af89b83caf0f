"""LLaVA-1.5 on an image tower: its patches, through an MLP, stand among the tokens of a causal language model.

Kept of the original: the two-layer MLP with GELU, the two stages, the patches in the place of <image>, the loss on the answers
alone, greedy answers. Not kept: batches of one modality each; a conversation has one image or none.

B conversations, P patches, V width of the patches, T tokens, L = P + T, E width of the language model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Self

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from cornerstone.data.conversations.batch import ConversationBatch
from cornerstone.data.storage import Location
from cornerstone.errors import CornerstoneError
from cornerstone.models.image_tower import TimmTower, without_last_layer
from cornerstone.models.language_model import LanguageModel
from cornerstone.models.method import Group, Inputs, Losses, Method, grouped
from cornerstone.models.tower_holder import TowerHolder
from cornerstone.objectives import token_losses
from cornerstone.objectives.gather import global_mean
from cornerstone.recipes.dialogue_transfer import DialogueTransferConfig, Stage


class Features(NamedTuple):
    """What the loss is made of."""

    token_loss_B1: Tensor
    """Of each conversation the sum of −log p of its learnt tokens."""
    correct_B1: Tensor


class DialogueTransfer(TowerHolder, Method[ConversationBatch, Features]):
    """Tower, projector, language model. A batch may bring a frozen tower's patches (B, P, V) instead of images."""

    config: DialogueTransferConfig

    def __init__(self, config: DialogueTransferConfig, inputs: Inputs, seed: int = 0) -> None:
        super().__init__()
        if inputs.image_tower is None:
            raise CornerstoneError("Transfer to dialogue needs an image tower, whose patches are read.")
        self.config, self.inputs = config, inputs
        brought = inputs.language_model
        self.language = (
            LanguageModel.from_scratch(config.language, inputs.vocab_size, seed) if brought is None else brought
        )
        self.hold(inputs.image_tower, config.frozen)
        whole = inputs.image_tower
        self._read = (whole if config.patches == "last" else without_last_layer(whole),)  # in a tuple: see `hold`
        inside: int = inputs.image_tower.model.num_features  # type: ignore[assignment]
        width = self.language.width
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.projector = nn.Sequential(nn.Linear(inside, width), nn.GELU(), nn.Linear(width, width))

    @classmethod
    def build(cls, config: Any, inputs: Inputs, seed: int) -> Self:
        """The module to train, of the recipe's stage."""
        made = cls(config, inputs, seed)
        if config.projector:
            made.projector.load_state_dict(_saved_projector(config.projector))
        made.learn(config.stage)
        return made

    def learn(self, stage: Stage) -> None:
        """What the steps from now on change: the projector alone, or all but a frozen tower and what is not read of it."""
        self.language.requires_grad_(stage == "instructions")
        if self.visual is not None:
            self.visual.requires_grad_(False)
            self._read[0].requires_grad_(stage == "instructions")

    def forward(self, batch: ConversationBatch) -> Features:
        """The losses of the learnt tokens."""
        x_BLE, source_BL, length_B = self.spliced(batch.image, batch.ids, batch.length, batch.image_place)
        within_BL = torch.arange(x_BLE.shape[1], device=x_BLE.device) < length_B[:, None]
        hidden = self.language(x_BLE, within_BL)
        patches = x_BLE.shape[1] - batch.ids.shape[1]
        ids_BL = torch.cat([batch.ids.new_zeros(len(batch.ids), patches), batch.ids], dim=1).gather(1, source_BL)
        marked_BT = batch.target & batch.valid[:, None]
        marked_BL = torch.cat([marked_BT.new_zeros(len(marked_BT), patches), marked_BT], dim=1).gather(1, source_BL)
        losses = token_losses(
            hidden, ids_BL, marked_BL & within_BL, self.language.head, vocabulary=self.language.vocab_size
        )
        return Features(losses.sum_B1, losses.correct_B1)

    def spliced(
        self, image: Tensor, ids_BT: Tensor, length_B: Tensor, place_B: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Embeddings with the patches at their place, padded at the end, and how long each sequence is.

        Returns (B, L, E), the index (B, L) of each place in [patches, tokens], and (B,).
        """
        tokens_BPE = self.projector(self.patches(image))
        patches, words = tokens_BPE.shape[1], ids_BT.shape[1]
        both_BLE = torch.cat([tokens_BPE, self.language.embed(ids_BT).to(tokens_BPE.dtype)], dim=1)
        place_L = torch.arange(patches + words, device=ids_BT.device).expand(len(ids_BT), -1)
        before_B1, shown_B1 = place_B[:, None], (place_B >= 0)[:, None]
        in_image = (place_L >= before_B1) & (place_L < before_B1 + patches)
        behind = place_L >= before_B1 + patches
        of_shown = torch.where(behind, place_L, torch.where(in_image, place_L - before_B1, place_L + patches))
        source_BL = torch.where(shown_B1, of_shown, place_L + patches).clamp(max=patches + words - 1)
        x_BLE = both_BLE.gather(1, source_BL[:, :, None].expand(-1, -1, both_BLE.shape[2]))
        return x_BLE, source_BL, length_B + patches * (place_B >= 0)

    def patches(self, image: Tensor) -> Tensor:
        """(B, P, V) from images (B, 3, S, S), or from patches."""
        if image.ndim == 3:
            return image
        (tower,) = self._read
        learnt = self.visual is not None and any(parameter.requires_grad for parameter in tower.parameters())
        with torch.set_grad_enabled(torch.is_grad_enabled() and learnt):
            found: Tensor = tower(image).patches
        return found

    @torch.no_grad()
    def generate(
        self, image: Tensor, ids_BT: Tensor, length_B: Tensor, place_B: Tensor, last: int, longest: int
    ) -> list[list[int]]:
        """Greedy answers: of each prompt the ids before what ends an answer, at most `longest`."""
        x_BLE, _, total_B = self.spliced(image, ids_BT, length_B, place_B)
        longest_prompt = int(total_B.max())
        return self.language.generate(x_BLE[:, :longest_prompt], total_B, last, longest)

    def losses(self, features: Features, batch: ConversationBatch, group: ProcessGroup | None = None) -> Losses:
        """The mean cross-entropy of a learnt token."""
        targets = (batch.target[:, 1:] & batch.valid[:, None]).sum() + self._begun_by_image(batch)
        accuracy = global_mean(features.correct_B1.sum(), targets, group)
        loss = global_mean(features.token_loss_B1.sum(), targets, group)
        return Losses({"generation": loss}, {"token_accuracy": accuracy})

    @staticmethod
    def _begun_by_image(batch: ConversationBatch) -> Tensor:
        """Conversations whose first token is learnt, since an image stands before it."""
        return (batch.target[:, 0] & batch.valid & (batch.image_place == 0)).sum()

    def parameter_groups(self) -> list[Group]:
        """The tower's learning rate is the other parts' times the factor."""
        groups = grouped([*self.projector.parameters(), *self.language.parameters()])
        if self.visual is not None:
            groups += grouped(self.visual.parameters(), self.config.tower_lr_factor)
        return groups

    def described(self) -> dict[str, Any]:
        """What `rebuilt` needs besides the configuration."""
        return {"vocab_size": self.inputs.vocab_size, "language_model": self.language.described()}

    @classmethod
    def rebuilt(cls, config: Any, described: Mapping[str, Any], image_tower: TimmTower | None) -> Self:
        """The module of a saved model, its weights still to be loaded."""
        width = image_tower.width if image_tower is not None else 0
        language = LanguageModel.rebuilt(described["language_model"])
        return cls(config, Inputs(described["vocab_size"], width, image_tower, language_model=language))


def _saved_projector(model: str) -> dict[str, Tensor]:
    """The projector's weights in the folder of a saved model. CornerstoneError if it has none."""
    place, begins = Location.of(model), "projector."
    if not place.join("model.safetensors").exists():
        raise CornerstoneError(f"No model of the first stage at {place}: give a run's folder `model`.")
    tensors = safetensors.torch.load(place.join("model.safetensors").read_bytes())
    found = {name.removeprefix(begins): value for name, value in tensors.items() if name.startswith(begins)}
    if not found:
        raise CornerstoneError(f"The model at {place} has no projector: it is no transfer to dialogue.")
    return found
