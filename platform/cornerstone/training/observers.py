"""What observes the loop: metrics to the journal, bad rows to the quarantine, progress to the driver's terminal."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from cornerstone.data.batch import IMAGE, ROW, Bad
from cornerstone.data.stream import Stream
from cornerstone.errors import RunStopped
from cornerstone.evaluation.collapse import collapse_warning
from cornerstone.tracking.journal import ends_in_a_cut_line
from cornerstone.tracking.run_store import read_quarantine
from cornerstone.training.loop import Clock, Metrics
from cornerstone.training.report import StepReport

ENOUGH_SEEN = 200  # rows, or images, before the share of bad ones is compared with the limit
GRAD_NORM = "grad_norm"
WAIT_SHARE = 0.2  # share of the time that steps wait for data, above which advice is given
WAIT_SECONDS = 10.0  # of steps, before that share is looked at


class Observed(Protocol):
    """As much of a batch as observers read."""

    @property
    def bad(self) -> tuple[Bad, ...]:
        """Rows and images that could not be used."""
        ...

    def counted(self) -> dict[str, int]:
        """Rows, and images of documents, that were read: {"row": .., "image": ..}. Masked places are not counted."""
        ...


class StepMetrics:
    """Writes the metrics of the steps since the last line, every `every` steps.

    `train/loss` is the loss, `train/loss_<part>` its parts, `train/<report>` the method's reports, `train/grad_norm` the
    gradient's norm: means over the steps and the workers. `train/learning_rate` is the last step's.
    `train/data_wait_share` is the share of time in which the step waited for data; `train/seconds_to_first_block` is written
    once, at the stream's start, and `train/skipped_steps`, the number of steps that changed nothing because their gradient
    was not finite, as soon as there are any. The norms of these are left out of the mean. More of them than `skipped_limit`,
    or a loss that is not finite, stop the run.
    """

    def __init__(
        self,
        write: Callable[[int, Mapping[str, float]], None],
        every: int,
        rows: int,
        steps: int,
        stream: Stream | None = None,
        skipped_limit: int = 20,
    ) -> None:
        """`rows` is the global batch size."""
        self.line: Metrics = {}
        """The last line: means of all workers over its steps. Empty before the first one."""
        self._skipped, self._skipped_before, self._skipped_limit = 0, 0, skipped_limit
        self._write, self._every, self._rows, self._steps, self._stream = write, every, rows, steps, stream
        self._sums: dict[str, Tensor] = {}
        self._bad_step: Tensor | None = None
        self._count = 0
        self._last, self._waited, self._evaluated = time.perf_counter(), 0.0, 0.0

    def after_step(self, step: int, batch: Observed, report: StepReport, clock: Clock) -> None:
        """Add up on the device; copy to the host only when a line is due."""
        total = torch.stack(list(report.parts.values())).sum()
        here = torch.where(torch.isfinite(total), float("inf"), float(step))
        self._bad_step = here if self._bad_step is None else torch.minimum(self._bad_step, here)
        losses = {"loss": total, **{f"loss_{name}": value for name, value in report.parts.items()}}
        norm = torch.where(torch.isfinite(report.grad_norm), report.grad_norm, torch.zeros_like(report.grad_norm))
        self._skipped = report.skipped
        for name, value in {**losses, **report.reports, GRAD_NORM: norm}.items():
            value = value.detach().to(total.device, torch.float32).reshape(())
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._count += 1
        if (step + 1) % self._every == 0 or step + 1 == self._steps:
            self._write_line(step, report.learning_rate, clock)

    def after_evaluation(self, step: int, metrics: Metrics, clock: Clock) -> None:
        """Write the evaluation's metrics; its time is not counted as training time."""
        self._write(step + 1, metrics)
        evaluated = clock.seconds["evaluation"]
        self._last += evaluated - self._evaluated
        self._evaluated = evaluated

    def check(self) -> None:
        """Raise RunStopped if a loss was not finite.

        All workers call it together: at each line, and before a checkpoint is saved, so that no checkpoint contains NaNs
        (metrics may be written less often than checkpoints are saved).
        """
        if self._bad_step is None:
            return
        _all_reduce(self._bad_step, dist.ReduceOp.MIN)
        if torch.isfinite(self._bad_step):
            raise RunStopped(
                f"The loss is not finite at step {int(self._bad_step)}: try a lower --recipe.optimization.learning-rate or a "
                f"longer --recipe.optimization.warmup-steps."
            )

    def _write_line(self, step: int, learning_rate: float, clock: Clock) -> None:
        seconds = time.perf_counter() - self._last
        waited = clock.seconds["data"] - self._waited
        updated = max(self._count - (self._skipped - self._skipped_before), 1)
        counts = [updated if name == GRAD_NORM else self._count for name in self._sums]
        values = torch.stack([total / count for total, count in zip(self._sums.values(), counts, strict=True)])
        values = torch.cat([values, values.new_tensor([waited / seconds])])
        _all_reduce(values, dist.ReduceOp.SUM, mean=True)
        self.check()
        names = [*self._sums, "data_wait_share"]
        metrics = {f"train/{name}": value for name, value in zip(names, values.tolist(), strict=True)}
        metrics["train/learning_rate"] = learning_rate
        metrics["train/samples_per_second"] = self._rows * self._count / seconds
        metrics["train/seconds_per_step"] = seconds / self._count
        if self._stream is not None and self._stream.seconds_to_first_block is not None:
            metrics["train/seconds_to_first_block"] = self._stream.seconds_to_first_block
            self._stream = None
        if self._skipped:
            metrics["train/skipped_steps"] = float(self._skipped)
        self.line = metrics
        self._write(step + 1, metrics)
        if self._skipped > self._skipped_limit:
            raise RunStopped(
                f"{self._skipped} of {step + 1} steps were skipped because their gradient is not finite, more than "
                f"{self._skipped_limit} (--recipe.optimization.skipped-step-limit). Try a lower "
                f"--recipe.optimization.learning-rate, or --recipe.precision fp32."
            )
        self._skipped_before = self._skipped
        self._sums, self._count = {}, 0
        self._last, self._waited = time.perf_counter(), clock.seconds["data"]


class Quarantine:
    """Writes down what could not be used, with the reason, and stops the run if its share is above the limit.

    Bad rows are compared with the rows that were read, bad images of documents with the images: a document whose image is bad
    is still a good row.
    """

    def __init__(self, path: Path, limit: float, every: int, known: Iterable[tuple[int, str]] | None = None) -> None:
        """`known` are rows, and what of them, that were quarantined before a restart; by default those in the file."""
        self._path, self._limit, self._every = path, limit, every
        if known is None:
            known = ((e["row"], e["what"]) for e in read_quarantine(path)) if path.exists() else ()
        self._known = set(known)
        self.written = 0
        """Rows and images that this worker has written down since it started."""
        self._device = torch.device("cpu")
        self._bad, self._seen = {ROW: 0, IMAGE: 0}, {ROW: 0, IMAGE: 0}

    @property
    def bad(self) -> Mapping[str, int]:
        """Bad rows and images that this worker has read; one that comes again in a later epoch counts again."""
        return self._bad

    def after_step(self, step: int, batch: Observed, report: StepReport, clock: Clock) -> None:
        """Write each bad row or image once; every `every` steps, compare the shares over all workers with the limit."""
        self._device = report.grad_norm.device  # the device of the workers' collectives
        self._append(step, [bad for bad in batch.bad if (bad.row, bad.what) not in self._known])
        for bad in batch.bad:
            self._bad[ROW if bad.what == ROW else IMAGE] += 1
        for kind, number in batch.counted().items():
            self._seen[kind] += number
        if (step + 1) % self._every == 0:
            self._compare()

    def after_evaluation(self, step: int, metrics: Metrics, clock: Clock) -> None:
        """Nothing: bad rows of evaluation sets are counted by the evaluator, as `eval/<set>/rows_left_out`."""

    def _append(self, step: int, new: Sequence[Bad]) -> None:
        if not new:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a+b") as file:
            if ends_in_a_cut_line(self._path):
                file.write(b"\n")
            for bad in new:
                entry = {"row": bad.row, "what": bad.what, "step": step, "reason": bad.reason}
                file.write(json.dumps(entry).encode() + b"\n")
        self._known.update((bad.row, bad.what) for bad in new)
        self.written += len(new)

    def _compare(self) -> None:
        kinds = (ROW, IMAGE)
        counts = torch.tensor([[self._bad[kind], self._seen[kind]] for kind in kinds], device=self._device)
        _all_reduce(counts, dist.ReduceOp.SUM)
        for kind, (bad, seen) in zip(kinds, counts.tolist(), strict=True):
            if seen >= ENOUGH_SEEN and bad > self._limit * seen:
                raise RunStopped(
                    f"{bad} of the {seen} {kind}s read could not be used, more than {self._limit:.1%}: see {self._path}. "
                    f"Repair the data, or allow more with --recipe.data.bad-row-limit."
                )


class ProgressReporter:
    """Sends the run's progress at most once a second, and advice if the steps wait much for data."""

    def __init__(
        self,
        send: Callable[[dict[str, Any]], None],
        steps: int,
        advice: str,
        stream: Stream | None = None,
        mean_loss: Callable[[], float | None] | None = None,
    ) -> None:
        """`advice` says what to change if the steps wait for data; it is sent once.

        `mean_loss` gives the mean loss of several workers. Without it this worker's own loss is shown, which with several
        workers is only a part.
        """
        self._send, self._steps, self._advice, self._stream = send, steps, advice, stream
        self._mean_loss = mean_loss
        self._last, self._start = 0.0, 0.0
        self._first_step, self._first_wait = -1, 0.0

    def after_step(self, step: int, batch: Observed, report: StepReport, clock: Clock) -> None:
        """Send the step, the loss, the seconds a step so far, and those left at this pace (None after the first step)."""
        now = time.monotonic()
        if self._first_step < 0:
            self._first_step, self._start, self._first_wait = step, now, clock.seconds["data"]
        if now - self._last < 1.0 and step + 1 < self._steps:
            return
        self._last = now
        seconds = now - self._start
        pace = seconds / (step - self._first_step) if step > self._first_step else None
        waits = (clock.seconds["data"] - self._first_wait) / seconds if seconds > 0 else 0.0
        if waits > WAIT_SHARE and seconds > WAIT_SECONDS and self._advice:
            self._send({"notice": f"the steps wait for data {waits:.0%} of the time: {self._advice}"})
            self._advice = ""
        loss = self._mean_loss() if self._mean_loss is not None else float(report.loss)
        self._send(
            {
                "state": "training",
                "waits": waits,
                "step": step + 1,
                "steps": self._steps,
                **({} if loss is None else {"loss": loss}),
                "pace": pace,
                "left": None if pace is None else pace * (self._steps - step - 1),
                "first_block": self._stream.seconds_to_first_block if self._stream is not None else None,
            }
        )

    def after_evaluation(self, step: int, metrics: Metrics, clock: Clock) -> None:
        """Send that the model was evaluated, after which step, and what was measured."""
        self._send({"state": f"evaluated after step {step + 1:,}", "metrics": metrics})


class CollapseWarning:
    """Warns, once for each evaluation set, that the model does not tell images apart (`evaluation/collapse.py`)."""

    def __init__(self, send: Callable[[dict[str, Any]], None]) -> None:
        self._send = send
        self._warned: set[str] = set()

    def after_step(self, step: int, batch: Observed, report: StepReport, clock: Clock) -> None:
        """Nothing: one batch is too small to tell."""

    def after_evaluation(self, step: int, metrics: Metrics, clock: Clock) -> None:
        """Look at the effective rank and the variance of the sets that have them."""
        for name, rank in metrics.items():
            of_set, _, metric = name.rpartition("/")
            if metric != "effective_rank" or of_set in self._warned:
                continue
            if warning := collapse_warning(rank, metrics[f"{of_set}/image_variance"]):
                self._warned.add(of_set)
                self._send({"notice": f"{of_set} after step {step + 1:,}: {warning}"})


def _all_reduce(values: Tensor, operation: Any, mean: bool = False) -> None:
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(values, operation)
        if mean:
            values /= dist.get_world_size()
