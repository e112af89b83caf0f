"""Documents of words and small pictures, packed without Ray."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from cornerstone.data.records import Document, Segment
from cornerstone.data.shards import ShardWriter
from cornerstone.jobs import packing


@pytest.fixture
def words(wordpiece, small_data, tmp_path, monkeypatch) -> SimpleNamespace:
    """`write(folder, documents)`: texts as they are, images by number; `pack(data, out, config)`; `tokenizer`, its text."""

    def in_line(work, items, failed, progress=None):
        return map(work, items)

    monkeypatch.setattr(packing, "map_tasks", in_line)
    tokenizer = wordpiece.read_text()

    def segment(part):
        if isinstance(part, str):
            return Segment(text=part)
        image = part if isinstance(part, bytes) else small_data.picture(part)
        return Segment(image=image, extra=json.dumps({"matched_sim": 0.3}))

    def write(name, documents, **options):
        options = {"name": name, "rows_per_shard": 8, "rows_per_group": 2, **options}
        with ShardWriter(str(tmp_path / name), kind="documents", **options) as writer:
            for key, parts in enumerate(documents):
                writer.add(Document(str(key), tuple(map(segment, parts))))
        return str(tmp_path / name)

    def pack(data, config, out=""):
        folder = str(tmp_path / (out or f"{Path(data).name}-{len(list(tmp_path.iterdir()))}"))
        return folder, packing.write_packing(data, folder, tokenizer, config)

    return SimpleNamespace(write=write, pack=pack, tokenizer=tokenizer, picture=small_data.picture)
