"""LLaVA's lists: text-only conversations are kept, images stand at their turns, and what cannot be used is quarantined."""

from __future__ import annotations

import json

import pytest

from cornerstone.data.conversations.turns import turns_of
from cornerstone.data.importers import check, core
from cornerstone.data.importers.core import ImportOptions
from cornerstone.errors import CornerstoneError

TALK = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cat."}]


@pytest.fixture
def listed(tmp_path, small_data):
    (tmp_path / "coco").mkdir()
    (tmp_path / "coco" / "0.png").write_bytes(small_data.picture(0))
    entries = [
        {"id": "0", "image": "coco/0.png", "conversations": TALK},
        {"id": "0", "image": "coco/0.png", "conversations": [*TALK, {"from": "human", "value": "And?"}, TALK[1]]},
        {"id": "wQ3", "model": "", "conversations": [{"from": "human", "value": "Hello"}, TALK[1]]},
        {"id": "3", "image": "coco/3.png", "conversations": TALK},
        {"id": "4", "conversations": TALK},
        {"id": "5", "image": "coco/0.png"},
    ]
    path = tmp_path / "mix.json"
    path.write_text(json.dumps(entries))
    return path


def imported(path, tmp_path, **options):
    reader = check("llava", path, tmp_path / "out", ImportOptions(**options))
    plan, outcome = reader.plan(), core._Outcome()
    rows = [row for task in plan.tasks for row in core._records(reader.read(task), reader.options, (), outcome)]
    return rows, [*plan.quarantined, *outcome.quarantined]


def test_conversations_with_and_without_images_are_kept(listed, tmp_path, small_data):
    rows, quarantined = imported(listed, tmp_path)
    found = {row.key: turns_of([segment.as_row() for segment in row.segments]) for row in rows}
    assert set(found) == {"coco/0.png", "coco/0.png#1", "text/wQ3"}
    turns, image = found["coco/0.png#1"]
    assert [turn.text for turn in turns] == ["What?", "A cat.", "And?", "A cat."]
    assert [turn.image for turn in turns] == [True, False, False, False]
    assert image == small_data.picture(0)
    assert found["text/wQ3"][1] is None
    reasons = sorted(one.reason.partition(":")[0] for one in quarantined)
    assert reasons == ["missing file", "no conversations", "no image"]


def test_captions_have_no_fields_here_and_other_lists_are_refused(listed, tmp_path):
    with pytest.raises(CornerstoneError, match="no effect on conversations"):
        imported(listed, tmp_path, raw=("caption",))
    other = tmp_path / "other.json"
    other.write_text(json.dumps([{"image": "a", "caption": "b"}]))
    with pytest.raises(CornerstoneError, match="'conversations'"):
        imported(other, tmp_path)
