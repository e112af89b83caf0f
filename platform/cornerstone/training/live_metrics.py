"""Live metrics of a run, exported through Ray to Prometheus: what the boards in `dashboards/` show.

All are gauges. Ray's agent drops a gauge that was not set again within two of Ray's report intervals, but keeps a counter
until the cluster ends: with gauges, a cluster has as many series as it has runs that train now, not as it ever had.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from ray.util.metrics import Gauge

from cornerstone.training.job import Identity
from cornerstone.training.loop import Clock, Metrics
from cornerstone.training.observers import Observed
from cornerstone.training.report import StepReport

EXPORT_EVERY = 2.0
"""Seconds between two exports of a worker. Ray itself sends them on every 10 seconds by default."""
LONGEST_LABEL = 64
"""Characters of a label's value: a point's name is the user's own, and every series of the run repeats it."""
RUN_DIGITS = 8
"""Digits of the run's id in the label `run`: enough to tell runs apart, and to match Ray Train's name of the run."""
LABELS = ("sweep", "point", "run", "rank")
PHASES = ("data", "step", "evaluation", "checkpoint")
"""Phases of the loop's clock."""
TIME_SHARE = "cornerstone_time_share"
QUARANTINED = "cornerstone_quarantined"
EVERY_RANK = {
    TIME_SHARE: f"Share of a worker's time by phase ({', '.join(PHASES)}) since the last export; data: waiting for a batch",
    QUARANTINED: "Rows and images that the worker could not use; rank 0 adds those of the run's earlier starts",
}
"""Gauges of every worker, with their descriptions. TIME_SHARE has the label `phase` too."""
OF_LINE = {
    "cornerstone_loss": ("train/loss", "Loss, as the mean of the last line of metrics"),
    "cornerstone_grad_norm": ("train/grad_norm", "Norm of the gradient, as the mean of the last line of metrics"),
    "cornerstone_samples_per_second": ("train/samples_per_second", "Rows of the global batch a second, of all workers"),
    "cornerstone_seconds_per_step": ("train/seconds_per_step", "Seconds a step, waiting for data included"),
}
"""Gauges that rank 0 copies from the last line of `StepMetrics`: the metric there, and a description."""
PROGRESS, EPOCHS, RESTARTS = "cornerstone_progress", "cornerstone_epochs", "cornerstone_restarts"
OF_RUN = {
    PROGRESS: "Share of the run's steps that are done",
    EPOCHS: "Passes over the training data that are done, with the fraction of the current one",
    RESTARTS: "Starts of the run's workers after the first one, by failures and by resuming",
}
"""Other gauges of rank 0."""


def run_labels(identity: Identity, rank: int) -> dict[str, str]:
    """Labels of a worker's series. The values are bounded in length, and the run's own four in number."""
    return {
        "sweep": _short(identity.sweep),
        "point": _short(identity.point),
        "run": identity.run[:RUN_DIGITS],
        "rank": str(rank),
    }


def gauge_names() -> list[str]:
    """All gauges, as they are named here; Prometheus shows each with Ray's prefix `ray_`."""
    return [*EVERY_RANK, *OF_LINE, *OF_RUN]


class LiveMetrics:
    """Exports a worker's metrics every `EXPORT_EVERY` seconds; does nothing where Ray is not running."""

    def __init__(
        self,
        labels: Mapping[str, str],
        *,
        steps: int,
        epochs: float,
        restarts: int,
        line: Callable[[], Mapping[str, float]],
        quarantined: Callable[[], int],
    ) -> None:
        """
        Args:
            labels: Of `run_labels`. Only rank 0 exports what all workers have in common.
            steps: Of the whole run.
            epochs: Of the whole run.
            restarts: Starts of the run before this one.
            line: The last metrics of `StepMetrics`.
            quarantined: How much this worker could not use.
        """
        self._labels, self._steps, self._epochs = dict(labels), steps, epochs
        self._restarts, self._line, self._quarantined = restarts, line, quarantined
        descriptions = {**EVERY_RANK, **{name: text for name, (_, text) in OF_LINE.items()}, **OF_RUN}
        self._gauges = {
            name: Gauge(name, text, (*LABELS, "phase") if name == TIME_SHARE else LABELS)
            for name, text in descriptions.items()
        }
        self._last, self._before = time.monotonic(), dict.fromkeys(PHASES, 0.0)

    def after_step(self, step: int, batch: Observed, report: StepReport, clock: Clock) -> None:
        """Export, if it is time or the last step."""
        if time.monotonic() - self._last >= EXPORT_EVERY or step + 1 == self._steps:
            self._export(step, clock)

    def after_evaluation(self, step: int, metrics: Metrics, clock: Clock) -> None:
        """Export, so that the time of the evaluation shows at once."""
        self._export(step, clock)

    def _export(self, step: int, clock: Clock) -> None:
        now, seconds = time.monotonic(), {phase: clock.seconds.get(phase, 0.0) for phase in PHASES}
        if (passed := now - self._last) > 0:
            for phase in PHASES:
                share = (seconds[phase] - self._before[phase]) / passed
                self._gauges[TIME_SHARE].set(share, {**self._labels, "phase": phase})
        self._last, self._before = now, seconds
        self._set(QUARANTINED, self._quarantined())
        if self._labels["rank"] != "0":
            return
        line, done = self._line(), (step + 1) / self._steps
        for name, (metric, _) in OF_LINE.items():
            self._set(name, line.get(metric))
        self._set(PROGRESS, done)
        self._set(EPOCHS, done * self._epochs)
        self._set(RESTARTS, self._restarts)

    def _set(self, name: str, value: float | None) -> None:
        self._gauges[name].set(value, self._labels)  # None, of a line that was not written yet, is left out


def _short(text: str) -> str:
    return text if len(text) <= LONGEST_LABEL else f"{text[: LONGEST_LABEL - 1]}…"
