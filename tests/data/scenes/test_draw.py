from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from cornerstone.data.scenes.draw import background, encode, paint, stencil
from cornerstone.data.scenes.world import COLOURS, SHAPES, SPECIES, Scene, ScenesSpec, Thing, colour_of, draw_scene

SIZES = [(32, 3), (64, 3), (97, 3), (128, 4), (224, 4)]


def covered(scene: Scene, size: int) -> list[np.ndarray]:
    """For each object, the pixels of its cell (and a margin for jitter) that have exactly its colour."""
    picture, masks = paint(scene, size), []
    for thing in scene.things:
        row, column = divmod(thing.cell, scene.cells)
        mask = np.zeros((size, size), bool)
        top, left = row * size // scene.cells, column * size // scene.cells
        mask[top : top + size // scene.cells + 1, left : left + size // scene.cells + 1] = True
        masks.append(mask & (picture == list(COLOURS.values())[colour_of(thing.species)]).all(-1))
    return masks


@pytest.mark.parametrize(("size", "cells"), SIZES)
def test_every_object_is_in_its_cell_in_its_colour_and_nothing_else_is_painted(size, cells):
    spec = ScenesSpec(image_size=size, cells=cells, max_objects=cells**2)
    for i in range(10):
        scene = draw_scene(spec, spec.rng("scene", i))
        picture = paint(scene, size)
        assert picture.shape == (size, size, 3)
        assert picture.dtype == np.uint8
        if size > 32:  # below, a small bar covers few pixels wholly
            assert all(mask.sum() >= 4 for mask in covered(scene, size))
        changed = (picture != background(scene.background, size)).any(-1)
        filled = {t.cell for t in scene.things}
        for cell in range(cells**2):
            y, x = (slice(-(-k * size // cells) + 2, (k + 1) * size // cells - 2) for k in divmod(cell, cells))
            assert changed[y, x].any() == (cell in filled)


def test_the_salient_object_is_twice_as_large_in_area():
    for shape in range(len(SHAPES)):
        scene = Scene(3, 0, (Thing(shape, 0), Thing(shape + len(SHAPES), 8)))
        large, small = (mask.sum() for mask in covered(scene, 64))
        assert large > 2 * small


def test_shapes_differ_even_when_small():
    small = {shape: stencil(shape, 11).astype(float) / 255 for shape in SHAPES}
    for one in SHAPES:
        for other in SHAPES:
            assert one == other or np.abs(small[one] - small[other]).mean() > 0.08, (one, other)


def test_species_have_their_own_look():
    looks = {
        paint(Scene(3, 0, (Thing(s, 4), Thing((s + 1) % SPECIES, 0))), 64)[21:43, 21:43].tobytes() for s in range(96)
    }
    assert len(looks) == SPECIES


@pytest.mark.parametrize(("size", "cells"), SIZES)
def test_the_file_is_the_picture_with_exact_enough_colours(size, cells):
    spec = ScenesSpec(image_size=size, cells=cells)
    for i in range(5):
        picture = paint(draw_scene(spec, spec.rng("scene", i)), size)
        file = encode(picture)
        assert file == encode(paint(draw_scene(spec, spec.rng("scene", i)), size))
        decoded = np.asarray(Image.open(io.BytesIO(file)).convert("RGB")).astype(int)
        assert np.abs(decoded - picture).mean() < 4
