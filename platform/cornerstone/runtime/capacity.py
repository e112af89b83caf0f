"""How many trials of a placement the nodes of a cluster hold: each worker and each decode actor needs one node's room."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from cornerstone.recipes.placement import ROLE_LABEL, Bundle, Placement

ROUNDING = 1e-6
MOST = 1_000
"""Trials that are counted; a sweep has fewer."""


class Node(NamedTuple):
    """A node's resources, in use or not, and its role."""

    cpus: float
    gpus: float = 0.0
    group: str = ""

    def takes(self, bundle: Bundle) -> bool:
        """Whether the node has room for the bundle."""
        return (
            (not bundle.group or bundle.group == self.group)
            and bundle.cpus <= self.cpus + ROUNDING
            and bundle.gpus <= self.gpus + ROUNDING
        )

    def without(self, bundle: Bundle) -> Node:
        """The room that is left beside the bundle."""
        return self._replace(cpus=self.cpus - bundle.cpus, gpus=self.gpus - bundle.gpus)

    def __str__(self) -> str:
        gpus = f" and {_count(self.gpus, 'GPU')}" if self.gpus else ""
        return f"{_count(self.cpus, 'CPU')}{gpus}" + (f" (role {self.group})" if self.group else "")


def nodes() -> list[Node]:
    """The nodes of the cluster that are alive."""
    import ray

    found = []
    for node in ray.nodes():
        if node["Alive"]:
            resources, labels = node.get("Resources", {}), node.get("Labels") or {}
            found.append(Node(resources.get("CPU", 0.0), resources.get("GPU", 0.0), labels.get(ROLE_LABEL, "")))
    return found


def groups(cluster: Iterable[Node]) -> set[str]:
    """The roles that nodes have."""
    return {node.group for node in cluster} - {""}


def trials_held(placement: Placement, cluster: Sequence[Node]) -> int:
    """How many trials fit on the nodes at a time, if nothing else runs there.

    Each bundle goes to the first node that takes it, bundles with GPUs first, the others to nodes without GPUs if possible.
    """
    bundles = sorted(placement.bundles, key=lambda bundle: (bool(bundle.group), bundle.gpus, bundle.cpus), reverse=True)
    room = sorted(cluster, key=lambda node: (node.gpus, node.cpus))
    for trial in range(MOST):
        for bundle in bundles:
            place = next((place for place, node in enumerate(room) if node.takes(bundle)), None)
            if place is None:
                return trial
            room[place] = room[place].without(bundle)
    return MOST


def in_words(cluster: Iterable[Node]) -> str:
    """`2 nodes with 8 CPUs, 1 node with 64 CPUs and 8 GPUs`."""
    return ", ".join(f"{_count(n, 'node')} with {node}" for node, n in Counter(cluster).items()) or "no node"


def _count(number: float, what: str) -> str:
    return f"{number:g} {what}" + ("" if number == 1 else "s")
