"""Whether the Hugging Face hub can be used: its own client retries for most of a minute before it gives up.

One rule for towers, tokenizers and captioners: the hub is off if the user says so, as its client reads it, or if it does not
answer within seconds, through a proxy if one is set.
"""

from __future__ import annotations

import os
from functools import cache

SECONDS = 5.0
TRUE = ("1", "ON", "YES", "TRUE")
"""What the hub's client takes for true, in any case."""


@cache
def hub_answers() -> bool:
    """Whether the hub answers. If not, the hub's clients in this process, and in those it starts, do not try it either."""
    answers = not _is_switched_off() and _responds()
    if not answers:
        os.environ["HF_HUB_OFFLINE"] = "1"
        import huggingface_hub.constants

        huggingface_hub.constants.HF_HUB_OFFLINE = True  # it was read when the package was imported
    return answers


def _is_switched_off() -> bool:
    given = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""
    return given.upper() in TRUE


def _responds() -> bool:
    import requests

    endpoint = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    try:
        requests.head(endpoint, timeout=SECONDS)
    except (requests.RequestException, OSError, ValueError):
        return False
    return True
