"""The interface between a kind of data and the code that orders and moves rows. Only a source knows what a row contains.

A source is made in the driver, small and picklable. A decode actor opens it and takes rows as an Arrow table; the training
worker has it make a batch of the tensors that a method's `forward` reads. No torch is imported here.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

if TYPE_CHECKING:
    from cornerstone.data.batch import Batch

Ints = npt.NDArray[np.int64]
MASKED = -1
"""The row id of a place that holds no row: shares of a batch that do not divide evenly are filled with it."""

BAD = pa.list_(pa.struct([pa.field("what", pa.string()), pa.field("reason", pa.string())]))
ROW_FIELDS = (
    pa.field("row", pa.int64()),
    pa.field("epoch", pa.int64()),
    pa.field("valid", pa.bool_()),  # False for a masked place and for a row that cannot be used
    pa.field("bad", BAD),  # what cannot be used of a row, and why; empty for a masked place
)
"""The first columns of every block."""

B = TypeVar("B", bound="Batch", covariant=True)


@dataclass(frozen=True)
class Part:
    """One data set of a mixture: the rows of each row group, shard by shard, and how often it is repeated."""

    shards: tuple[tuple[int, ...], ...]
    weight: Fraction = Fraction(1)

    @property
    def rows(self) -> int:
        """Its rows, each counted once."""
        return sum(map(sum, self.shards))


class Rows(Protocol):
    """An opened source. It lives in one process."""

    def take(self, rows: Ints, epochs: Ints) -> pa.Table:
        """The rows with these ids, in this order, as drawn in these epochs: the columns of `ROW_FIELDS`, then its own.

        MASKED rows keep their place with `valid` False. A row that cannot be used keeps its place too, with its reason in
        `bad`. No rows give an empty table.
        """
        ...


class Source(Protocol[B]):
    """Rows of one kind, to train on or to evaluate on."""

    @property
    def parts(self) -> tuple[Part, ...]:
        """Row groups and weights: what the plan needs."""
        ...

    @property
    def rows(self) -> int:
        """Rows in all parts, each counted once."""
        ...

    @property
    def row_bytes(self) -> int:
        """Upper bound of a decoded row in bytes, by which blocks are cut."""
        ...

    def open(self) -> Rows:
        """Open it for reading; called once in each decode actor."""
        ...

    def batch(self, step: int, table: pa.Table) -> B:
        """The batch of some rows, in the training worker."""
        ...
