"""Pretrained causal language models by their Hugging Face name or folder."""

from __future__ import annotations

from typing import Any

import torch

from cornerstone.data.storage import Location
from cornerstone.errors import CornerstoneError, first_line
from cornerstone.models.language_model import LanguageModel, without_dropout
from cornerstone.runtime.hub import hub_answers

CAUSAL = ("ForCausalLM", "LMHeadModel")
"""How the architectures of causal language models end, as their configurations name them."""


def load_language_model(name: str) -> LanguageModel:
    """A pretrained language model, without dropout. CornerstoneError if it cannot be loaded, or is not causal."""
    return LanguageModel(_loaded(name), f"The language model {name}")


def _loaded(name: str) -> Any:
    """Its weights. CornerstoneError if it cannot be loaded, is not causal, or lacks some of them."""
    from transformers import AutoConfig, AutoModelForCausalLM

    local = Location.of(name).exists()
    offline = local or not hub_answers()
    try:
        config = AutoConfig.from_pretrained(name, local_files_only=offline)
    except Exception as error:  # a missing file, a network error and others
        raise CornerstoneError(f"Cannot load the language model {name!r}: {first_line(error)}. {_ELSEWHERE}") from error
    named = list(getattr(config, "architectures", None) or ())
    if config.is_encoder_decoder or not any(one.endswith(CAUSAL) for one in named):
        raise CornerstoneError(
            f"{name} is no causal language model (its architecture is {', '.join(named) or config.model_type}): expected one "
            f"that ends in {' or '.join(CAUSAL)}, such as lmsys/vicuna-7b-v1.5 (--language-model)."
        )
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            name,
            config=without_dropout(config),
            local_files_only=offline,
            output_loading_info=True,
            dtype=torch.float32,
        )
        model, loading = loaded
    except Exception as error:  # as above, and weights that do not fit
        raise CornerstoneError(f"Cannot load the language model {name!r}: {first_line(error)}. {_ELSEWHERE}") from error
    if missing := sorted(loading["missing_keys"]):
        raise CornerstoneError(
            f"The weights of the language model {name} lack {len(missing)} that it needs, {missing[0]} among them."
        )
    return model


_ELSEWHERE = "Without access to the Hugging Face hub, name a folder (--language-model)."
