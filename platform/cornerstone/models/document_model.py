"""What every method on interleaved documents shares: an image tower from scratch, a causal language model, the image tokens'
places in the sequence, saving and rebuilding.

B sequences, T tokens, N images in all of them, S pixels a side, P patches, V width of the tower, E of the language model.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, NamedTuple, Self, TypeVar

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from cornerstone.data.documents.batch import SequenceBatch
from cornerstone.data.documents.config import SpecialIds
from cornerstone.errors import CornerstoneError
from cornerstone.models.image_tower import TimmTower
from cornerstone.models.method import Inputs, Method
from cornerstone.objectives.gather import global_mean, summed


class Reading(NamedTuple):
    """What an evaluation asks of some documents. Features need not have length 1."""

    token_loss_B1: Tensor
    """Of each sequence the sum of −log p of its text targets."""
    correct_B1: Tensor
    """Of each sequence the targets that have the largest logit."""
    image_ND: Tensor
    """The feature of each image."""
    context_ND: Tensor
    """What its document said before it; methods without such a feature give zeros, with which no image is found."""
    compared_N: Tensor
    """Whether an image is looked for by its context."""


F = TypeVar("F", bound=tuple[Any, ...])


class DocumentModel(Method[SequenceBatch, F]):
    """An image tower and what reads its patches among the words of a document. Methods add their parts and their losses."""

    def __init__(self, config: Any, inputs: Inputs, seed: int = 0) -> None:
        """A subclass takes the same arguments, and draws what it adds inside `torch.random.fork_rng`, from `seed`."""
        super().__init__()
        if inputs.image_tower is None or inputs.special_ids is None:
            raise CornerstoneError(
                f"The method {config.kind!r} needs an image tower and the special ids of packed documents; given "
                f"{'no tower' if inputs.image_tower is None else 'no special ids'}."
            )
        self.config, self.inputs, self.ids = config, inputs, inputs.special_ids
        self.visual = inputs.image_tower

    @classmethod
    def build(cls, config: Any, inputs: Inputs, seed: int) -> Self:
        """The module to train."""
        return cls(config, inputs, seed)

    @property
    def image_tower(self) -> TimmTower:
        """The image tower, which a transfer run takes."""
        return self.visual

    @abstractmethod
    def reading(self, batch: SequenceBatch) -> Reading:
        """Losses and features of some documents, without a gradient."""

    @property
    def vocabulary(self) -> int:
        """Token ids, the three special ones of documents included."""
        return max(self.ids.image, self.ids.boi, self.ids.eoi, self.inputs.vocab_size - 1) + 1

    def patches(self, image_N3SS: Tensor) -> Tensor:
        """(N, P, V). Without any image the tower sees a black one, so that all workers call it equally often."""
        found: Tensor = self.visual(at_least_one(image_N3SS)).patches
        return found

    def described(self) -> dict[str, Any]:
        """What `rebuilt` needs besides the configuration."""
        return {"vocab_size": self.inputs.vocab_size, "special_ids": asdict(self.ids)}

    @classmethod
    def rebuilt(cls, config: Any, described: Mapping[str, Any], image_tower: TimmTower | None) -> Self:
        """The module of a saved model, its weights still to be loaded."""
        ids = SpecialIds(**described["special_ids"])
        width = image_tower.width if image_tower is not None else 0
        return cls(config, Inputs(described["vocab_size"], width, image_tower, special_ids=ids))


def inserted(x_BTE: Tensor, token_ids_BT: Tensor, image_id: int, tokens_NPE: Tensor, valid_N: Tensor) -> Tensor:
    """The embeddings with each image's tokens where its placeholders stand, in order; zeros if there is no picture.

    Raises CornerstoneError if there are more or fewer placeholders than image tokens.
    """
    place_BT = token_ids_BT == image_id
    images = len(valid_N)
    tokens_NPE = torch.where(valid_N[:, None, None], tokens_NPE[:images], 0).to(x_BTE.dtype)
    wanted = tokens_NPE.shape[0] * tokens_NPE.shape[1]
    if not x_BTE.is_cuda and int(place_BT.sum()) != wanted:  # on a GPU the count would have to be waited for
        raise CornerstoneError(
            f"The sequences have {int(place_BT.sum())} places for image tokens, and the tower gives {wanted} "
            f"({tokens_NPE.shape[1]} for each of {images} images): pack with --image-tokens {tokens_NPE.shape[1]}."
        )
    return x_BTE.masked_scatter(place_BT[..., None], tokens_NPE)


def image_numbers(batch: SequenceBatch) -> Tensor:
    """(B, T): which of the N images is the latest of its sequence up to each token, its <BoI> included; -1 before the first."""
    number_N = torch.arange(len(batch.image_row), device=batch.document.device)
    latest_BT = torch.full_like(batch.document, -1)
    latest_BT[batch.image_row, batch.image_at] = number_N
    return latest_BT.cummax(dim=1).values


def latest_image(batch: SequenceBatch) -> Tensor:
    """(B, T): which of the N images is the latest of its document up to each token, its <BoI> included.

    -1 before the first image of a document, at padding, and if there is no picture of the latest image.
    """
    latest_BT = image_numbers(batch)
    if not len(batch.image_row):
        return latest_BT
    document_N = batch.document[batch.image_row, batch.image_at]
    usable_BT = (document_N[latest_BT] == batch.document) & batch.image_valid[latest_BT]
    return torch.where(usable_BT, latest_BT, -1)


def without_contexts(token_loss_B1: Tensor, correct_B1: Tensor, image_ND: Tensor, batch: SequenceBatch) -> Reading:
    """What a method reads that has no feature of what its document said before an image."""
    compared_N = batch.image_valid & batch.text_before
    return Reading(token_loss_B1, correct_B1, image_ND, torch.zeros_like(image_ND), compared_N)


def generation_reports(
    token_loss_B1: Tensor, correct_B1: Tensor, tokens: Tensor, group: ProcessGroup | None
) -> dict[str, Tensor]:
    """The text loss of all workers as it is logged: in nats, in bits, and the share of targets that are right."""
    generation = global_mean(token_loss_B1.detach().sum(), tokens, group)
    accuracy = global_mean(correct_B1.sum(), tokens, group)
    return {"generation": generation, "bits_per_token": generation / math.log(2), "token_accuracy": accuracy}


def image_variance(image_ND: Tensor, valid_N: Tensor, group: ProcessGroup | None) -> Tensor:
    """1 − |mean feature|² of all workers' images, whose features have length 1: 0 if all are equal."""
    images = summed(valid_N.sum().float(), group).clamp(min=1)
    mean_D = summed((image_ND * valid_N[:, None]).sum(0), group) / images
    return 1 - mean_D.square().sum()


def at_least_one(image_N3SS: Tensor) -> Tensor:
    """The images, or a black one if there is none."""
    return image_N3SS if len(image_N3SS) else image_N3SS.new_zeros(1, *image_N3SS.shape[1:])
