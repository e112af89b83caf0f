"""What watches the loop: metrics to the journal, bad rows to the quarantine, progress to whoever shows it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from cornerstone.data.batches import Batch
from cornerstone.data.stream import Stream
from cornerstone.errors import RunStopped
from cornerstone.training.loop import Clock, Metrics

FEW = 200  # rows to have seen before the share of bad ones is judged
MUCH = 0.2  # share of the time that steps wait for data, above which there is advice
LONG = 10.0  # seconds of steps before that is judged


class StepMetrics:
    """Means over workers and over the steps since the last line, written every `every` steps.

    `train/loss` is the recipe's loss, `train/loss_<part>` its parts; `train/data_wait_share` is the share of time in which
    the step waited for data; `train/seconds_to_first_batch` is told once, of the stream's start. A loss that is not finite
    stops the run with the step it happened at.
    """

    def __init__(
        self,
        write: Callable[[int, Mapping[str, float]], None],
        every: int,
        rows: int,
        steps: int,
        stream: Stream | None = None,
    ) -> None:
        self._write, self._every, self._rows, self._steps, self._stream = write, every, rows, steps, stream
        self._sums: dict[str, Tensor] = {}
        self._bad_step: Tensor | None = None
        self._count = 0
        self._last, self._waited, self._evaluated = time.perf_counter(), 0.0, 0.0

    def after_step(self, step: int, batch: Batch, parts: dict[str, Tensor], clock: Clock) -> None:
        """Add up on the device; look at the numbers only when a line is due."""
        total = torch.stack(list(parts.values())).sum()
        here = torch.where(torch.isfinite(total), float("inf"), float(step))
        self._bad_step = here if self._bad_step is None else torch.minimum(self._bad_step, here)
        for name, value in {"loss": total, **{f"loss_{k}": v for k, v in parts.items()}}.items():
            self._sums[name] = self._sums.get(name, torch.zeros_like(value)) + value
        self._count += 1
        if (step + 1) % self._every == 0 or step + 1 == self._steps:
            self._line(step, clock)

    def after_evaluation(self, step: int, metrics: Metrics, clock: Clock) -> None:
        """Evaluation is recorded as it is, and its time does not count as training's."""
        self._write(step + 1, metrics)
        evaluated = clock.seconds["evaluation"]
        self._last += evaluated - self._evaluated
        self._evaluated = evaluated

    def check(self) -> None:
        """Stop where a loss was not finite. All workers call it together: at each line, and before a checkpoint is made."""
        if self._bad_step is None:
            return
        _all_reduce(self._bad_step, dist.ReduceOp.MIN)
        if torch.isfinite(self._bad_step):
            raise RunStopped(
                f"The loss is not finite at step {int(self._bad_step)}. The last checkpoint is sound; try a lower "
                f"--recipe.optimization.learning-rate or a longer --recipe.optimization.warmup-steps."
            )

    def _line(self, step: int, clock: Clock) -> None:
        seconds = time.perf_counter() - self._last
        waited = clock.seconds["data"] - self._waited
        names = list(self._sums)
        values = torch.stack([self._sums[n].float().reshape(()) for n in names]) / self._count
        values = torch.cat([values, values.new_tensor([waited / seconds])])
        _all_reduce(values, dist.ReduceOp.SUM if dist.is_available() else None, mean=True)
        self.check()
        metrics = {f"train/{n}": v for n, v in zip([*names, "data_wait_share"], values.tolist(), strict=True)}
        metrics["train/samples_per_second"] = self._rows * self._count / seconds
        metrics["train/seconds_per_step"] = seconds / self._count
        if self._stream is not None and self._stream.seconds_to_first_batch is not None:
            metrics["train/seconds_to_first_batch"] = self._stream.seconds_to_first_batch
            self._stream = None
        self._write(step + 1, metrics)
        self._sums, self._count = {}, 0
        self._last, self._waited = time.perf_counter(), clock.seconds["data"]


class Quarantine:
    """Keeps the rows that could not be used, with their reasons, and stops the run above a set share."""

    def __init__(self, path: Path, limit: float, every: int) -> None:
        self._path, self._limit, self._every = path, limit, every
        self._seen = torch.zeros(2, dtype=torch.int64)  # bad rows, rows
        self._known: set[int] = set()

    @property
    def bad(self) -> int:
        """Bad rows that this worker has seen; one that comes again in a later epoch counts again."""
        return int(self._seen[0])

    def after_step(self, step: int, batch: Batch, parts: dict[str, Tensor], clock: Clock) -> None:
        """Write down each bad row once; compare the share over all workers now and then."""
        new = [(row, reason) for row, reason in batch.bad if row not in self._known]
        if new:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                for row, reason in new:
                    file.write(json.dumps({"row": row, "step": step, "reason": reason}) + "\n")
            self._known.update(row for row, _ in new)
        self._seen += torch.tensor([len(batch.bad), len(batch)])
        if (step + 1) % self._every == 0:
            self._judge()

    def after_evaluation(self, step: int, metrics: Metrics, clock: Clock) -> None:
        """Evaluation has its own count."""

    def _judge(self) -> None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        seen = self._seen.to(device)
        _all_reduce(seen, dist.ReduceOp.SUM)
        bad, rows = seen.tolist()
        if rows >= FEW and bad > self._limit * rows:
            raise RunStopped(
                f"{bad} of the {rows} rows seen could not be used, more than {self._limit:.1%}: see {self._path}. Mend the "
                f"data, or allow more with --recipe.data.bad-row-limit."
            )


class Progress:
    """Tells how far the run is, at most once a second, and what to change where the steps wait much for data."""

    def __init__(
        self, tell: Callable[[dict[str, Any]], None], steps: int, advice: str, stream: Stream | None = None
    ) -> None:
        self._tell, self._steps, self._advice, self._last, self._begun = tell, steps, advice, 0.0, 0.0
        self._stream = stream
        self._first, self._first_wait = -1, 0.0

    def after_step(self, step: int, batch: Batch, parts: dict[str, Tensor], clock: Clock) -> None:
        """Step, loss and seconds left, by the pace of the steps so far (None before there is one)."""
        now = time.monotonic()
        if self._first < 0:
            self._first, self._begun, self._first_wait = step, now, clock.seconds["data"]
        if now - self._last < 1.0 and step + 1 < self._steps:
            return
        self._last = now
        pace = (now - self._begun) / (step - self._first) if step > self._first else None
        loss = float(torch.stack(list(parts.values())).sum())
        waits = (clock.seconds["data"] - self._first_wait) / (now - self._begun) if now - self._begun > 0 else 0.0
        if waits > MUCH and now - self._begun > LONG and self._advice:
            self._tell({"advice": f"the steps wait for data {waits:.0%} of the time: {self._advice}"})
            self._advice = ""
        self._tell(
            {
                "state": "training",
                "waits": waits,
                "step": step + 1,
                "steps": self._steps,
                "loss": loss,
                "left": None if pace is None else pace * (self._steps - step - 1),
                "first_batch": self._stream.seconds_to_first_batch if self._stream is not None else None,
            }
        )

    def after_evaluation(self, step: int, metrics: Metrics, clock: Clock) -> None:
        """That it was evaluated, and when."""
        self._tell({"state": f"evaluated after step {step + 1:,}"})


def _all_reduce(values: Tensor, operation: Any, mean: bool = False) -> None:
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(values, operation)
        if mean:
            values /= dist.get_world_size()
