"""Captions are read back by key words, with no use of the forms, and held against the scene."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from scene_rows import scene_from_json, scene_of

from cornerstone.data.scenes.captioners import HUMAN, A, B, C, describe
from cornerstone.data.scenes.facts import BackgroundFact, CountFact, ObjectFact, RelationFact, facts_of, falsified
from cornerstone.data.scenes.sets import pair
from cornerstone.data.scenes.texts import NUMBERS, PROMPTS, raw_text
from cornerstone.data.scenes.world import (
    BACKGROUND_NAMES,
    COLOUR_NAMES,
    COLUMNS,
    NOUNS,
    ROWS,
    SHAPES,
    Scene,
    ScenesSpec,
    draw_scene,
)

SPEC = ScenesSpec()


def mentions(words: list[str]) -> list[tuple[int, int]]:
    """(where it starts, species) for each noun and each colour followed by a shape."""
    found = []
    for i, word in enumerate(words):
        if word in NOUNS:
            found.append((i, NOUNS.index(word)))
        elif word in COLOUR_NAMES and i + 1 < len(words) and words[i + 1] in SHAPES:
            found.append((i, COLOUR_NAMES.index(word) * 12 + SHAPES.index(words[i + 1])))
    return found


def is_true(sentence: str, scene: Scene) -> bool:
    words = sentence.replace("one can", "").split()
    where = {t.species: divmod(t.cell, scene.cells) for t in scene.things}
    named = mentions(words)
    grounds = [word for word in words if word in BACKGROUND_NAMES]
    if grounds:
        return grounds == [BACKGROUND_NAMES[scene.background]]
    if {"object", "objects"} & set(words):
        (number,) = [NUMBERS.index(word) for word in words if word in NUMBERS]
        colour = next((word for word in words if word in COLOUR_NAMES), None)
        return number == sum(colour in (None, COLOUR_NAMES[s // 12]) for s in where)
    if len(named) == 2:
        return relation_is_true(words, named, where)
    ((_, species),) = named
    (size,) = {"large", "small"} & set(words)
    if species not in where or (size == "large") != (species == scene.salient.species):
        return False
    places = [
        (ROWS[scene.cells].index(a), COLUMNS[scene.cells].index(b))
        for a, b in pairwise(words)
        if a in ROWS[scene.cells] and b in COLUMNS[scene.cells]
    ]
    return not places or places == [where[species]]


def relation_is_true(words: list[str], named: list[tuple[int, int]], where: dict[int, tuple[int, int]]) -> bool:
    at, end = next(
        (i, i + (2 if w in ("left", "right") else 1))
        for i, w in enumerate(words)
        if w in ("above", "below") or (w in ("left", "right") and words[i + 1] == "of")
    )
    if words[end] == "it":  # it: what was named first
        (_, other), (_, subject) = named
    else:
        other = next(species for i, species in named if i == end + 1)
        subject = next(species for i, species in named if i != end + 1)
    if subject not in where or other not in where:
        return False
    (row, column), (other_row, other_column) = where[subject], where[other]
    return {
        "left": column < other_column,
        "right": column > other_column,
        "above": row < other_row,
        "below": row > other_row,
    }[words[at]]


def sentences(text: str) -> list[str]:
    assert text.endswith(".")
    return text[:-1].split(". ")


@pytest.fixture(scope="module")
def rows():
    return [pair(SPEC, i) for i in range(500)]


@pytest.mark.parametrize(("captioner", "counts", "rate"), [("A", {4}, 0.03), ("B", {7}, 0.20), ("C", {6, 7, 8}, 0.04)])
def test_captions_are_false_exactly_where_an_error_is_recorded_and_at_the_captioners_rate(
    rows, captioner, counts, rate
):
    stated = false = 0
    seen = set()
    for row in rows:
        extra = json.loads(row.extra)
        (text,) = [c.text for c in row.captions if c.source == captioner]
        recorded = {e["sentence"] for e in extra["errors"] if e["captioner"] == captioner}
        scene = scene_from_json(extra["scene"])
        said = sentences(text)
        assert {i for i, s in enumerate(said) if not is_true(s, scene)} == recorded, (text, extra)
        seen.add(len(said))
        stated, false = stated + len(said), false + len(recorded)
    assert seen == counts
    assert abs(false / stated - rate) < 3 * np.sqrt(rate * (1 - rate) / stated)


def test_errors_say_what_is_wrong(rows):
    errors = [e for row in rows for e in json.loads(row.extra)["errors"]]
    assert {e["slot"] for e in errors} == {"species", "cell", "side", "other", "number", "background"}
    assert all(e["said"] != e["true"] for e in errors)


def test_captioner_a_names_no_place(rows):
    places = {f"{row} {column}" for row in ROWS[3] for column in COLUMNS[3]}
    for row in rows:
        texts = {c.source: c.text for c in row.captions}
        assert not any(place in texts["A"] for place in places)
        assert not any(side in texts["A"] for side in ("left of", "right of", "above", "below"))
    assert any(place in texts["C"] for place in places)


def test_the_salient_fact_comes_first_in_nine_of_ten(rows):
    first = [sentences(c.text)[0] for row in rows for c in row.captions if c.role == "long"]
    share = np.mean(["large" in sentence.split() for sentence in first])
    assert 0.89 < share < 0.94  # and one in nine of the other tenth, by chance


@pytest.mark.parametrize("world", [{}, {"cells": 4, "min_objects": 6, "max_objects": 10}])
def test_a_person_states_everything_without_an_error_half_of_it_in_unseen_forms(world):
    spec = ScenesSpec(set="long-human", **world)
    unseen = 0
    for i in range(200):
        row = pair(spec, i)
        scene = scene_of(row.extra)
        (caption,) = row.captions
        said = sentences(caption.text)
        assert (caption.source, caption.role) == ("human", "long")
        assert all(is_true(s, scene) for s in said), caption.text
        assert len(said) == len(scene.things) + 4
        named = [mentions(s.split()) for s in said]
        assert {mentioned[0][1] for mentioned in named if len(mentioned) == 1} == {t.species for t in scene.things}
        unseen += sum(bool({"we", "lies", "ground", "has"} & set(s.replace("picture has a", "").split())) for s in said)
    assert unseen > 200


def test_more_facts_are_found_where_more_are_asked_for():
    spec = ScenesSpec(cells=4, min_objects=6, max_objects=10, sentences=(20, 22))
    for i in range(30):
        scene = draw_scene(spec, spec.rng("scene", i))
        text, errors = describe(scene, HUMAN, spec.rng("human", i), 22)
        said = sentences(text)
        assert len(said) == 22
        assert not errors
        assert all(is_true(s, scene) for s in said)
        assert len(set(facts_of(scene, spec.rng("x", i), at_least=22))) == 22


def test_raw_texts_are_half_noise(rows):
    kinds = []
    for i in range(3000):
        scene = draw_scene(SPEC, SPEC.rng("scene", i))
        text, kind = raw_text(scene, SPEC.rng("raw", i))
        named = [species for _, species in mentions(text.split())]
        others = [t.species for t in scene.things[1:]]
        assert 5 <= len(text.split()) <= 10
        assert {"salient": named == [scene.salient.species], "other": named and named[0] in others, "junk": not named}[
            kind
        ]
        kinds.append(kind)
    for kind, share in (("salient", 0.5), ("other", 0.25), ("junk", 0.25)):
        assert abs(kinds.count(kind) / len(kinds) - share) < 0.03
    assert all(json.loads(row.extra)["raw"] in ("salient", "other", "junk") for row in rows)


def test_falsified_facts_do_not_hold_and_true_ones_do():
    for i in range(200):
        scene, rng = draw_scene(SPEC, SPEC.rng("scene", i)), SPEC.rng("errors", i)
        facts = facts_of(scene, rng)
        assert {type(f) for f in facts} == {ObjectFact, RelationFact, CountFact, BackgroundFact}
        assert all(f.holds(scene) for f in facts)
        wrong = [falsified(f, scene, rng) for f in facts]
        assert not any(f.holds(scene) for f in wrong)
        assert all(type(f) is type(w) for f, w in zip(facts, wrong, strict=True))


def test_an_error_rate_of_one_makes_every_sentence_false():
    for captioner in (A, B, C):
        scene = draw_scene(SPEC, SPEC.rng("scene", 0))
        text, errors = describe(scene, replace(captioner, error_rate=1.0), SPEC.rng("all wrong"))
        assert len(errors) == len(sentences(text))
        assert not any(is_true(s, scene) for s in sentences(text))


def test_prompts_name_a_class_in_words_of_training(rows):
    assert all(prompt.count("{}") == 1 for prompt in PROMPTS)
    known = {word for row in rows for c in row.captions for word in c.text.replace(".", "").split()}
    assert {word for prompt in PROMPTS for word in prompt.format("dabu").split()} <= known


def test_few_raw_captions_of_a_batch_are_identical(rows):
    raw = [c.text for row in rows for c in row.captions if c.role == "raw"]
    batches = [Counter(raw[start : start + 128]) for start in range(0, len(raw), 128)]
    assert sum(n for counts in batches for n in counts.values() if n > 1) < 0.05 * len(raw)
