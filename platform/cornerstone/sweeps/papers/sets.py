"""Evaluation sets that papers use, under the names that users give them, and the built-in sets that stand in for them.

Names are compared without case and punctuation (`paper_table.plain`).
"""

from __future__ import annotations

ALIASES = {
    "sharegpt4v10k": "sv10k",
    "share4v10k": "sv10k",
    "sharegpt4v1k": "sv1k",
    "share4v1k": "sv1k",
    "flickr": "flickr30k",
    "coco": "mscoco",
    "coco5k": "mscoco",
    "imagenet": "in1k",
    "imagenet1k": "in1k",
    "imagenetval": "in1k",
}
STAND_INS = {"longhuman": "dci", "longcaptioner": "sv10k", "short": "mscoco", "class": "in1k"}
STAND_IN_NOTE = (
    "On scenes, long-human stands in for DCI, long-captioner for SV-10k, short for MSCOCO and class for ImageNet: compare "
    "the trends, not the values."
)
