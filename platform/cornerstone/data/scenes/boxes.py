"""Where the objects of a scene are that a text mentions; read from a row's `extra`."""

from __future__ import annotations

import json
import re

from cornerstone.data.pairs.views import Box
from cornerstone.data.scenes.draw import place
from cornerstone.data.scenes.world import COLOUR_NAMES, NOUNS, SHAPES, Scene, Thing, colour_of, shape_of


def boxes_of(extra: str, text: str, size: int) -> list[Box]:
    """The boxes of the objects that a text mentions, by noun or by colour and shape, the salient one first.

    `size` is the side of the row's image in pixels, on which places depend a little. [] for a row that shows no scene. Whether
    what the text says of an object is true does not matter.
    """
    described = json.loads(extra).get("scene")
    if not described:
        return []
    things = tuple(Thing(*thing) for thing in described["things"])
    scene = Scene(described["cells"], described["background"], things)
    words = " ".join(re.findall(r"[a-z]+", text.lower()))
    found = []
    for number, thing in enumerate(scene.things):
        names = NOUNS[thing.species], f"{COLOUR_NAMES[colour_of(thing.species)]} {SHAPES[shape_of(thing.species)]}"
        if any(f" {name} " in f" {words} " for name in names):
            left, top, side = (value / size for value in place(scene, number, size))
            found.append(Box(left, top, left + side, top + side, number == 0))
    return found
