"""The placement: where and on how much hardware a recipe runs. It changes no expected number and is never hashed."""

from __future__ import annotations

from dataclasses import dataclass, replace

from cornerstone.errors import CornerstoneError


@dataclass(frozen=True)
class Placement:
    """Workers, DeepSpeed's ZeRO stage, and the processors counted for the stream and the evaluation beside them."""

    workers: int = 1
    """Ray Train workers; each holds batch_size / workers rows of a step."""
    gpus_per_worker: int | None = None
    """None: one if the cluster has GPUs. 0: workers compute on the CPU, even where GPUs are visible."""
    cpus_per_worker: float = 0.5
    threads_per_worker: int = 0
    """PyTorch's threads in a worker without a GPU; 0 shares the machine's cores among the workers of all trials on it."""
    micro_batch: int = 0
    """Most rows of a forward pass on a worker; 0 for its whole share. Micro-batches need less memory, cost a second forward
    pass, and change no number beyond rounding."""
    length_buckets: int = 0
    """Runs of a batch of texts, sorted by length, through the text tower; 0: 4 on a CPU, 1 on a GPU."""
    zero_stage: int = 1
    """DeepSpeed ZeRO: 0 replicates, 1 shards the optimizer's state, 2 also gradients, 3 also parameters."""
    decode_actors: int = 2
    """Ray Data actors that read, decode and tokenize for one training stream."""
    cpus_per_decode_actor: float = 0.5
    checkpoint_every: int = 0
    """Steps between checkpoints; 0 saves with each evaluation and at the end."""
    keep_checkpoints: int = 2
    concurrent_trials: int = 0
    """Trials of a sweep at a time; 0 runs as many as fit."""
    max_failures: int = 2
    """Restarts of a trial's workers from its last checkpoint before it counts as failed."""
    health_check_interval: float = 0.2
    """Seconds between health checks of the workers: short for short runs, 2 for runs of hours."""
    wait_limit: float = 1_800
    """Seconds to wait for an autoscaling cluster to grow before giving up."""

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise CornerstoneError(f"{self.workers} workers: expected 1 or more (--workers).")
        if self.micro_batch < 0:
            raise CornerstoneError(
                f"Micro-batches of {self.micro_batch} rows: expected 1 or more, or 0 for a worker's whole share "
                f"(--placement.micro-batch)."
            )
        if self.gpus_per_worker is not None and self.gpus_per_worker < 0:
            raise CornerstoneError(
                f"{self.gpus_per_worker} GPUs a worker: expected 0 or more (--placement.gpus-per-worker)."
            )
        if self.zero_stage not in (0, 1, 2, 3):
            raise CornerstoneError(f"ZeRO stage {self.zero_stage}: expected 0, 1, 2 or 3 (--zero-stage).")
        if self.decode_actors < 1:
            raise CornerstoneError(
                f"{self.decode_actors} decode actors: expected 1 or more (--placement.decode-actors)."
            )
        if self.cpus_per_worker <= 0 or self.cpus_per_decode_actor <= 0:
            raise CornerstoneError("Workers and decode actors need some CPU each: expected numbers above 0.")

    @property
    def trial_cpus(self) -> float:
        """CPUs of one trial: its workers and its stream, which brings the evaluation sets too."""
        return self.workers * self.cpus_per_worker + self.decode_actors * self.cpus_per_decode_actor

    @property
    def trial_gpus(self) -> int:
        """GPUs of one trial."""
        return self.workers * self.gpus

    @property
    def gpus(self) -> int:
        """GPUs of one worker; 0 also before `on_cluster` has decided."""
        return self.gpus_per_worker or 0

    def on_cluster(self, gpus: float) -> Placement:
        """The placement on a cluster that has, or may grow to, so many GPUs: `gpus_per_worker` is decided."""
        return self if self.gpus_per_worker is not None else replace(self, gpus_per_worker=int(gpus >= 1))

    def arithmetic(self) -> str:
        """The sum behind `trial_cpus`, in words."""
        return (
            f"{self.workers} workers × {self.cpus_per_worker:g} + {self.decode_actors} decode actors × "
            f"{self.cpus_per_decode_actor:g} (training and evaluation data) = {self.trial_cpus:g} CPUs"
            + (f", and {self.workers} × {self.gpus} = {self.trial_gpus} GPUs" if self.trial_gpus else "")
        )
