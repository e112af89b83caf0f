"""Documents in sequences of a fixed number of tokens, for LCL: planned once as an index, read like any other rows.

`pieces` decides which part of which document stands in which sequence, `index` does so for a data set in parallel and
stores the answer, `sequences` reads it back as token ids and pixels.
"""

from cornerstone.data.documents.config import PackingConfig, PackingKeys, SpecialIds
from cornerstone.data.documents.index import check_packing
from cornerstone.data.documents.sequences import Packed, PackedSequences, targets

__all__ = [
    "Packed",
    "PackedSequences",
    "PackingConfig",
    "PackingKeys",
    "SpecialIds",
    "check_packing",
    "targets",
]
