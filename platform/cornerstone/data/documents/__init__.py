"""Documents in sequences of a fixed number of tokens, for LCL: planned once as an index, read like any other rows.

`pieces` decides which part of which document stands in which sequence, `index` stores the answer for a data set, `reader`
turns it into token ids and pixels, `source` and `batch` are what the stream knows of it.
"""

from cornerstone.data.documents.config import PackingConfig, PackingKeys, SpecialIds
from cornerstone.data.documents.index import check_packing
from cornerstone.data.documents.reader import PackedSequences, targets
from cornerstone.data.documents.source import PackedSource

__all__ = [
    "PackedSequences",
    "PackedSource",
    "PackingConfig",
    "PackingKeys",
    "SpecialIds",
    "check_packing",
    "targets",
]
