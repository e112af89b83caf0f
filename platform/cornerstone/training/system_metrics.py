"""Use of the machine during a run on GPUs, for MLflow's page of system metrics: `system/gpu_0_utilization_percentage`, ..

MLflow's monitors read it (psutil, NVML); it goes through the run's journal like all metrics, so that a server that is down
costs nothing and loses nothing.
"""

from __future__ import annotations

import importlib.util
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

EVERY = 10.0  # seconds between samples, as MLflow's own
PREFIX = "system/"
NEEDS = "psutil, and NVIDIA's driver with its library NVML"


class Monitor(Protocol):
    """One of MLflow's `system_metrics.metrics`."""

    def collect_metrics(self) -> None:
        """Read the values of now."""

    def aggregate_metrics(self) -> Mapping[str, float]:
        """Means since the last `clear_metrics`."""

    def clear_metrics(self) -> None:
        """Forget what was read."""


class SystemMetrics:
    """An observer that takes a sample every `every` seconds, from a thread of its own, and writes the means of the samples.

    A mean is over the samples since the last record. There is one record for a number of steps done, since MLflow and the
    journal keep one value a step, and at most one every `every` seconds: steps that take longer have the mean of all their
    samples, and of shorter ones some have none.

    It reads the whole machine of the process that starts it, all GPUs of it included. `make_monitors` is called in the
    thread, since MLflow takes seconds to import. If it cannot make them, `say` is called once, and nothing is written. A
    sample that fails is left out; the first one is said.
    """

    def __init__(
        self,
        write: Callable[[int, Mapping[str, float]], None],
        say: Callable[[str], None],
        make_monitors: Callable[[], Sequence[Monitor]] | None = None,
        *,
        start: int = 0,
        every: float = EVERY,
    ) -> None:
        """`start` is the number of steps that were done before."""
        self._write, self._say, self._every = write, say, every
        self._done = self._recorded = start
        self._make_monitors = make_monitors or gpu_monitors
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True, name="system-metrics")
        self._thread.start()

    def after_step(self, step: int, batch: Any, report: Any, clock: Any) -> None:
        """A step is done."""
        self._done = step + 1

    def after_evaluation(self, step: int, metrics: Mapping[str, float], clock: Any) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Stop, before the journal is closed."""
        self._closing.set()
        self._thread.join(5)

    def _sample(self) -> None:
        try:
            monitors = self._make_monitors()
        except Exception as error:  # no driver, no permission, a library that is missing: training goes on without them
            self._say(f"No system metrics in MLflow ({type(error).__name__}: {error}). They need {NEEDS}")
            return
        said = False
        while not self._closing.wait(self._every):
            try:
                for monitor in monitors:
                    monitor.collect_metrics()
                if (done := self._done) != self._recorded:
                    self._record(monitors, done)
            except Exception as error:  # a driver that is busy, a disk that is full: the next sample may succeed
                if not said:
                    self._say(
                        f"A sample of MLflow's system metrics failed ({type(error).__name__}: {error}): it is left out, and "
                        f"so are later ones that fail"
                    )
                said = True

    def _record(self, monitors: Sequence[Monitor], done: int) -> None:
        values = {name: value for monitor in monitors for name, value in monitor.aggregate_metrics().items()}
        self._write(done, {f"{PREFIX}{name}": float(value) for name, value in values.items()})
        self._recorded = done
        for monitor in monitors:
            monitor.clear_metrics()


def gpu_monitors() -> list[Monitor]:
    """MLflow's monitors of GPUs, CPUs, disk and network. Raises ImportError or RuntimeError where they cannot work."""
    if importlib.util.find_spec("pynvml") is None:  # Ray has a copy of it
        from ray._private.thirdparty import pynvml

        sys.modules.setdefault("pynvml", pynvml)
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    makers: list[Callable[[], Monitor]] = [GPUMonitor, CPUMonitor, DiskMonitor, NetworkMonitor]
    return [make() for make in makers]
