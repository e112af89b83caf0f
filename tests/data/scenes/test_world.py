from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import pytest
from scene_rows import scene_from_json

from cornerstone.data.scenes.sets import SETS
from cornerstone.data.scenes.world import BACKGROUNDS, NOUNS, SPECIES, Scene, ScenesSpec, draw_scene
from cornerstone.errors import CornerstoneError


def scenes(spec: ScenesSpec, count: int) -> list[Scene]:
    return [draw_scene(spec, spec.rng("scene", i)) for i in range(count)]


def test_every_species_has_a_noun_that_no_single_letter_turns_into_another():
    assert len(set(NOUNS)) == SPECIES == 96
    assert all(sum(a != b for a, b in zip(x, y, strict=True)) >= 2 for x in NOUNS for y in NOUNS if x != y)


def test_scenes_stay_within_their_spec_and_repeat_no_species_and_no_cell():
    spec = ScenesSpec(cells=4, min_objects=6, max_objects=10)
    drawn = scenes(spec, 300)
    assert {len(s.things) for s in drawn} == set(range(6, 11))
    for scene in drawn:
        assert len({t.species for t in scene.things}) == len({t.cell for t in scene.things}) == len(scene.things)
        assert all(0 <= t.species < SPECIES and 0 <= t.cell < 16 and {t.dx, t.dy} <= {-1, 0, 1} for t in scene.things)
        assert scene_from_json(json.loads(json.dumps(scene.as_json()))) == scene


def test_lots_are_even():
    drawn = scenes(ScenesSpec(), 3000)
    for values, kinds in (
        ([s.salient.species for s in drawn], 96),
        ([s.salient.cell for s in drawn], 9),
        ([s.background for s in drawn], len(BACKGROUNDS)),
        ([len(s.things) for s in drawn], 4),
    ):
        counts, expected = Counter(values), len(values) / kinds
        assert len(counts) == kinds
        assert sum((n - expected) ** 2 / expected for n in counts.values()) < 2 * kinds + 10  # chi-square


def test_the_same_row_is_the_same_scene_and_no_two_sets_share_one():
    spec = ScenesSpec()
    assert scenes(spec, 20) == scenes(replace(spec, rows=7, rows_per_shard=3, image_size=224), 20)
    streams = [*SETS, "tower-train", "tower-held-out"]
    drawn = [scene for name in streams for scene in scenes(replace(spec, set=name), 300)]
    other_seed = scenes(replace(spec, seed=1), 300)
    assert len({repr(scene) for scene in drawn + other_seed}) == len(drawn) + 300


def test_what_is_given_is_kept():
    spec = ScenesSpec()
    for i in range(50):
        scene = draw_scene(spec, spec.rng("scene", i), salient=i, cell=i % 9, background=i % 6)
        assert (scene.salient.species, scene.salient.cell, scene.background) == (i, i % 9, i % 6)
        assert 4 <= len(scene.things) == len({t.cell for t in scene.things}) == len({t.species for t in scene.things})


@pytest.mark.parametrize(
    "wrong",
    [
        {"rows": 0},
        {"image_size": 16},
        {"cells": 5},
        {"min_objects": 1},
        {"max_objects": 10},
        {"min_objects": 6, "max_objects": 5},
        {"sentences": (0, 3)},
        {"rows_per_shard": 0},
    ],
)
def test_an_impossible_spec_is_refused(wrong):
    with pytest.raises(CornerstoneError, match="expected"):
        ScenesSpec(**wrong)
