"""Hashes of configurations: canonical JSON, digests, and which fields enter a hash.

A hash must survive what later versions add. So a field that has its declared default is left out, and a configuration of
several possible kinds enters by its stable short name (`kind`), never by the module that defines it. The other side of
that rule: changing a declared default changes what an old hash stands for. `tests/recipes/golden_hashes.json` therefore
holds the defaults of every built-in configuration beside the hashes, and a change of either must be typed in by hand.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any

NOT_HASHED: dict[str, Any] = {"hashed": False}
"""Metadata of a field that changes no expected number: seeds and names, and paths, which enter by their content."""


def canonical_json(value: Any) -> str:
    """One spelling for equal values: sorted keys, no spaces, 1.0 written as 1. NaN and infinity raise ValueError."""
    return json.dumps(_plain(value), sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(value: Any) -> str:
    """12 hexadecimal digits over the canonical JSON of a value: names folders, recipes and finished work."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:12]


def content_digest(*parts: str | bytes) -> str:
    """16 hexadecimal digits over the content of files or texts, one after another."""
    hashed = hashlib.sha256()
    for part in parts:
        hashed.update(part.encode() if isinstance(part, str) else part)
    return hashed.hexdigest()[:16]


def hashed_fields(value: Any, default: Any = None) -> dict[str, Any]:
    """The fields of a dataclass that enter its hash: those that differ from their default, nested ones likewise.

    `default` is the value that the field holding this dataclass has by default; None, or a value of another class, compares
    each field with its declared default. A class variable `kind` is always included. A dataclass without a kind is included
    by its class's name if that is not the default's: a subclass at its defaults is another experiment.
    """
    found: dict[str, Any] = {}
    if hasattr(value, "kind"):
        found["kind"] = value.kind
    elif is_dataclass(default) and type(value) is not type(default):
        found["class"] = type(value).__name__
    if not isinstance(value, type(default)):
        default = None
    for field in fields(value):
        if not field.metadata.get("hashed", True):
            continue
        own = getattr(value, field.name)
        usual = getattr(default, field.name, declared_default(field))
        if is_dataclass(own) and not isinstance(own, type):
            nested = hashed_fields(own, usual)
            if nested:
                found[field.name] = nested
        elif _plain(own) != _plain(usual):
            found[field.name] = _plain(own)
    return found


def declared_default(field: Field[Any]) -> Any:
    """The default of a dataclass field; `MISSING` if it has none."""
    return field.default_factory() if field.default_factory is not MISSING else field.default


def as_json(value: Any) -> Any:
    """Every field of a dataclass, nested, as JSON values; a class variable `kind` is included."""
    if is_dataclass(value) and not isinstance(value, type):
        named = {f.name: as_json(getattr(value, f.name)) for f in fields(value)}
        return {"kind": value.kind, **named} if hasattr(value, "kind") else named
    if isinstance(value, dict):
        return {name: as_json(item) for name, item in value.items()}
    return [as_json(item) for item in value] if isinstance(value, tuple | list) else value


def _plain(value: Any) -> Any:
    """Tuples as lists, and whole numbers as int: 1 and 1.0 are the same experiment."""
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value
