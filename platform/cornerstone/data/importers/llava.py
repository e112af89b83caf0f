"""`llava`: lists of conversations, [{id, image, conversations: [{from: human | gpt, value}]}], beside a folder of images.

LLaVA-1.5's two lists are `blip_laion_cc_sbu_558k.json` (first stage: an instruction and a caption an image) and
`llava_v1_5_mix665k.json` (second stage: about 40,000 of its conversations have no image, and are kept).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from cornerstone.data.conversations.turns import BadConversation, parsed, segments_of
from cornerstone.data.images import BadImage
from cornerstone.data.importers.core import ImportOptions, Quarantined
from cornerstone.data.importers.fields import utf8
from cornerstone.data.importers.folder import ImageFolder
from cornerstone.data.importers.listing import Entry, Listed, Listing, entries_of
from cornerstone.data.manifest import Kind
from cornerstone.data.records import Document
from cornerstone.data.storage import Location
from cornerstone.errors import CornerstoneError


class Conversations(Listed):
    """Each entry becomes a document: its image before the turn that speaks of it, and its turns with who speaks."""

    kind: Kind = "documents"

    def __init__(self, src: Location, options: ImportOptions) -> None:
        if options.raw or options.long or options.label:
            raise CornerstoneError(
                "--raw, --long and --label have no effect on conversations, which keep all of their turns. Leave them out."
            )
        super().__init__(src, options, read_list)

    def read(self, task: Sequence[tuple[str, str, dict[str, Any]]]) -> Iterator[Document | Quarantined]:
        """The conversations of some entries."""
        assert self.images is not None, "set by plan()"
        folder = ImageFolder(self.images, self.options.follow_links)
        for key, _, row in task:
            named = row.get("image")
            try:
                turns = parsed(row["conversations"], bool(named))
                image = folder.read_image([str(named)]) if named else None
                yield Document(key, segments_of(turns, image))
            except (OSError, ValueError, BadImage, BadConversation) as reason:
                yield Quarantined(key, str(reason))


def read_list(src: Location) -> Listing:
    """The entries that have `conversations`, by their image's name, or `text/<id>` if there is no image."""
    listed, aside = entries_of(src, "conversations")
    entries: list[Entry] = []
    for place, entry in enumerate(listed):
        image = entry.get("image")
        name = str(image) if image else f"text/{entry.get('id', place)}"
        turns = entry["conversations"]
        clean = [
            {"from": turn.get("from"), "value": utf8(turn["value"]) if isinstance(turn.get("value"), str) else None}
            if isinstance(turn, dict)
            else turn
            for turn in (turns if isinstance(turns, list) else [turns])
        ]
        entries.append((name, {"id": entry.get("id"), "image": image, "conversations": clean}))
    return Listing(src.parent, entries, aside)
