"""Whether the Hugging Face hub can be reached: its own client retries for most of a minute before it gives up."""

from __future__ import annotations

import os
import socket
from functools import cache
from urllib.parse import urlsplit

SECONDS = 5.0


@cache
def hub_answers() -> bool:
    """Whether the hub's host accepts connections; False if `HF_HUB_OFFLINE` is set, True behind a proxy (not checked there)."""
    if os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0"):
        return False
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True
    endpoint = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    port = endpoint.port or (80 if endpoint.scheme == "http" else 443)
    try:
        socket.create_connection((endpoint.hostname or "", port), SECONDS).close()
    except OSError:
        return False
    return True
