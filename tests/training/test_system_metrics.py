"""System metrics of runs on GPUs: sampled in a thread, written at the step of the training, without effect if they fail."""

from __future__ import annotations

import threading

from cornerstone.training.system_metrics import SystemMetrics, gpu_monitors


class Sampler:
    """Stands for one of MLflow's monitors."""

    def __init__(self, name: str) -> None:
        self.name, self.values = name, []

    def collect_metrics(self):
        self.values.append(50.0)

    def aggregate_metrics(self):
        return {self.name: sum(self.values) / len(self.values)}

    def clear_metrics(self):
        self.values.clear()


class Written:
    def __init__(self):
        self.lines, self.enough = [], threading.Event()

    def __call__(self, step, metrics):
        self.lines.append((step, metrics))
        if len(self.lines) >= 2:
            self.enough.set()


def test_samples_are_written_at_the_step_that_training_is_at():
    written, said = Written(), []
    samplers = [Sampler("gpu_0_utilization_percentage"), Sampler("cpu_utilization_percentage")]
    metrics = SystemMetrics(written, said.append, lambda: samplers, start=40, every=0.01)
    assert written.enough.wait(10)
    assert written.lines[0] == (
        40,
        {"system/gpu_0_utilization_percentage": 50.0, "system/cpu_utilization_percentage": 50.0},
    )
    written.enough.clear()
    written.lines.clear()
    metrics.after_step(49, None, None, None)
    assert written.enough.wait(10)
    metrics.close()
    assert written.lines[-1][0] == 50
    count = len(written.lines)
    assert not metrics._thread.is_alive()
    assert len(written.lines) == count
    assert said == []


def test_without_a_driver_it_says_so_once_and_training_goes_on():
    written, said = Written(), []

    def none():
        raise RuntimeError("Failed to initialize NVML")

    metrics = SystemMetrics(written, said.append, none, every=0.01)
    metrics._thread.join(10)
    metrics.after_step(0, None, None, None)
    metrics.close()
    (text,) = said
    assert "Failed to initialize NVML" in text
    assert "NVML" in text
    assert written.lines == []


def test_mlflows_monitors_need_no_package_besides_ray():
    """Without a GPU the library of the driver is what lacks, and nothing else."""
    monitors, why = [], ""
    try:
        monitors = gpu_monitors()
    except RuntimeError as error:
        why = str(error)
    assert monitors or "NVML" in why
    for monitor in monitors:
        monitor.collect_metrics()
    names = {name for monitor in monitors for name in monitor.aggregate_metrics()}
    assert not monitors or {"gpu_0_utilization_percentage", "cpu_utilization_percentage"} <= names


def test_a_sampler_that_breaks_stops_nothing():
    written, said = Written(), []

    class Broken(Sampler):
        def collect_metrics(self):
            raise OSError("device lost")

    metrics = SystemMetrics(written, said.append, lambda: [Broken("x")], every=0.01)
    metrics._thread.join(10)
    metrics.close()
    assert ["device lost" in text for text in said] == [True]
