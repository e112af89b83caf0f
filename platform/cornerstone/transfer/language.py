"""The language model of a transfer: a pretrained one by name or folder, or OPT's architecture with random weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cornerstone.data.storage import Location
from cornerstone.data.texts import FILE as TOKENIZER
from cornerstone.data.texts import plain_tokenizer, special_ids, vocabulary_size
from cornerstone.errors import CornerstoneError
from cornerstone.inference.language_models import load_language_model
from cornerstone.models.attention_pooling import usual_heads
from cornerstone.models.language_model import LanguageModel
from cornerstone.recipes.language import CausalText
from cornerstone.runtime.tokenizer import load_tokenizer
from cornerstone.transfer.options import Options

FROM_SCRATCH = (
    "The language model begins at random weights and is trained with the head; the paper's is a pretrained one "
    "(--language-model)."
)


@dataclass(frozen=True)
class Language:
    """A tokenizer, what begins and ends a text, and how a fresh language model of it is made."""

    tokenizer: str
    """The text of its `tokenizer.json`."""
    first: int | None
    last: int
    vocab_size: int
    make: Callable[[int], LanguageModel]
    """By the seed of random weights; a pretrained one is the same for each seed."""
    pretrained: str = ""
    """Its name; "": random weights."""
    notes: tuple[str, ...] = ()

    @property
    def ends(self) -> tuple[int, int]:
        """What begins and what ends a text; where nothing begins one, what ends it stands there too, as in OPT."""
        return self.last if self.first is None else self.first, self.last


def open_language(options: Options, beside: Location, positions: int) -> Language:
    """What --language-model names, or OPT's architecture of --text-width and --text-layers, for sequences of `positions`.

    `beside` is the folder whose tokenizer is taken if none is named. Raises CornerstoneError for a model that is not causal or
    has too few positions, and for a tokenizer that lacks what ends a text, or has more tokens than the model.
    """
    if options.language_model:
        return _pretrained(options.language_model, options, positions)
    own = beside.join(TOKENIZER)
    if not options.tokenizer and not own.exists():
        raise CornerstoneError(f"No tokenizer: {beside} keeps none beside its shards. Name one with --tokenizer.")
    text = load_tokenizer(options.tokenizer) if options.tokenizer else own.read_text()
    tokenizer = plain_tokenizer(text)
    words, (first, last) = vocabulary_size(tokenizer), special_ids(tokenizer)

    def make(seed: int) -> LanguageModel:
        width = options.text_width
        config = CausalText(width, options.text_layers, usual_heads(width), positions)
        return LanguageModel.from_scratch(config, words, seed, first, last)

    return Language(text, first, last, words, make, notes=(FROM_SCRATCH,))


def _pretrained(name: str, options: Options, positions: int) -> Language:
    text = load_tokenizer(options.tokenizer or name)
    model = load_language_model(name)
    if model.positions is not None and model.positions < positions:
        raise CornerstoneError(
            f"The language model {name} has {model.positions:,} positions, but {positions:,} are asked for: give a smaller "
            f"--token-limit."
        )
    tokenizer = plain_tokenizer(text)
    if (words := vocabulary_size(tokenizer)) > model.vocab_size:
        raise CornerstoneError(
            f"The tokenizer {options.tokenizer or name} has {words:,} tokens, the language model {name} {model.vocab_size:,}: "
            f"name the model's own (--tokenizer)."
        )
    config = model.model.config
    first, last = _one(config.bos_token_id), _one(config.eos_token_id)
    for what, number in (("begins", first), ("ends", last)):
        if number is not None and tokenizer.id_to_token(number) is None:
            raise CornerstoneError(
                f"What {what} a text of {name} is the token {number}, which the tokenizer {options.tokenizer or name} lacks: "
                f"name the model's own (--tokenizer)."
            )
    if last is None:
        raise CornerstoneError(
            f"The language model {name} names no token that ends a text (eos_token_id in its config.json): an answer would "
            f"never end. Name another model (--language-model)."
        )
    return Language(text, first, last, model.vocab_size, lambda seed: copy.deepcopy(model), pretrained=name)


def _one(token: Any) -> int | None:
    """Of several tokens that end a text, the first."""
    found = token[0] if isinstance(token, list | tuple) else token
    return None if found is None else int(found)
