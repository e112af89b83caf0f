"""Options of packing, the cache keys of an index of packed sequences, and the special token ids of a document."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from typing import Any, Literal

from cornerstone.data.texts import plain_tokenizer, special_ids, vocabulary_size
from cornerstone.errors import CornerstoneError
from cornerstone.hashing import digest

Rule = Literal["mmc4", "obelics", "laion"]
EDGES = 2
"""Number of tokens around an image: <BoI> and <EoI>."""
_PADDING = ("[PAD]", "<pad>", "<|pad|>")


@dataclass(frozen=True)
class PackingConfig:
    """How documents are packed into sequences (LCL, appendix A.1).

    | rule | images of a document that are used | a document that does not fit |
    |---|---|---|
    | `mmc4` | matched with `min_similarity` or more, at most `max_images` drawn | is cut before a sentence and its images |
    | `obelics` | at most `max_images` drawn | continues in the next sequence: text is cut anywhere, images are not cut |
    | `laion` | one, with one text | is left out |

    A document without images is left out. Under `mmc4` the part after the cut is left out too, as in the paper, unless
    `keep_surplus` is set: then it continues in another sequence.
    """

    token_budget: int = 2048
    """Tokens of a sequence, including image tokens, <BoI>, <EoI> and padding."""
    image_tokens: int = 196
    """Patch tokens of an image, without its <BoI> and <EoI>."""
    rule: Rule = "mmc4"
    min_similarity: float = 0.24
    max_images: int = 6
    keep_surplus: bool = False
    one_document: bool = False
    """Every sequence contains a piece of only one document: the baseline that packing is compared with."""
    groups_together: int = 4
    """Number of row groups whose documents are packed together: a sequence is read from these row groups only."""
    seed: int = 0
    """Seed of the choice of images if a document has more than `max_images`. The choice is the same in all epochs."""

    def __post_init__(self) -> None:
        needed = self.tokens_per_image + 2
        if self.image_tokens < 1 or self.token_budget < needed:
            raise CornerstoneError(
                f"--budget {self.token_budget}, --image-tokens {self.image_tokens}: expected --image-tokens of 1 or more, and "
                f"--budget of {needed} or more (an image with <BoI> and <EoI>, one text token, and <bos> or <eos>)."
            )
        if self.max_images < 1 or self.groups_together < 1:
            raise CornerstoneError(
                f"--max-images {self.max_images}, groups_together {self.groups_together}: expected 1 or more."
            )

    @property
    def tokens_per_image(self) -> int:
        """Patch tokens, <BoI> and <EoI>."""
        return self.image_tokens + EDGES


@dataclass(frozen=True)
class PackingKeys:
    """Cache keys of an index: the content hash of the documents, the hash of the `tokenizer.json` text, and the config."""

    data: str
    tokenizer: str
    config: PackingConfig

    @staticmethod
    def of(content_hash: str, tokenizer: str, config: PackingConfig) -> PackingKeys:
        """The keys, given the text of a `tokenizer.json`."""
        return PackingKeys(content_hash, hashlib.sha256(tokenizer.encode()).hexdigest()[:16], config)

    @staticmethod
    def read(named: dict[str, Any]) -> PackingKeys:
        """The keys from a manifest; the inverse of `named`."""
        config = PackingConfig(**{name: value for name, value in named.items() if name not in ("data", "tokenizer")})
        return PackingKeys(named["data"], named["tokenizer"], config)

    def named(self) -> dict[str, Any]:
        """Every key by name, as they are stored in a manifest."""
        return {"data": self.data, "tokenizer": self.tokenizer, **asdict(self.config)}

    def digest(self) -> str:
        """A short hash of all keys, used as the fingerprint of a packing task."""
        return digest(self.named())


@dataclass(frozen=True)
class SpecialIds:
    """Ids of the special tokens. `image` is the placeholder of a patch, which the model replaces by the patch embedding."""

    bos: int
    eos: int
    pad: int
    image: int
    boi: int
    eoi: int

    @staticmethod
    def of(tokenizer: str) -> SpecialIds:
        """The ids, given the text of a `tokenizer.json`.

        The begin, end and padding ids are the tokenizer's own (padding 0 if it has none). Three new ids follow its vocabulary,
        in the order of the authors' vocabulary: image, <BoI>, <EoI>. Raises CornerstoneError if the tokenizer has no tokens
        to begin and end a text with.
        """
        words = plain_tokenizer(tokenizer)
        pad = next((i for name in _PADDING if (i := words.token_to_id(name)) is not None), 0)
        size = vocabulary_size(words)
        return SpecialIds(*special_ids(words), pad, size, size + 1, size + 2)
