"""`cornerstone data pack`: plan sequences of a fixed number of tokens."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import tyro

from cornerstone.commands.terminal import bar, say


@dataclass(frozen=True)
class PackCommand:
    """Plan which documents share a sequence of a fixed number of tokens (LCL); no document is copied."""

    data: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DIR")]
    """Folder or URI of document shards."""
    tokenizer: str
    """Name or folder; a copy is stored with the index."""
    out: str
    """A new folder or URI for the index."""
    budget: int = 2048
    """Tokens per sequence."""
    image_tokens: int = 196
    """Patch tokens per image, without its <BoI> and <EoI>."""
    rule: Literal["mmc4", "obelics", "laion"] = "mmc4"
    """mmc4: only images that match their sentence; no sentence is cut, too long documents are left out. obelics: documents one
    after another; the text is cut if a sequence is full. laion: one image and one text per document."""
    min_similarity: float = 0.24
    """mmc4: images that match their sentence less are left out."""
    max_images: int = 6
    """Most images per document; if there are more, these many are drawn once."""
    keep_surplus: bool = False
    """mmc4: continue a document that is too long in another sequence."""
    one_document: bool = False
    """One document per sequence: the baseline for padding."""
    seed: int = 0
    """Seed that draws images if a document has too many."""
    json: str = ""
    """Write the numbers to this file."""

    def run(self) -> None:
        """Pack with Ray Data, and report the padding and what was left out."""
        from cornerstone.data.documents import PackingConfig, SpecialIds
        from cornerstone.data.output import refuse_existing
        from cornerstone.data.shards import DataSet
        from cornerstone.data.storage import Location
        from cornerstone.jobs.packing import write_packing
        from cornerstone.runtime.cluster import connect, stoppable
        from cornerstone.runtime.tokenizer import load_tokenizer

        same = ("image_tokens", "rule", "min_similarity", "max_images", "keep_surplus", "one_document", "seed")
        config = PackingConfig(token_budget=self.budget, **{name: getattr(self, name) for name in same})
        DataSet.open(self.data, "documents")  # report wrong arguments before Ray starts
        refuse_existing(Location.of(self.out))
        tokenizer = load_tokenizer(self.tokenizer)
        SpecialIds.of(tokenizer)
        with connect(say), stoppable("Run the same command again to continue: finished files are kept.", say):
            manifest = write_packing(self.data, self.out, tokenizer, config, bar("packing"))
        packed = manifest.source["packed"]
        if self.json:
            numbers = {"rows": manifest.rows, "content": manifest.content_hash, **packed}
            Location.of(self.json).write_text(json.dumps(numbers, indent=1) + "\n")
        say(f"{manifest.rows:,} sequences of {self.budget:,} tokens in {self.out} (content {manifest.content_hash})")
        _report(packed)


def _report(packed: dict[str, Any]) -> None:
    say(
        f"{packed['documents_per_sequence']:.2f} documents and {packed['images_per_sequence']:.2f} images per sequence, "
        f"{packed['padding']:.1%} padding"
    )
    for what, total in packed["found"].items():
        left = packed["left_out"].get(what, {})
        why = "".join(f"; {count:,} left out: {reason}" for reason, count in left.items())
        say(f"{total - sum(left.values()):,} of {total:,} {what}{why}")
