"""A function's results on nodes of the cluster, of which some may go away, or be too busy to answer, in the meantime."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from cornerstone.errors import first_line

T = TypeVar("T")
SECONDS = 120.0  # for all nodes to answer
_LOOK = "Look at `ray status` and at that node's load and logs, then try again."


def on_nodes(
    nodes: Sequence[str],
    call: Callable[..., T],
    *arguments: Any,
    failed: Callable[[str], T],
    seconds: float = SECONDS,
) -> list[T]:
    """What `call(*arguments)` returns on each node, given by their ids, in the order of the nodes.

    A node that is removed, as an autoscaler does, is left out. For one that is there and does not answer in time, or cannot
    run the call, the result is `failed(text)`, where the text says so.
    """
    import ray
    from ray.exceptions import GetTimeoutError, NodeDiedError, RayError, TaskUnschedulableError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task: Any = ray.remote(num_cpus=0)(call)
    places = [NodeAffinitySchedulingStrategy(node_id=node, soft=False) for node in nodes]
    asked = [task.options(scheduling_strategy=place).remote(*arguments) for place in places]
    deadline, found = time.monotonic() + seconds, []
    for node, reference in zip(nodes, asked, strict=True):
        try:
            found.append(ray.get(reference, timeout=max(0.0, deadline - time.monotonic())))
        except (TaskUnschedulableError, NodeDiedError):
            continue
        except GetTimeoutError:
            if address := _address(node):
                found.append(failed(f"The node {address} has not answered within {seconds:.0f} s. {_LOOK}"))
            ray.cancel(reference, force=True)
        except RayError as error:
            if address := _address(node):
                found.append(
                    failed(
                        f"The node {address} cannot run a task ({type(error).__name__}: {first_line(error)}). {_LOOK}"
                    )
                )
    return found


def _address(node: str) -> str:
    """Of a node that is there; "" for one that is gone."""
    import ray

    return next((str(one["NodeManagerAddress"]) for one in ray.nodes() if one["NodeID"] == node and one["Alive"]), "")
