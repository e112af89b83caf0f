"""`cornerstone data pack`: documents into sequences of a fixed number of tokens, planned once."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

import tyro

from cornerstone.commands.terminal import bar, say


@dataclass(frozen=True)
class PackCommand:
    """Plan which documents share a sequence of a fixed number of tokens (LCL); no document is copied."""

    data: tyro.conf.Positional[str]
    """Folder or URI of document shards."""
    tokenizer: str
    """Name or folder; a copy is kept beside the index."""
    out: str
    """A new folder or URI for the index."""
    budget: int = 2048
    """Tokens of a sequence."""
    image_tokens: int = 196
    """Patch tokens of an image; its <BoI> and <EoI> come on top."""
    rule: Literal["mmc4", "obelics", "laion"] = "mmc4"
    """mmc4: well matched images, no sentence cut, what is too long left out; obelics: documents one after another, text cut
    where a sequence is full; laion: one image and one text each."""
    min_similarity: float = 0.24
    """mmc4: images matched less well are left out."""
    max_images: int = 6
    """Images of a document; of more, so many are drawn once."""
    keep_surplus: bool = False
    """mmc4: a document that is too long goes on in another sequence."""
    one_document: bool = False
    """One document a sequence: the baseline to compare padding with."""
    seed: int = 0
    """Draws the images that stay where there are too many."""
    json: str = ""
    """Write the numbers to this file."""

    def run(self) -> None:
        """Pack with Ray Data and say how full the sequences are and what is in none."""
        from cornerstone.data.documents import PackingConfig
        from cornerstone.data.output import refuse_existing
        from cornerstone.data.shards import DataSet
        from cornerstone.data.storage import Location
        from cornerstone.jobs.packing import write_packing
        from cornerstone.runtime.cluster import connect, stoppable
        from cornerstone.runtime.tokenizer import load_tokenizer

        same = ("image_tokens", "rule", "min_similarity", "max_images", "keep_surplus", "one_document", "seed")
        config = PackingConfig(token_budget=self.budget, **{name: getattr(self, name) for name in same})
        DataSet.open(self.data, "documents")  # what cannot work is refused before Ray starts
        refuse_existing(Location.of(self.out))
        tokenizer = load_tokenizer(self.tokenizer)
        with connect(say), stoppable("The same command goes on after its finished files.", say):
            manifest = write_packing(self.data, self.out, tokenizer, config, bar("packing"))
        packed = manifest.source["packed"]
        if self.json:
            numbers = {"rows": manifest.rows, "content": manifest.content_hash, **packed}
            Location.of(self.json).write_text(json.dumps(numbers, indent=1) + "\n")
        say(f"{manifest.rows:,} sequences of {self.budget:,} tokens in {self.out} (content {manifest.content_hash})")
        _tell(packed)


def _tell(packed: dict[str, Any]) -> None:
    say(
        f"{packed['documents_per_sequence']:.2f} documents and {packed['images_per_sequence']:.2f} images a sequence, "
        f"{packed['padding']:.1%} padding"
    )
    for what, total in packed["found"].items():
        left = packed["left_out"].get(what, {})
        why = "".join(f"; {count:,} left out: {reason}" for reason, count in left.items())
        say(f"{total - sum(left.values()):,} of {total:,} {what}{why}")
