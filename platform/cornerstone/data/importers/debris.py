"""Files that programs leave beside data: they are neither images nor classes nor shards, in every format."""

from __future__ import annotations

FOLDERS = ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information")
FILES = ("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r")


def is_debris(path: str) -> bool:
    """Whether a part of a path is hidden (`._x.jpg`, `.ipynb_checkpoints`), or what a Mac, Windows or a NAS leaves behind."""
    parts = [part for part in path.split("/") if part not in ("", ".", "..")]
    return any(part.startswith(".") or part in FOLDERS for part in parts) or (
        bool(parts) and parts[-1].lower() in FILES
    )
