from __future__ import annotations

import json

import pytest

from cornerstone.data.importers import ImportOptions
from cornerstone.data.importers.core import Sample, as_pair
from cornerstone.data.importers.fields import conditions, find, holds, names, texts
from cornerstone.errors import CornerstoneError

ROW = {
    "captions": ["first", "  ", 3],
    "meta": {"title": "T", "tags": ["a"]},
    "ok": True,
    "n": 3,
    "long.txt": "L",
    "none": None,
}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("captions.0", "first"),
        ("captions", ROW["captions"]),
        ("captions.7", None),
        ("captions.first", None),
        ("captions.0.x", None),
        ("meta.title", "T"),
        ("meta.tags.0", "a"),
        ("meta.none", None),
        ("long.txt", "L"),
        ("absent", None),
        ("absent.0", None),
    ],
)
def test_find(field, value):
    assert find(ROW, field) == value


def test_texts_keeps_what_is_a_text():
    assert texts(ROW["captions"]) == ["first"]
    assert texts(" a\n") == ["a"]
    assert texts(None) == texts(3) == texts({"a": "b"}) == texts("  ") == []
    assert texts("lone \ud800 surrogate") == ["lone \N{REPLACEMENT CHARACTER} surrogate"]


def test_conditions():
    assert conditions(["split=train", "a.b=x=y", "empty="]) == [("split", "train"), ("a.b", "x=y"), ("empty", "")]
    for wrong in ("split", "=train"):
        with pytest.raises(CornerstoneError, match="FIELD=VALUE"):
            conditions([wrong])


def test_holds():
    assert holds(ROW, "ok", "true")
    assert holds(ROW, "n", "3")
    assert holds(ROW, "captions", "first")
    assert not holds(ROW, "captions", "second")
    assert not holds(ROW, "none", "None")
    assert not holds(ROW, "absent", "None")


def test_names():
    assert set(names(ROW)) == {"captions", "captions.0", "captions.1", "captions.2", "meta.title", "meta.tags",
                               "meta.tags.0", "ok", "n", "long.txt"}  # fmt: skip


def test_fields_have_the_roles_that_are_asked_for(make):
    """A list of rewrites gives one caption each; what is no caption stays in `extra`."""
    options = ImportOptions(raw="alt", long="described", rewrite="rewrites")
    fields = {"alt": "a", "described": "b", "rewrites": ["c c", "", "d d"], "n": 3}
    row = as_pair(Sample("key", make.image(0), fields), options)
    assert [(c.source, c.role, c.text) for c in row.captions] == [
        ("alt", "raw", "a"),
        ("described", "long", "b"),
        ("rewrites.0", "rewrite", "c c"),
        ("rewrites.1", "rewrite", "d d"),
    ]
    assert json.loads(row.extra) == {"n": 3}
    with pytest.raises(ValueError, match="nothing in alt, described, rewrites"):
        as_pair(Sample("key", make.image(0), {"n": 3}), options)
