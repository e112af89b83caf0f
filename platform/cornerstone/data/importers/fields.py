"""Names of values in nested records: `caption`, `captions.0`, `meta.title`, or `captions` for all entries of a list."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from cornerstone.errors import CornerstoneError

_LISTED = 8  # indices of a list that an error message suggests


def find(record: Any, field: str) -> Any:
    """The value that `field` names, None if the record has none. A key may contain dots (`long.txt`)."""
    if isinstance(record, Mapping):
        if field in record:
            return record[field]
        head, _, rest = field.partition(".")
        return find(record[head], rest) if rest and head in record else None
    if isinstance(record, list):
        head, _, rest = field.partition(".")
        if not head.isdecimal() or int(head) >= len(record):
            return None
        return find(record[int(head)], rest) if rest else record[int(head)]
    return None


def texts(value: Any) -> list[str]:
    """The non-empty texts of a string or of the entries of a list, stripped, and valid as UTF-8."""
    entries = value if isinstance(value, list) else [value]
    return [utf8(entry.strip()) for entry in entries if isinstance(entry, str) and entry.strip()]


def utf8(text: str) -> str:
    """The text with � in place of lone surrogates, which JSON can express and UTF-8 cannot encode."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def spelled(value: Any) -> str:
    """A value as it is written on the command line: `true`, `3`, `train`."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def names(record: Mapping[str, Any]) -> Iterator[str]:
    """The names of all fields that hold a text, a number, a boolean, or a list of these."""
    for key, value in record.items():
        if isinstance(value, Mapping):
            yield from (f"{key}.{inner}" for inner in names(value))
        elif isinstance(value, list):
            if value and isinstance(value[0], str | int | float):
                yield key
                yield from (f"{key}.{i}" for i in range(min(len(value), _LISTED)))
        elif isinstance(value, str | int | float):
            yield key


def conditions(where: Sequence[str]) -> list[tuple[str, str]]:
    """Parse `FIELD=VALUE` texts. Raises CornerstoneError for one without `=`."""
    pairs = []
    for condition in where:
        field, equals, value = condition.partition("=")
        if not equals or not field:
            raise CornerstoneError(f"--where {condition!r}: expected FIELD=VALUE, for example split=train.")
        pairs.append((field, value))
    return pairs


def holds(record: Mapping[str, Any], field: str, value: str) -> bool:
    """Whether a field of the record equals the value, or is a list that contains it."""
    found = find(record, field)
    entries = found if isinstance(found, list) else [found]
    return value in [spelled(entry) for entry in entries if entry is not None]


def meets(record: Mapping[str, Any], where: Iterable[tuple[str, str]]) -> bool:
    """Whether a record meets all `FIELD=VALUE` conditions."""
    return all(holds(record, field, value) for field, value in where)
