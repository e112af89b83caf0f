from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import pytest
from scene_rows import scene_of

from cornerstone.data.manifest import CLASSIFICATION, LOOKALIKE, PROBE, RETRIEVAL, SENTENCE_SWAP
from cornerstone.data.records import ROLES
from cornerstone.data.scenes.sets import EVALUATION_SETS, SETS, lookalikes, manifest_fields, pair
from cornerstone.data.scenes.texts import RAW_FORMS
from cornerstone.data.scenes.world import COLOUR_NAMES, NOUNS, SHAPES, ScenesSpec, colour_of, shape_of
from cornerstone.errors import CornerstoneError
from cornerstone.recipes import Scenes


@pytest.mark.parametrize("name", SETS)
def test_rows_are_their_own_and_labels_are_the_salient_objects(name):
    spec = ScenesSpec(set=name)
    rows = [pair(spec, i) for i in range(40)]
    assert rows == [pair(replace(spec, rows=99), i) for i in range(40)]
    assert len({row.key for row in rows}) == 40
    assert all(row.label == scene_of(row.extra).things[0].species for row in rows)
    assert all((row.width, row.height) == (64, 64) for row in rows)
    assert all(c.text and c.role in ROLES for row in rows for c in row.captions)


@pytest.mark.parametrize(
    ("name", "captions"),
    [
        ("scenes", [("alt", "raw"), ("A", "long"), ("B", "long"), ("C", "long")]),
        (
            "scenes-rewrites",
            [
                *[("alt", "raw"), ("A", "long"), ("B", "long"), ("C", "long")],
                *[(f"rewrite-{n}", "rewrite") for n in (1, 2, 3, 4)],
            ],
        ),
        ("scenes-short", [("short", "raw")] * 5),
        ("long-human", [("human", "long")]),
        ("long-captioner", [("C", "long")]),
        ("validation", [("C", "long")]),
        ("short", [("short", "raw")] * 5),
        ("class", []),
        ("lookalike", [("long", "long"), ("short", "raw")]),
    ],
)
def test_every_set_has_the_texts_that_it_is_for(name, captions):
    for i in range(5):
        assert [(c.source, c.role) for c in pair(ScenesSpec(set=name), i).captions] == captions


def test_short_captions_to_learn_from_are_written_as_those_of_the_test_about_other_images():
    trained, tested = ([pair(ScenesSpec(set=name), i) for i in range(50)] for name in ("scenes-short", "short"))
    assert not {row.image for row in trained} & {row.image for row in tested}
    assert "scenes-short" not in EVALUATION_SETS
    with pytest.raises(CornerstoneError, match="Short captions have no rewrites"):
        Scenes(short=True, rewrites=True)


def test_rewrites_know_what_the_raw_caption_says_and_no_more():
    """The rows are those of `scenes`; a subject stays, its template changes, and no word of the scene is added."""
    changed, templates = 0, {word for form in RAW_FORMS for word in form.split()}
    for i in range(100):
        plain, row = (pair(ScenesSpec(set=name), i) for name in ("scenes", "scenes-rewrites"))
        assert (row.image, row.captions[:4], row.extra) == (plain.image, plain.captions, plain.extra)
        raw = row.captions[0].text
        for rewrite in row.captions[4:]:
            assert set(rewrite.text.split()) <= set(raw.split()) | templates
            changed += rewrite.text != raw
            if "junk" in json.loads(row.extra)["raw"]:
                assert sorted(rewrite.text.split()) == sorted(raw.split())
            else:
                thing = scene_of(row.extra).things
                names = {NOUNS[t.species] for t in thing} | {
                    f"{COLOUR_NAMES[colour_of(t.species)]} {SHAPES[shape_of(t.species)]}" for t in thing
                }
                said = [name for name in names if f" {name}" in f" {raw}"]
                assert any(f" {name}" in f" {rewrite.text}" for name in said)
    assert changed > 390


def test_short_texts_are_five_different_ones_that_name_two_objects():
    for i in range(50):
        row = pair(ScenesSpec(set="short"), i)
        texts = [c.text for c in row.captions]
        assert len(set(texts)) == 5
        assert all(any(side in text for side in ("left of", "right of", "above", "below")) for text in texts)


def test_classes_are_equally_often():
    labels = Counter(pair(ScenesSpec(set="class", image_size=32), i).label for i in range(2 * len(NOUNS)))
    assert set(labels.values()) == {2}
    assert len(labels) == len(NOUNS)


def test_lookalikes_share_the_salient_object_and_the_background_and_the_first_sentence_alone():
    spec = ScenesSpec(set="lookalike")
    groups: dict[str, list] = {}
    for i in range(200):
        row = pair(spec, i)
        groups.setdefault(row.group, []).append(row)
    assert len(groups) == 50
    for group, rows in groups.items():
        scenes = [scene_of(row.extra) for row in rows]
        assert len(rows) == 4
        assert scenes == lookalikes(spec, int(group))
        assert len({(s.salient.species, s.salient.cell, s.background) for s in scenes}) == 1
        assert len({frozenset((t.species, t.cell) for t in s.things) for s in scenes}) == 4
        long = [row.captions[0].text for row in rows]
        assert len({text.split(". ")[0] for text in long}) == 1
        assert "large" in long[0].split(". ")[0].split()
        assert len(set(long)) == 4
        assert all(text.count(". ") + 1 == len(s.things) + 4 for text, s in zip(long, scenes, strict=True))


def test_each_foil_differs_from_the_text_in_one_value_of_one_sentence():
    salient_first, values = 0, Counter()
    for i in range(100):
        row = pair(ScenesSpec(set="sentence-swap"), i)
        true, *foils = row.captions
        assert (true.role, {c.role for c in foils}, len(foils)) == ("long", {"foil"}, 5)
        sentences = true.text.removesuffix(".").split(". ")
        for place, foil in enumerate(foils):
            false = foil.text.removesuffix(".").split(". ")
            assert [a == b for a, b in zip(sentences, false, strict=True)] == [k != place for k in range(5)]
            words = [(a, b) for a, b in zip(sentences[place].split(), false[place].split(), strict=False) if a != b]
            values[len(words)] += 1
        assert [c.source for c in foils].count("salient") <= 1
        salient_first += foils[0].source == "salient"
    assert 80 < salient_first < 97
    assert (
        values[1] + values[2] > 0.85 * values.total()
    )  # a word, or colour and shape; else a number's plural or a place
    assert "sentence-swap" not in EVALUATION_SETS  # a recipe must ask for it


def test_two_objects_are_enough_for_every_set():
    for name in SETS:
        for i in range(20):
            assert pair(ScenesSpec(set=name, min_objects=2, max_objects=2), i).image


def test_manifests_say_what_a_set_is_for():
    tasks = {name: manifest_fields(ScenesSpec(set=name))["tasks"] for name in SETS}
    assert tasks == {
        "scenes": (),
        "scenes-rewrites": (),
        "scenes-short": (),
        "long-human": ("retrieval",),
        "long-captioner": ("retrieval",),
        "short": ("retrieval",),
        "class": ("classification",),
        "lookalike": ("lookalike",),
        "sentence-swap": ("sentence-swap",),
        "validation": ("retrieval",),
        "probe": ("probe",),
        "labelled": ("classification",),
    }
    assert {task for names in tasks.values() for task in names} == {
        *(RETRIEVAL, CLASSIFICATION, LOOKALIKE, PROBE, SENTENCE_SWAP)
    }
    assert "scenes" not in EVALUATION_SETS
    fields = manifest_fields(ScenesSpec(set="short", rows=4000))
    assert fields["pool"] == 1000
    assert manifest_fields(ScenesSpec(set="short", rows=60))["pool"] == 60
    assert fields["classes"] == tuple(NOUNS)
    assert all("{}" in prompt for prompt in fields["prompts"])


def test_an_unknown_set_is_refused():
    with pytest.raises(CornerstoneError, match="did you mean 'short'"):
        pair(ScenesSpec(set="shrot"), 0)
