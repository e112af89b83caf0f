"""A causal language model of Hugging Face as a part: embeddings in, hidden states out, a head, greedy answers.

B sequences, T tokens, E width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    OPTForCausalLM,
    PreTrainedModel,
)

from cornerstone.errors import CornerstoneError
from cornerstone.models.causal_text import opt_config
from cornerstone.recipes.language import CausalText

_RATES = ("dropout", "pdrop", "layerdrop")
"""What the names of a configuration's dropout rates contain."""


class LanguageModel(nn.Module):
    """Any causal language model whose logits are its output embedding of its last hidden states.

    Raises CornerstoneError for one that sees later tokens (an encoder), or whose logits are made otherwise.
    """

    def __init__(self, model: PreTrainedModel, name: str = "the language model") -> None:
        super().__init__()
        self.model: Any = model
        model.generation_config = GenerationConfig()  # penalties and temperatures of a chat model are no greedy answers
        _check(self, name)

    @classmethod
    def from_scratch(
        cls, config: CausalText, vocab_size: int, seed: int, first: int | None = None, last: int | None = None
    ) -> LanguageModel:
        """OPT's architecture with random weights, without dropout. `first` and `last` are what begins and ends a text."""
        described = opt_config(config, vocab_size, bos_token_id=first, eos_token_id=last)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(OPTForCausalLM(described))

    @property
    def head(self) -> nn.Module:
        """Logits (…, V) of hidden states (…, E)."""
        found: nn.Module = self.model.get_output_embeddings()
        return found

    @property
    def width(self) -> int:
        """E, of the embeddings that it reads."""
        return int(self.model.get_input_embeddings().weight.shape[1])

    @property
    def vocab_size(self) -> int:
        """V."""
        return int(self.model.get_input_embeddings().weight.shape[0])

    @property
    def positions(self) -> int | None:
        """Most tokens of a sequence; None if nothing bounds them."""
        return getattr(self.model.config, "max_position_embeddings", None)

    def embed(self, token_ids_BT: Tensor) -> Tensor:
        """(B, T, E)."""
        embedded: Tensor = self.model.get_input_embeddings()(token_ids_BT)
        return embedded

    def forward(self, x_BTE: Tensor, mask_BT: Tensor | None = None) -> Tensor:
        """(B, T, E) after the last norm. `mask_BT` is False at padding, behind which nothing may stand."""
        hidden: Tensor = self.model.base_model(
            inputs_embeds=x_BTE, attention_mask=None if mask_BT is None else mask_BT.long(), use_cache=False
        ).last_hidden_state
        return hidden

    @torch.no_grad()
    def generate(self, x_BTE: Tensor, length_B: Tensor, last: int, longest: int) -> list[list[int]]:
        """Greedy continuations of prompts, given as embeddings padded at their ends: at most `longest` ids before `last`."""
        width = x_BTE.shape[1]
        place_T = torch.arange(width, device=x_BTE.device)
        begin_B1 = (width - length_B)[:, None]  # the library continues the last place: padding goes to the front
        source_BT = (place_T - begin_B1).clamp(min=0)
        shifted = x_BTE.gather(1, source_BT[:, :, None].expand_as(x_BTE))
        settings = GenerationConfig(
            do_sample=False,
            num_beams=1,
            max_new_tokens=longest,
            eos_token_id=last,
            pad_token_id=last,
            bos_token_id=last,
        )
        found = self.model.generate(
            inputs_embeds=shifted,
            attention_mask=(place_T >= begin_B1).long(),
            generation_config=settings,
        )
        return [ids[: [*ids, last].index(last)] for ids in found.tolist()]

    def described(self) -> dict[str, Any]:
        """JSON from which `rebuilt` makes the same architecture."""
        found: dict[str, Any] = self.model.config.to_dict()
        return found

    @classmethod
    def rebuilt(cls, described: Mapping[str, Any]) -> LanguageModel:
        """The architecture that `described` describes, its weights still to be loaded."""
        config = AutoConfig.for_model(**described)
        return cls(AutoModelForCausalLM.from_config(config))


def without_dropout(config: Any) -> Any:
    """A configuration whose dropout rates are 0: a transfer has none, and answers are the same each time."""
    for name, value in config.to_dict().items():
        if isinstance(value, float) and any(part in name for part in _RATES):
            setattr(config, name, 0.0)
    return config


@torch.no_grad()
def _check(model: LanguageModel, name: str) -> None:
    """Refuse what is not causal, and what the head alone does not give: three tokens are read twice, the last one changed."""
    training, weight = model.training, model.model.get_input_embeddings().weight
    if weight.device.type == "meta":
        return
    model.eval()
    ids = torch.arange(3, device=weight.device).remainder(len(weight))[None]
    x_1TE, other_1TE = model.embed(ids), model.embed(ids)
    other_1TE[:, -1] = 10 * other_1TE[:, -1].flip(-1)  # a shift or a scale alone is lost in a norm
    hidden, changed = model(x_1TE), model(other_1TE)
    if not torch.allclose(hidden[:, :-1], changed[:, :-1], rtol=1e-3, atol=1e-4):
        raise CornerstoneError(
            f"{name} sees the tokens that it has to predict: expected a causal language model, such as lmsys/vicuna-7b-v1.5 "
            f"(--language-model)."
        )
    if model.head is None or not torch.allclose(
        model.head(hidden).float(), model.model(inputs_embeds=x_1TE).logits.float(), rtol=1e-2, atol=1e-2
    ):
        raise CornerstoneError(
            f"{name} changes its logits behind its output embedding (as by soft-capping or a scale), which the loss in chunks "
            f"does not: name another one (--language-model)."
        )
    model.train(training)
