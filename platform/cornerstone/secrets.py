"""Passwords in addresses and storage URIs, which no message, log or record may show."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "***"
_CREDENTIALS = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.\-]*://)(?P<user>[^/?#\s'\"@]*?):(?P<password>[^/?#\s'\"]+)@", re.IGNORECASE
)
_OPTIONS = re.compile(
    r"(?P<option>[?&;](?:[\w.\-]*(?:password|passwd|pwd|passphrase|secret|token|signature|(?:secret|account)[_-]?key)"
    r"|pass|sig|odbc_connect)=)[^&;#\s'\"]+",
    re.IGNORECASE,
)
"""Of a query: passwords of databases, keys and signatures of object stores; `odbc_connect` is a whole connection string."""


def redacted(text: str) -> str:
    """The text with `***` in place of every password of an address or a storage URI, those of a query included."""
    return _OPTIONS.sub(rf"\g<option>{HIDDEN}", _CREDENTIALS.sub(rf"\g<scheme>\g<user>:{HIDDEN}@", text))


def redacted_values(value: Any) -> Any:
    """The same JSON value with every text in it `redacted`."""
    if isinstance(value, str):
        return redacted(value)
    if isinstance(value, Mapping):
        return {name: redacted_values(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [redacted_values(one) for one in value]
    return value
