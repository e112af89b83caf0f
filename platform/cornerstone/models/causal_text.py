"""The causal language model of methods that are trained on documents: a Hugging Face OPT decoder with random weights.

B sequences, T tokens, E width.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import OPTConfig
from transformers.models.opt.modeling_opt import OPTDecoder

from cornerstone.errors import CornerstoneError
from cornerstone.recipes.language import CausalText

BeforeLayer = Callable[[int, Tensor], Tensor]
"""Called before each layer with its number and the hidden states (B, T, E); gives those that the layer reads."""


def opt_config(config: CausalText, vocab_size: int, **more: Any) -> OPTConfig:
    """OPT's architecture in a recipe's sizes, without dropout; `more` are other fields of `OPTConfig`."""
    return OPTConfig(
        vocab_size=vocab_size,
        hidden_size=config.width,
        word_embed_proj_dim=config.width,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        ffn_dim=4 * config.width,
        max_position_embeddings=config.positions,
        activation_function=config.activation,
        dropout=0.0,
        attention_dropout=0.0,
        pad_token_id=None,
        **more,
    )


class CausalDecoder(nn.Module):
    """Embeddings in, hidden states before the last norm out; attention stays inside each document.

    The last LayerNorm is left to the heads, each of which has its own (LCL: one before the LM head, one before the projection
    into the contrastive space).
    """

    def __init__(self, config: CausalText, vocab_size: int) -> None:
        """`vocab_size` counts the special tokens too."""
        super().__init__()
        self.config = config
        self.decoder = OPTDecoder(opt_config(config, vocab_size, _remove_final_layer_norm=True, use_cache=False))

    def embed(self, token_ids_BT: Tensor) -> Tensor:
        """(B, T, E): the rows of the embedding table, without positions."""
        embedded: Tensor = self.decoder.embed_tokens(token_ids_BT)
        return embedded

    def forward(self, x_BTE: Tensor, document_BT: Tensor, before_layer: BeforeLayer | None = None) -> Tensor:
        """(B, T, E) hidden states. A token attends to the tokens of its own document up to itself.

        What `before_layer` does happens between the layers (Flamingo's cross-attention).

        Raises CornerstoneError for more tokens than there are positions.
        """
        position_BT = positions(document_BT, self.config.restart_positions)
        if x_BTE.shape[1] > self.config.positions and int(position_BT.max()) >= self.config.positions:
            raise CornerstoneError(
                f"A sequence of {int(position_BT.max()) + 1} tokens does not fit the language model's "
                f"{self.config.positions} positions: raise --recipe.method.language.positions, or pack with a smaller --budget."
            )
        mask_B1TT = visible(document_BT)[:, None]
        hooks = []
        if (
            before_layer is not None
        ):  # a hook, since the other arguments of a layer differ between versions of transformers
            hooks = [
                layer.register_forward_pre_hook(partial(_changed, before_layer, number))
                for number, layer in enumerate(self.decoder.layers)
            ]
        try:
            hidden: Tensor = self.decoder(
                inputs_embeds=x_BTE, attention_mask=mask_B1TT, position_ids=position_BT
            ).last_hidden_state
        finally:
            for hook in hooks:
                hook.remove()
        return hidden


def _changed(before_layer: BeforeLayer, number: int, layer: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """A layer's arguments, of which the hidden states are the first."""
    return before_layer(number, arguments[0]), *arguments[1:]


def visible(document_BT: Tensor) -> Tensor:
    """(B, T, T) bool: whether a query sees a key. Padding sees padding, so that no row of the mask is empty."""
    same_BTT = document_BT[:, :, None] == document_BT[:, None, :]
    tokens = document_BT.shape[1]
    return same_BTT & torch.ones(tokens, tokens, dtype=torch.bool, device=document_BT.device).tril()


def positions(document_BT: Tensor, restart: bool) -> Tensor:
    """(B, T): the place of each token in its document or, without `restart`, in its sequence."""
    place_T = torch.arange(document_BT.shape[1], device=document_BT.device)
    if not restart:
        return place_T.expand_as(document_BT)
    begins_BT = torch.ones_like(document_BT, dtype=torch.bool)
    begins_BT[:, 1:] = document_BT[:, 1:] != document_BT[:, :-1]
    return place_T - torch.where(begins_BT, place_T, 0).cummax(dim=1).values
