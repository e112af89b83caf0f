"""What decides an index of packed sequences, and the ids that stand between the words of a document."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from typing import Any, Literal

from cornerstone.data.texts import plain_tokenizer, special_ids, vocabulary_size
from cornerstone.errors import CornerstoneError
from cornerstone.hashing import digest

Rule = Literal["mmc4", "obelics", "laion"]
EDGES = 2
"""Tokens around an image: <BoI> and <EoI>."""
_PADDING = ("[PAD]", "<pad>", "<|pad|>")


@dataclass(frozen=True)
class PackingConfig:
    """How documents become sequences (LCL, appendix A.1).

    | rule | images of a document | a document that is longer than the room |
    |---|---|---|
    | `mmc4` | matched with `min_similarity` or more, at most `max_images` drawn | is cut before a sentence and its images |
    | `obelics` | at most `max_images` drawn | goes on in the next sequence: text is cut anywhere, an image moves whole |
    | `laion` | one, with one text | is left out |

    A document without an image is left out. What is cut off under `mmc4` is left out as well, as in the paper, unless
    `keep_surplus` has it go on in another sequence.
    """

    token_budget: int = 2048
    """Tokens of a sequence, those of images, their edges and the padding counted."""
    image_tokens: int = 196
    """Patch tokens of an image; its <BoI> and <EoI> come on top."""
    rule: Rule = "mmc4"
    min_similarity: float = 0.24
    max_images: int = 6
    keep_surplus: bool = False
    one_document: bool = False
    """A document, or what goes on of one, never shares a sequence: the baseline that packing is compared with."""
    groups_together: int = 4
    """Row groups of the data whose documents are packed together: a sequence is read from these alone."""
    seed: int = 0
    """Draws the images that stay where there are too many, once for all epochs."""

    def __post_init__(self) -> None:
        needed = self.tokens_per_image + 2
        if self.image_tokens < 1 or self.token_budget < needed:
            raise CornerstoneError(
                f"A budget of {self.token_budget} tokens with {self.image_tokens} an image: expected --image-tokens of 1 or "
                f"more, and --budget of {needed} or more, room for an image, its edges, a word and <bos> or <eos>."
            )
        if self.max_images < 1 or self.groups_together < 1:
            raise CornerstoneError(
                f"--max-images {self.max_images}, --groups-together {self.groups_together}: expected 1 or more."
            )

    @property
    def tokens_per_image(self) -> int:
        """Patch tokens and the two edges."""
        return self.image_tokens + EDGES


@dataclass(frozen=True)
class PackingKeys:
    """What an index depends on: the documents' content, the tokenizer (the text of its `tokenizer.json`, hashed), the
    config. `named` lists them one by one.
    """

    data: str
    tokenizer: str
    config: PackingConfig

    @staticmethod
    def of(content_hash: str, tokenizer: str, config: PackingConfig) -> PackingKeys:
        """The keys for a tokenizer's text."""
        return PackingKeys(content_hash, hashlib.sha256(tokenizer.encode()).hexdigest()[:16], config)

    @staticmethod
    def read(named: dict[str, Any]) -> PackingKeys:
        """The keys as a manifest holds them."""
        config = PackingConfig(**{name: value for name, value in named.items() if name not in ("data", "tokenizer")})
        return PackingKeys(named["data"], named["tokenizer"], config)

    def named(self) -> dict[str, Any]:
        """Every key by name, as a manifest holds them."""
        return {"data": self.data, "tokenizer": self.tokenizer, **asdict(self.config)}

    def digest(self) -> str:
        """A short name for a folder."""
        return digest(self.named())


@dataclass(frozen=True)
class SpecialIds:
    """Ids of what is no word. `image` stands at every patch's place until the model puts the patch there."""

    bos: int
    eos: int
    pad: int
    image: int
    boi: int
    eoi: int

    @staticmethod
    def of(tokenizer: str) -> SpecialIds:
        """Of a tokenizer's text: its own first, last and padding ids (0 where it has none); three new ids after its last.

        The new ones follow each other as in the authors' vocabulary: image, <BoI>, <EoI>. Raises CornerstoneError where
        there is nothing that begins and ends a text.
        """
        words = plain_tokenizer(tokenizer)
        pad = next((i for name in _PADDING if (i := words.token_to_id(name)) is not None), 0)
        size = vocabulary_size(words)
        return SpecialIds(*special_ids(words), pad, size, size + 1, size + 2)
