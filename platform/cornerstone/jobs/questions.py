"""The questions of a released benchmark as shards: an evaluation set of a transfer to dialogue, which workers stream."""

from __future__ import annotations

import json
from collections.abc import Sequence

from cornerstone.data.conversations.turns import Turn, segments_of
from cornerstone.data.images import BadImage
from cornerstone.data.importers.folder import ImageFolder
from cornerstone.data.manifest import Manifest
from cornerstone.data.records import Document
from cornerstone.data.shards import ShardWriter
from cornerstone.data.storage import Location
from cornerstone.errors import CornerstoneError
from cornerstone.evaluation.dialogue import Benchmark, Question
from cornerstone.evaluation.dialogue.conversations import SAID, as_json

ROWS_PER_SHARD = 1_000


def write_questions(
    one: Benchmark, files: Sequence[Location], images: Location | None, out: Location
) -> tuple[Manifest, dict[str, str]]:
    """Write a row for each image, with all of its questions, and the reasons of images that cannot be read by their name.

    Such an image is left empty: its questions count as wrong. Raises CornerstoneError for files of another benchmark, and if
    the benchmark names images but no folder is given.
    """
    together: dict[str | bytes, list[Question]] = {}
    for question in one.read(files):
        together.setdefault(question.key if question.image is None else question.image, []).append(question)
    if images is None and any(isinstance(asked[0].image, str) for asked in together.values()):
        raise CornerstoneError(f"{one.title} names images: give the folder that has them, --images DIR.")
    folder, unread = None if images is None else ImageFolder(images), dict[str, str]()
    with ShardWriter(
        out,
        name=one.name,
        kind="documents",
        tasks=(one.name,),
        source={"questions": one.name},
        rows_per_shard=ROWS_PER_SHARD,
    ) as writer:
        for asked in together.values():
            image = asked[0].image
            if isinstance(image, str):
                assert folder is not None, "refused above"
                image = _read(folder, image, unread)
            turns = [
                Turn("human", question.prompt, image is not None and not place, question.kind)
                for place, question in enumerate(asked)
            ]
            said = json.dumps({SAID: [as_json(question) for question in asked]}, ensure_ascii=False)
            writer.add(Document(asked[0].key, segments_of(turns, image), said))
    assert writer.manifest is not None, "there was no exception"
    return writer.manifest, unread


def _read(folder: ImageFolder, name: str, unread: dict[str, str]) -> bytes:
    try:
        return folder.read_image([name])
    except (OSError, ValueError, BadImage) as reason:
        unread[name] = str(reason)
        return b""
