"""The contract of a text tower, and how its configuration finds its module.

To add one: its configuration in `recipes/towers.py`, whose `implementation` names the module and whose `format` names how
texts become token ids (`data/texts.py`), and its module beside `corner_text.py`. Declare it as the type of the method's field
`text` (as `LotlipConfig` does): a saved model is opened by the declared type.

B texts, T their tokens, m extra features, M = 1 + m, E width inside, D width of the features.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from cornerstone.errors import CornerstoneError
from cornerstone.recipes.method import imported
from cornerstone.recipes.towers import TextTowerConfig

ROUND = 8
"""Tokens: on a GPU the length of a batch of texts is a multiple of it."""


class TextFeatures(NamedTuple):
    """What a text tower gives. Pooled and extra features are projected and L2-normalised, in fp32 at least."""

    pooled_BD: Tensor
    """The text's feature."""
    extra_BmD: Tensor | None
    """The extra ones, if asked for."""
    tokens_BTE: Tensor | None
    """The last hidden state of the text's tokens (of a BERT [CLS] first), if asked for; what lies beyond a text's length is
    arbitrary."""

    @property
    def all_BMD(self) -> Tensor:
        """The pooled feature, then the extra ones."""
        pooled_B1D = self.pooled_BD[:, None]
        return pooled_B1D if self.extra_BmD is None else torch.cat([pooled_B1D, self.extra_BmD], dim=1)


class TextTower(nn.Module, ABC):
    """Token ids to features. The tower fills `reserved_tokens` places of the token limit itself."""

    @classmethod
    @abstractmethod
    def build(
        cls, config: Any, vocab_size: int, width: int, seed: int, described: Mapping[str, Any] | None = None
    ) -> Self:
        """The tower of a recipe, its features `width` long. With `described` a saved one, its weights still to be loaded."""

    @classmethod
    def pretrained(cls, config: Any, vocab_size: int) -> tuple[nn.Module, dict[str, Any]]:
        """What a recipe's `name` loads, and what its configuration says beside the shapes: both enter the recipe's hash."""
        raise CornerstoneError(
            f"{cls.__name__} starts at random, but {config.name!r} is named: leave --recipe.method.text.name empty."
        )

    @classmethod
    def most_tokens(cls, config: Any) -> int | None:
        """Most tokens that the tower of a recipe can read, those that it adds included; None: texts of any length."""
        return None

    @classmethod
    def flops(cls, config: Any, tokens: int, width: int) -> float:
        """Floating-point operations of the pooled feature of one text of so many tokens; NaN if no formula is known here.

        `tokens` are the places of the token limit, reserved ones included; `width` is D.
        """
        return math.nan

    @property
    @abstractmethod
    def reserved_tokens(self) -> int:
        """Places of the token limit that the tower fills itself."""

    @property
    def extra_features(self) -> int:
        """Features beside the pooled one: reserved tokens that have one each."""
        return 0

    @property
    @abstractmethod
    def token_width(self) -> int:
        """E."""

    @abstractmethod
    def pooling_parameters(self) -> Iterable[nn.Parameter]:
        """What the pooled and extra features alone use: a method that reads the tokens does not train it."""

    @abstractmethod
    def described(self) -> dict[str, Any]:
        """What `build` needs to make it again without the folder or the hub that it came from."""

    @abstractmethod
    def forward(
        self, ids_BT: Tensor, length_B: Tensor, *, extra: bool = True, tokens: bool = False, buckets: int = 1
    ) -> TextFeatures:
        """Features of texts; `extra` and `tokens` ask for more than the pooled one. `buckets`: length buckets of a batch."""


def build_text_tower(
    config: TextTowerConfig, vocab_size: int, width: int, seed: int, described: Mapping[str, Any] | None = None
) -> TextTower:
    """The tower that a configuration names. CornerstoneError if it cannot be imported or built."""
    tower: TextTower = imported(config.implementation).build(config, vocab_size, width, seed, described)
    return tower


def trimmed(longest: int, device: torch.device) -> int:
    """Tokens to which texts are cut or padded: the longest; on a GPU rounded up, since its kernels like few shapes."""
    return longest if device.type == "cpu" else -(-longest // ROUND) * ROUND


def in_buckets(
    features: Callable[[Tensor, Tensor], TextFeatures], ids_BT: Tensor, length_B: Tensor, buckets: int
) -> TextFeatures:
    """`features(ids, lengths)` of texts that are sorted by length and run in so many groups of equal count.

    The result has the given order. The number of calls does not depend on the lengths, so that all workers make equally many.
    """
    if buckets <= 1 or len(ids_BT) == 1:
        return features(ids_BT, length_B)
    order = length_B.argsort(stable=True)
    groups = order.tensor_split(min(buckets, len(order)))
    found = [features(ids_BT[group], length_B[group]) for group in groups]
    back = order.argsort()
    longest = max((one.tokens_BTE.shape[1] for one in found if one.tokens_BTE is not None), default=0)
    return TextFeatures(
        torch.cat([one.pooled_BD for one in found])[back],
        _joined([one.extra_BmD for one in found], back),
        _joined([_padded(one.tokens_BTE, longest) for one in found], back),
    )


def _joined(parts: list[Tensor | None], order: Tensor) -> Tensor | None:
    given = [part for part in parts if part is not None]
    return torch.cat(given)[order] if given else None


def _padded(tokens_BTE: Tensor | None, longest: int) -> Tensor | None:
    return None if tokens_BTE is None else functional.pad(tokens_BTE, (0, 0, 0, longest - tokens_BTE.shape[1]))
