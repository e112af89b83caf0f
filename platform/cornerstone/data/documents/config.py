"""The configuration that determines an index of packed sequences, and the special token ids of documents."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from typing import Any, Literal

from cornerstone.data.texts import plain_tokenizer, special_ids, vocabulary_size
from cornerstone.errors import CornerstoneError
from cornerstone.hashing import digest

Rule = Literal["mmc4", "obelics", "laion"]
EDGES = 2
"""Tokens around an image's patches: <BoI> and <EoI>."""
_PADDING = ("[PAD]", "<pad>", "<|pad|>")


@dataclass(frozen=True)
class PackingConfig:
    """How documents are packed into sequences (LCL, appendix A.1).

    | rule | images that are kept of a document | a document that exceeds the rest of a sequence |
    |---|---|---|
    | `mmc4` | similarity at least `min_similarity`, a random choice of `max_images` | is cut before a sentence and its images |
    | `obelics` | a random choice of `max_images` | continues in the next sequence: text is cut anywhere, images are not cut |
    | `laion` | exactly one, with one text | is left out |

    A document without an image is left out. Under `mmc4` the part that is cut off is left out too, as in the paper, unless
    `keep_surplus` is set: it then continues in another sequence.
    """

    token_budget: int = 2048
    """Length of a sequence in tokens, including image tokens, their <BoI> and <EoI>, and padding."""
    image_tokens: int = 196
    """Patch tokens of an image, without <BoI> and <EoI>."""
    rule: Rule = "mmc4"
    min_similarity: float = 0.24
    max_images: int = 6
    keep_surplus: bool = False
    one_document: bool = False
    """Never put two documents into one sequence: the baseline that packing is compared with."""
    groups_together: int = 4
    """Number of the data's row groups that are packed together: a sequence is read from these only."""
    seed: int = 0
    """Seed of the choice of images if a document has too many; the choice is the same in all epochs."""

    def __post_init__(self) -> None:
        needed = self.tokens_per_image + 2
        if self.image_tokens < 1 or self.token_budget < needed:
            raise CornerstoneError(
                f"A budget of {self.token_budget} tokens with {self.image_tokens} per image: expected --image-tokens 1 or "
                f"more, and --budget {needed} or more: an image with <BoI> and <EoI>, a word, and <bos> or <eos>."
            )
        if self.max_images < 1 or self.groups_together < 1:
            raise CornerstoneError(
                f"--max-images {self.max_images}, --groups-together {self.groups_together}: expected 1 or more."
            )

    @property
    def tokens_per_image(self) -> int:
        """Patch tokens, <BoI> and <EoI>."""
        return self.image_tokens + EDGES


@dataclass(frozen=True)
class PackingKeys:
    """What an index depends on: the documents' content hash, the hash of `tokenizer.json`, and the configuration."""

    data: str
    tokenizer: str
    config: PackingConfig

    @staticmethod
    def of(content_hash: str, tokenizer: str, config: PackingConfig) -> PackingKeys:
        """The keys for the text of a `tokenizer.json`."""
        return PackingKeys(content_hash, hashlib.sha256(tokenizer.encode()).hexdigest()[:16], config)

    @staticmethod
    def read(named: dict[str, Any]) -> PackingKeys:
        """The keys from a manifest; the inverse of `named`."""
        config = PackingConfig(**{name: value for name, value in named.items() if name not in ("data", "tokenizer")})
        return PackingKeys(named["data"], named["tokenizer"], config)

    def named(self) -> dict[str, Any]:
        """All keys by name, for a manifest."""
        return {"data": self.data, "tokenizer": self.tokenizer, **asdict(self.config)}

    def digest(self) -> str:
        """A short digest, for the name of a folder."""
        return digest(self.named())


@dataclass(frozen=True)
class SpecialIds:
    """Special token ids. `image` is the placeholder of every patch, which the model replaces by the patch's feature."""

    bos: int
    eos: int
    pad: int
    image: int
    boi: int
    eoi: int

    @staticmethod
    def of(tokenizer: str) -> SpecialIds:
        """From the text of a `tokenizer.json`: its first, last and padding ids (0 if it has no padding), and three new ids.

        The new ids follow its last one, in the order of the authors' vocabulary: image, <BoI>, <EoI>. Raises
        CornerstoneError if the tokenizer has no tokens that begin and end a text.
        """
        words = plain_tokenizer(tokenizer)
        pad = next((i for name in _PADDING if (i := words.token_to_id(name)) is not None), 0)
        size = vocabulary_size(words)
        return SpecialIds(*special_ids(words), pad, size, size + 1, size + 2)
