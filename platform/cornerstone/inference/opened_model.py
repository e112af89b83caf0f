"""What `cornerstone.load` gives, whatever the model came from: features of images and texts, and how both are read.

B images or texts, S pixels a side, T tokens, D width of the features.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn

from cornerstone.data.batch import pad_lists
from cornerstone.data.pairs.image_input import ImageInput
from cornerstone.data.texts import TextInput
from cornerstone.errors import CornerstoneError

AT_A_TIME = 128
"""Images, or texts, of one forward pass."""


class OpenedModel(ABC):
    """An opened model with its tokenizer and transform; encoding needs a module with an image and a text tower."""

    module: nn.Module
    content: Mapping[str, str] = MappingProxyType({})
    """Hashes of what it was trained from (data, tokenizer, towers), as its run's recipe hash has them; {} if not saved."""

    def __init__(
        self, module: nn.Module, tokenizer_json: str, recipe: Mapping[str, Any], text_input: TextInput | None
    ) -> None:
        self.module, self.tokenizer_json, self.recipe = module.eval(), tokenizer_json, recipe
        self.text_input = text_input
        self.text_format = text_input.open() if text_input is not None else None

    @property
    @abstractmethod
    def name(self) -> str:
        """What messages call it: its method, or its released name."""

    @property
    def judged_by(self) -> str:
        """The evaluation task that judges it on whatever set; "": the tasks that a set is for."""
        return ""

    @property
    @abstractmethod
    def encoder(self) -> Any:
        """What has `encode_image`, `encode_text` and `similarity`; CornerstoneError if the model has not."""

    @property
    @abstractmethod
    def image_size(self) -> int:
        """Side of the square that the image tower sees, in pixels; CornerstoneError if there is none."""

    @property
    @abstractmethod
    def image_input(self) -> ImageInput:
        """How an evaluation reads images for it."""

    @property
    @abstractmethod
    def mean_std(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """What is subtracted from a pixel in [0, 1], and what it is then divided by, of each channel."""

    @abstractmethod
    def pixels(self, image: Image.Image | bytes) -> npt.NDArray[np.uint8]:
        """(3, S, S) of an image; BadImage for bytes that are none."""

    @property
    def device(self) -> torch.device:
        """Where the model computes; inputs are brought there."""
        return next(self.module.parameters()).device

    def to(self, device: torch.device | str) -> Self:
        """Move the model."""
        self.module.to(device)
        return self

    @torch.no_grad()
    def encode_image(self, images_B3SS: Tensor) -> Tensor:
        """(B, D), L2-normalised, from normalised floats as `transform` gives them, or from uint8 pixels.

        Of a method with several features of an image (BLIP-2's queries) they are (B, Q, D); `module.similarity` compares them.
        """
        return torch.cat([self.encoder.encode_image(part.to(self.device)) for part in images_B3SS.split(AT_A_TIME)])

    @torch.no_grad()
    def encode_patches(self, images_B3SS: Tensor) -> Tensor:
        """(B, P, D), L2-normalised: the patches of images, row by row, in the space of texts.

        CornerstoneError for a model whose patches are not in that space.
        """
        return torch.cat([self.encoder.encode_patches(part.to(self.device)) for part in images_B3SS.split(AT_A_TIME)])

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str] | Tensor, corners: bool = False) -> Tensor:
        """(B, D), L2-normalised. An empty string is encoded as what begins and ends a text."""
        if isinstance(texts, Tensor) or corners:
            raise CornerstoneError(
                f"{self.name} has no corner tokens, and reads texts, not ids: give a list of texts alone."
            )
        ids, lengths = self.padded(texts)
        parts = zip(ids.to(self.device).split(AT_A_TIME), lengths.to(self.device).split(AT_A_TIME), strict=True)
        return torch.cat([self.encoder.encode_text(i, n) for i, n in parts])

    def transform(self, image: Image.Image | bytes) -> Tensor:
        """Normalised floats (3, S, S) of an image.

        Give the encoded bytes if transparency, EXIF rotation and 16-bit greys are to be treated as in training.
        """
        if not isinstance(image, bytes | Image.Image):
            raise CornerstoneError(
                f"transform got {type(image).__name__} ({str(image)[:80]!r}): expected a PIL image, or the bytes of an image "
                f"file, as in transform(open(path, 'rb').read())."
            )
        return self.normalised(self.pixels(image))

    def normalised(self, pixels: npt.NDArray[np.uint8]) -> Tensor:
        """Normalised floats of an image's pixels."""
        mean, std = (torch.tensor(x).view(3, 1, 1) for x in self.mean_std)
        return (torch.from_numpy(pixels.copy()).float() / 255 - mean) / std

    def padded(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token ids (B, T), padded with 0, and lengths (B) of texts."""
        form = self.text_format
        if isinstance(texts, str):
            raise CornerstoneError("encode_text got one string: give a list of texts.")
        if form is None:
            raise CornerstoneError(f"The method {self.name!r} has no text tower.")
        return pad_lists([ids or form.empty for ids in form.encode_texts(texts)])
