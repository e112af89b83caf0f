"""A recipe of LoTLIP that asks for a record of every training step, and for trouble; and what the record tells.

The class that does both is in `recorded_lotlip`, which Ray's workers import by name: this folder is on their path.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from cornerstone.data.layout import Layout
from cornerstone.data.source import MASKED
from cornerstone.recipes import LotlipConfig
from cornerstone.training.job import Job

KILLED, REPAIRED = "killed", "repaired"


@dataclass(frozen=True)
class RecordedConfig(LotlipConfig):
    """LoTLIP's own fields, the folder of the records, and steps at which something goes wrong."""

    kind: ClassVar[str] = "recorded-lotlip"
    implementation: ClassVar[str] = "recorded_lotlip:RecordedLotlip"

    seen: str = ""
    snapshot: str = ""
    """Ray Train's list of committed checkpoints; trouble waits until the last one due is in it."""
    after: int = 0
    """Steps of that checkpoint; 0: there is none to wait for."""
    kill_at: int = -1
    """A worker kills itself in this step, once."""
    kill_rank: int = 1
    """Which one."""
    raise_at: int = -1
    """Every worker raises in this step, until the folder holds a file `repaired`."""
    nan_at: int = -1
    """The loss of this step is not a number."""
    pause: float = 0.0
    """Seconds that each step takes longer, so that there is time to strike."""


@dataclass(frozen=True)
class ShortExecutionsJob(Job):
    """A job whose stream is a chain of short executions."""

    units_per_execution: int = 4

    def layout(self, workers: int) -> Layout:
        """The stream's cut."""
        return replace(super().layout(workers), units_per_execution=self.units_per_execution)


def lines(folder: Path, rank: int) -> list[dict[str, Any]]:
    """What a worker has written, starts after failures included."""
    return [json.loads(line) for line in (folder / f"{rank}.jsonl").read_text().splitlines()]


def counted(folder: Path) -> Iterator[tuple[int, list[tuple[int, int]]]]:
    """(row, epoch) of every step in the order of the workers; of a step that was done again, those of the last time."""
    last = [{line["step"]: line for line in lines(folder, rank)} for rank in range(len(list(folder.glob("*.jsonl"))))]
    for step, line in sorted(last[0].items()):
        rows = [tuple(row) for worker in last[: line["workers"]] for row in worker[step]["rows"]]
        yield step, [row for row in rows if row[0] != MASKED]
