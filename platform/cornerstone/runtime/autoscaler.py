"""Ray's autoscaler: whether there is one, and the request that a cluster should grow by some trials.

A request is one pending placement group a trial: the autoscaler adds exactly the nodes for its bundles, beside what is in use.
`ray.autoscaler.sdk.request_resources` does not serve here: Ray Data and Ray Train replace each other's requests, and anybody's,
with their own every 20 s, and it counts what runs a second time.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from cornerstone.recipes.placement import Placement

if TYPE_CHECKING:
    from ray.util.placement_group import PlacementGroup

SETTLE = 15.0
"""Seconds without a request after a trial was started: it must get its resources before the placement groups of others do."""


def present() -> bool:
    """Whether an autoscaler reports to the cluster. One that only watches, as beside a plain `ray start`, does not."""
    return bool(_status().HasField("autoscaling_state")) or bool(limits())


def limits() -> dict[str, float]:
    """The most resources to which the autoscaler may grow the cluster, where it says so; Ray's own does not."""
    from ray._private.state import state  # private: there is no public call for the autoscaler's limits

    found = state.get_max_resources_from_cluster_config()
    return {kind: float(amount) for kind, amount in (found or {}).items()}


class Request:
    """What the autoscaler is asked for. It ends with `withdraw`, or with the process."""

    def __init__(self, placement: Placement) -> None:
        self._placement = placement
        self._groups: list[PlacementGroup] = []
        self._not_before = 0.0

    def ask(self, trials: int) -> None:
        """Ask for the bundles of so many trials that wait. Those that were asked for already stay asked for."""
        from ray.util.placement_group import placement_group, remove_placement_group

        while len(self._groups) > trials:
            remove_placement_group(self._groups.pop())
        if time.monotonic() < self._not_before:
            return
        bundles = self._placement.bundles
        while len(self._groups) < trials:
            self._groups.append(
                placement_group(
                    [bundle.resources for bundle in bundles],
                    strategy="PACK",
                    bundle_label_selector=[bundle.selector for bundle in bundles],
                )
            )

    def is_refused(self) -> bool:
        """Whether the autoscaler says that it cannot add the nodes for any of the trials, beside what is in use."""
        refused = {
            request.details.partition(":")[0]
            for request in _status().autoscaling_state.infeasible_gang_resource_requests
        }
        return bool(self._groups) and all(group.id.hex() in refused for group in self._groups)

    def holds_room(self) -> bool:
        """Whether a placement group got its resources, which nobody else can use now."""
        from ray.util.placement_group import placement_group_table

        return any(placement_group_table(group).get("state") == "CREATED" for group in self._groups)

    def withdraw(self, settle: float = 0.0) -> None:
        """Ask for nothing, for at least `settle` seconds. The cluster may shrink."""
        self.ask(0)
        self._not_before = time.monotonic() + settle


def _status() -> Any:
    """What the control store knows of the autoscaler."""
    import ray
    from ray._raylet import GcsClient  # type: ignore[attr-defined]  # private: what `ray status` reads
    from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply  # type: ignore[attr-defined]

    reply = GetClusterStatusReply()
    reply.ParseFromString(GcsClient(address=ray.get_runtime_context().gcs_address).get_cluster_status())
    return reply
