"""Checks of a cluster's file before it costs money: `python -m cornerstone.runtime.cluster_files ray_jobs/clusters/aws.yaml`.

Ray's schema and KubeRay's say whether a file is well formed. These checks say whether the cluster can do its work: GPUs where
workers go and none where decoding goes, resources that the machines have, limits that leave room for every group, a token.
They read files of `ray up` on AWS and Google Cloud, and RayCluster and RayJob manifests of KubeRay.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cornerstone.errors import CornerstoneError

ROLE = "cornerstone.io/role"
"""The label of a Ray node that says what runs there."""
HEAD, DECODE, TRAIN = "head", "decode", "train"
MARKET = "ray.io/market-type"
"""Ray's own label: `spot` or `on-demand`."""
SPOT = "spot"
GPU_LIMIT = "nvidia.com/gpu"
_UNITS = {"": 1, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


@dataclass(frozen=True)
class Machine:
    """What a machine of a cloud has."""

    cpus: int
    gpus: int = 0
    network_cards: int = 1
    """Each may have one EFA interface, where the type has EFA."""


MACHINES = {
    "m6i.4xlarge": Machine(16),
    "m6i.16xlarge": Machine(64),
    "c6i.16xlarge": Machine(64),
    "p4d.24xlarge": Machine(96, 8, 4),  # A100, 40 GB
    "p4de.24xlarge": Machine(96, 8, 4),  # A100, 80 GB
    "n2-standard-16": Machine(16),
    "n2-standard-64": Machine(64),
    "a2-highgpu-1g": Machine(12, 1),  # A100, 40 GB
    "a2-highgpu-8g": Machine(96, 8),
    "a2-ultragpu-8g": Machine(96, 8),  # A100, 80 GB
}
"""AWS's and Google Cloud's types, with vCPUs and GPUs. Add those that you use."""


def check(path: Path | str) -> int:
    """Check every cluster that a file describes; returns how many there are.

    Raises CornerstoneError, with all that is wrong, if something is, and if the file is no YAML or describes no cluster.
    """
    import yaml

    try:
        documents = [document for document in yaml.safe_load_all(Path(path).read_text()) if document]
    except (OSError, yaml.YAMLError) as error:
        raise CornerstoneError(f"{path} cannot be read as YAML: {error}") from error
    clusters = [cluster for document in documents for cluster in _clusters(document)]
    if not clusters:
        raise CornerstoneError(
            f"{path} describes no cluster: expected a file of `ray up` (available_node_types), a RayCluster, or a RayJob "
            "with a rayClusterSpec."
        )
    if wrong := [problem for cluster in clusters for problem in problems(cluster)]:
        raise CornerstoneError("\n".join(f"{path}: {problem}" for problem in wrong))
    return len(clusters)


def problems(cluster: dict[str, Any]) -> list[str]:
    """What is wrong with a cluster: the content of a file of `ray up`, or a RayClusterSpec. Empty if nothing is."""
    return list(_of_ray_up(cluster) if "available_node_types" in cluster else _of_kuberay(cluster))


def _clusters(document: Any) -> Iterator[dict[str, Any]]:
    if not isinstance(document, dict):
        return
    if "available_node_types" in document:
        yield document
    elif document.get("kind") == "RayCluster":
        yield document.get("spec") or {}
    elif document.get("kind") == "RayJob" and (document.get("spec") or {}).get("rayClusterSpec"):
        yield document["spec"]["rayClusterSpec"]


def _of_ray_up(config: dict[str, Any]) -> Iterator[str]:
    groups: dict[str, dict[str, Any]] = config["available_node_types"]
    head = config.get("head_node_type")
    workers = {name: group for name, group in groups.items() if name != head}
    options = (config.get("docker") or {}).get("run_options") or []
    starts = {part: " ".join(config.get(f"{part}_start_ray_commands") or []) for part in ("head", "worker")}
    if not all("RAY_AUTH_MODE=token" in f"{' '.join(options)} {start}" for start in starts.values()):
        yield (
            "no authentication: whoever reaches the cluster can run code on it. Add --env=RAY_AUTH_MODE=token to "
            "docker.run_options."
        )
    if not any(target.endswith(".ray/auth_token") for target in config.get("file_mounts") or {}):
        yield (
            "no token reaches the machines: add /home/ray/.ray/auth_token: ~/.ray/auth_token to file_mounts "
            "(`ray get-auth-token --generate` makes one)."
        )
    if "--dashboard-host=127.0.0.1" not in starts["head"]:
        yield (
            "the dashboard, which accepts jobs, does not listen on the head alone: start Ray there with "
            "--dashboard-host=127.0.0.1, and reach it with `ray dashboard`."
        )
    limits = {name: int(group.get("max_workers", config.get("max_workers", 0))) for name, group in workers.items()}
    if config.get("max_workers", 0) < sum(limits.values()):
        yield (
            f"max_workers is {config.get('max_workers', 0)}, less than {' + '.join(map(str, limits.values()))} = "
            f"{sum(limits.values())} of the groups {', '.join(limits)}: some of them could not grow to their own max_workers."
        )
    for name, group in groups.items():
        yield from _machine_problems(name, group, is_head=name == head)
        yield from _efa_problems(name, group, config.get("provider") or {})
    yield from _role_problems({name: group.get("labels") or {} for name, group in workers.items()})


def _machine_problems(name: str, group: dict[str, Any], is_head: bool) -> Iterator[str]:
    node, labels, resources = group.get("node_config") or {}, group.get("labels") or {}, group.get("resources") or {}
    kind = node.get("InstanceType") or node.get("machineType") or ""
    machine = MACHINES.get(kind)
    if machine is None:
        yield (
            f"group {name}: unknown machine {kind or '(none given)'}; known: {', '.join(MACHINES)}. Correct it, or add it to "
            f"MACHINES in {__name__}."
        )
        return
    yield from _gpu_problems(name, labels.get(ROLE), machine.gpus, f"a {kind}")
    if is_head and resources.get("CPU") != 0:
        yield f"group {name}: CPU is {resources.get('CPU', 'not set')}, expected 0, or trials take CPUs of the head from Ray."
    for resource, has in {} if is_head else {"CPU": machine.cpus, "GPU": machine.gpus}.items():
        if resources.get(resource, 0) != has:
            yield f"group {name}: resources say {resource} {resources.get(resource, 0)}, but a {kind} has {has}."
    bought = ("spot" in str(node.get("InstanceMarketOptions", ""))) or "SPOT" in str(node.get("scheduling", ""))
    if labels.get(ROLE) == TRAIN and bought != (labels.get(MARKET) == SPOT):
        yield (
            f"group {name}: the label {MARKET} is {labels.get(MARKET, 'not set')}, but its machines are "
            f"{SPOT if bought else 'on-demand'}."
        )
    declared = sum(int(one.get("acceleratorCount", 0)) for one in node.get("guestAccelerators") or [])
    if "machineType" in node and declared != machine.gpus:
        yield f"group {name}: guestAccelerators have {declared} GPUs, but a {kind} has {machine.gpus}."


def _efa_problems(name: str, group: dict[str, Any], provider: dict[str, Any]) -> Iterator[str]:
    node = group.get("node_config") or {}
    interfaces = [one for one in node.get("NetworkInterfaces") or [] if one.get("InterfaceType") == "efa"]
    if not interfaces:
        return
    machine = MACHINES.get(node.get("InstanceType", ""), Machine(0))
    cards = sorted(one.get("NetworkCardIndex", 0) for one in interfaces)
    if cards != list(range(machine.network_cards)):
        yield (
            f"group {name}: EFA interfaces on network cards {cards}, expected one on each of the {machine.network_cards} of a "
            f"{node.get('InstanceType')}."
        )
    if zones := [zone for zone in str(provider.get("availability_zone", "")).split(",") if zone]:
        if len(zones) > 1:
            yield f"group {name}: EFA does not leave a zone; provider.availability_zone names {len(zones)}: {', '.join(zones)}."
    else:
        yield f"group {name}: EFA does not leave a zone: name it in provider.availability_zone."
    if not any("/dev/infiniband" in option for option in (group.get("docker") or {}).get("worker_run_options") or []):
        yield f"group {name}: the container does not see EFA: add --device=/dev/infiniband/uverbs0 and so on to its docker."


def _of_kuberay(spec: dict[str, Any]) -> Iterator[str]:
    authentication = spec.get("authOptions") or {}
    if authentication.get("mode") != "token":
        yield (
            "no authentication: whoever reaches the cluster can run code on it. Set authOptions to {mode: token, secretName: "
            "NAME}."
        )
    head, workers = spec.get("headGroupSpec") or {}, spec.get("workerGroupSpecs") or []
    if (head.get("rayStartParams") or {}).get("num-cpus") != "0":
        yield 'group head: rayStartParams without num-cpus: "0": trials would take CPUs of the head from Ray.'
    for name, group in [("head", head), *((group.get("groupName", "(no name)"), group) for group in workers)]:
        pod = (group.get("template") or {}).get("spec") or {}
        containers = pod.get("containers") or [{}]
        limits = (containers[0].get("resources") or {}).get("limits") or {}
        labels = group.get("labels") or {}
        yield from _gpu_problems(name, labels.get(ROLE), int(limits.get(GPU_LIMIT, 0)), "a pod")
        yield from _memory_problems(name, pod, limits)
    yield from _role_problems({group.get("groupName", "(no name)"): group.get("labels") or {} for group in workers})


def _memory_problems(name: str, pod: dict[str, Any], limits: dict[str, Any]) -> Iterator[str]:
    if "memory" not in limits or "cpu" not in limits:
        yield f"group {name}: no limits of cpu and memory: Ray would count all of the machine as this pod's."
        return
    mounted = {
        mount.get("name")
        for container in pod.get("containers") or []
        for mount in container.get("volumeMounts") or []
        if mount.get("mountPath") == "/dev/shm"
    }
    sizes = [
        (volume.get("emptyDir") or {}).get("sizeLimit")
        for volume in pod.get("volumes") or []
        if volume.get("name") in mounted and (volume.get("emptyDir") or {}).get("medium") == "Memory"
    ]
    if not sizes or sizes[0] is None:
        yield (
            f"group {name}: no sized /dev/shm (an emptyDir of medium Memory with a sizeLimit): Ray would keep its object store "
            "on the disk."
        )
    elif quantity(sizes[0]) >= quantity(limits["memory"]):
        yield f"group {name}: /dev/shm of {sizes[0]} counts towards the memory limit, which is {limits['memory']}."


def _gpu_problems(name: str, role: str | None, gpus: int, what: str) -> Iterator[str]:
    if role not in (HEAD, DECODE, TRAIN):
        yield f"group {name}: the label {ROLE} is {role or 'not set'}, expected {HEAD}, {DECODE} or {TRAIN}."
    elif role == TRAIN and not gpus:
        yield f"group {name}: its label {ROLE} is {TRAIN}, but {what} has no GPU."
    elif role != TRAIN and gpus:
        yield f"group {name}: its label {ROLE} is {role}, which needs no GPU, but {what} has {gpus}."


def _role_problems(labels: dict[str, dict[str, str]]) -> Iterator[str]:
    for role in (DECODE, TRAIN):
        if not any(one.get(ROLE) == role for one in labels.values()):
            yield f"no group of workers has the label {ROLE}: {role}."


def quantity(text: str | float) -> float:
    """A quantity of Kubernetes as a number: `quantity("600Gi")` is 600 × 2³⁰. Raises CornerstoneError if it is none."""
    number = str(text).rstrip("".join(set("".join(_UNITS))))
    unit = str(text)[len(number) :]
    try:
        return float(number) * _UNITS[unit]
    except (KeyError, ValueError):
        raise CornerstoneError(
            f"{text!r} is no quantity: expected a number and a unit, as 500m, 16 or 600Gi."
        ) from None


def main(paths: list[str]) -> None:
    """Check the files that the command line names."""
    try:
        for path in paths:
            count = check(path)
            print(f"{path}: {count} cluster{'s' * (count != 1)}, nothing wrong")
    except CornerstoneError as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main(sys.argv[1:])
