"""Reads a scene back from the `extra` of a row of the built-in data set."""

from __future__ import annotations

import json
from typing import Any

from cornerstone.data.scenes.world import Scene, Thing


def scene_of(extra: str) -> Scene:
    """The scene that a row shows."""
    return scene_from_json(json.loads(extra)["scene"])


def scene_from_json(fields: dict[str, Any]) -> Scene:
    """The inverse of `Scene.as_json`."""
    return Scene(fields["cells"], fields["background"], tuple(Thing(*thing) for thing in fields["things"]))
