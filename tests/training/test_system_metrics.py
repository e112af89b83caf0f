"""System metrics of runs on GPUs: sampled in a thread, written at the step of the training, without effect if they fail."""

from __future__ import annotations

import time

from cornerstone.training.system_metrics import SystemMetrics, gpu_monitors


class Sampler:
    """Stands for one of MLflow's monitors."""

    def __init__(self, name: str) -> None:
        self.name, self.values, self.taken = name, [], []

    def collect_metrics(self):
        self.values.append(50.0 + len(self.taken))
        self.taken.append(self.values[-1])

    def aggregate_metrics(self):
        return {self.name: sum(self.values) / len(self.values)}

    def clear_metrics(self):
        self.values.clear()


class Written:
    def __init__(self):
        self.lines = []

    def __call__(self, step, metrics):
        self.lines.append((step, metrics))


def until(condition, seconds=10.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


def test_the_mean_of_all_samples_since_the_last_record_is_written_once_for_each_step():
    written, said = Written(), []
    samplers = [Sampler("gpu_0_utilization_percentage"), Sampler("cpu_utilization_percentage")]
    metrics = SystemMetrics(written, said.append, lambda: samplers, start=40, every=0.01)
    until(lambda: len(samplers[0].taken) >= 3)
    assert written.lines == []
    for step in (49, 50):
        metrics.after_step(step, None, None, None)
        until(lambda done=step + 1: any(at == done for at, _ in written.lines))
        seen = len(samplers[0].taken)
        until(lambda seen=seen: len(samplers[0].taken) >= seen + 3)
    metrics.close()
    assert not metrics._thread.is_alive()
    assert [step for step, _ in written.lines] == [50, 51]
    first, second = (values["system/gpu_0_utilization_percentage"] for _, values in written.lines)
    assert [set(values) for _, values in written.lines] == [
        {"system/gpu_0_utilization_percentage", "system/cpu_utilization_percentage"}
    ] * 2
    assert first >= 51.0  # of three samples or more: 50, 51, 52 ..
    recorded = round(2 * (first - 50.0)) + 1  # the samples 50, 51 .. of the first record
    last = round(2 * second - (50.0 + recorded))  # the second one begins with the next sample
    assert second == (50.0 + recorded + last) / 2
    assert 50.0 + recorded + 2 <= last <= max(samplers[0].taken)
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


def test_a_sample_that_fails_is_left_out_and_said_once():
    written, said = Written(), []

    class Unsteady(Sampler):
        failed = 0

        def collect_metrics(self):
            if self.failed < 3:
                self.failed += 1
                raise OSError("device busy")
            super().collect_metrics()

    sampler = Unsteady("x")
    metrics = SystemMetrics(written, said.append, lambda: [sampler], every=0.01)
    metrics.after_step(0, None, None, None)
    until(lambda: written.lines)
    metrics.close()
    assert sampler.failed == 3
    assert written.lines == [(1, {"system/x": 50.0})]
    (text,) = said
    assert "device busy" in text
    assert "NVML" not in text
