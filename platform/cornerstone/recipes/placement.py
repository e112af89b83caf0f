"""The placement: where and on how much hardware a recipe runs. It changes no expected number and is never hashed."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import NamedTuple

from cornerstone.errors import CornerstoneError

ROLE_LABEL = "cornerstone.io/role"
"""The label of a cluster's nodes by which a placement names a group of them, as the manifests in ray_jobs/ set it."""
TRAIN, DECODE = "train", "decode"
"""Its values on the nodes for workers with GPUs and on those for decode actors."""


class Bundle(NamedTuple):
    """What one worker or one decode actor needs, all of it on one node."""

    cpus: float
    gpus: int = 0
    group: str = ""
    """The role of the nodes it must be on; "" for any node."""

    @property
    def resources(self) -> dict[str, float]:
        """As Ray names them."""
        return {"CPU": self.cpus, "GPU": float(self.gpus)} if self.gpus else {"CPU": self.cpus}

    @property
    def selector(self) -> dict[str, str]:
        """Ray's label selector for the group; empty for any node."""
        return {ROLE_LABEL: self.group} if self.group else {}


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
    worker_group: str | None = None
    """The nodes for workers, by their label cornerstone.io/role. None: `train` if workers have GPUs and such nodes are there;
    "": any node."""
    decode_group: str | None = None
    """The nodes for decode actors, by the same label. None: `decode` if such nodes are there; "": any node."""
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

    @property
    def worker(self) -> Bundle:
        """What one worker needs."""
        return Bundle(self.cpus_per_worker, self.gpus, self.worker_group or "")

    @property
    def decode_actor(self) -> Bundle:
        """What one decode actor needs."""
        return Bundle(self.cpus_per_decode_actor, 0, self.decode_group or "")

    @property
    def bundles(self) -> tuple[Bundle, ...]:
        """What one trial needs, in the order in which Ray reserves it."""
        return (self.worker,) * self.workers + (self.decode_actor,) * self.decode_actors

    def on_cluster(self, gpus: float, groups: Collection[str] = ()) -> Placement:
        """The placement with `gpus_per_worker`, `worker_group` and `decode_group` decided.

        `gpus` are those that the cluster has, or may grow to; `groups` are the roles of its nodes.
        """
        each = int(gpus >= 1) if self.gpus_per_worker is None else self.gpus_per_worker
        worker = TRAIN if each and TRAIN in groups else ""
        decode = DECODE if DECODE in groups else ""
        return replace(
            self,
            gpus_per_worker=each,
            worker_group=worker if self.worker_group is None else self.worker_group,
            decode_group=decode if self.decode_group is None else self.decode_group,
        )

    @property
    def needs(self) -> str:
        """What one trial needs, in short: `2 GPUs and 8 CPUs`."""
        gpus = f"{self.trial_gpus} GPU{'s' * (self.trial_gpus > 1)} and " if self.trial_gpus else ""
        return f"{gpus}{self.trial_cpus:g} CPU{'s' * (self.trial_cpus != 1)}"

    def arithmetic(self) -> str:
        """The sum behind `trial_cpus`, in words."""
        return (
            f"{self.workers} workers × {self.cpus_per_worker:g}{_role(self.worker_group)} + {self.decode_actors} decode "
            f"actors × {self.cpus_per_decode_actor:g}{_role(self.decode_group)} (training and evaluation data) = "
            f"{self.trial_cpus:g} CPUs"
            + (f", and {self.workers} × {self.gpus} = {self.trial_gpus} GPUs" if self.trial_gpus else "")
        )


def _role(group: str | None) -> str:
    return f" on nodes of role {group}" if group else ""
