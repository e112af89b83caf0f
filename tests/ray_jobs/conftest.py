"""The files of ray_jobs/ and the schemas that they are held against."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import yaml
from referencing import Registry, Resource

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDER = REPOSITORY / "ray_jobs"
SCHEMAS = REPOSITORY / "tests" / "fixtures" / "schemas"
CLUSTERS = sorted((FOLDER / "clusters").glob("*.yaml"))
MANIFESTS = [*sorted((FOLDER / "kubernetes").glob("*.yaml")), *sorted((FOLDER / "jobs").glob("*.yaml"))]
COMPOSE = FOLDER / "compose.yaml"


def documents(path: Path) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


@cache
def schema(name: str) -> dict[str, Any]:
    return json.loads((SCHEMAS / f"{name}.json").read_text())


@cache
def validator(name: str, definition: str = "") -> jsonschema.Draft202012Validator:
    """The validator of a schema of tests/fixtures/schemas, or of one of its definitions."""
    names = ("kubernetes", "kuberay", "compose", "machines")
    registry = Registry().with_resources((f"{name}.json", Resource.from_contents(schema(name))) for name in names)
    reference = f"{name}.json" + (f"#/$defs/{definition}" if definition else "")
    return jsonschema.Draft202012Validator({"$ref": reference}, registry=registry)


def keys(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every key of a document."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        if isinstance(value, dict):
            yield (*path, key)
        yield from keys(inner, (*path, key))


def misspelt(document: dict[str, Any], path: tuple[Any, ...]) -> dict[str, Any]:
    """A copy of the document in which one key has its last letter twice."""
    document = copy.deepcopy(document)
    place = document
    for step in path[:-1]:
        place = place[step]
    place[f"{path[-1]}{str(path[-1])[-1]}"] = place.pop(path[-1])
    return document
