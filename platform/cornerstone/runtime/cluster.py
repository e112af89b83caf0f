"""Connecting to Ray, and refusing what the cluster cannot hold before anything waits in silence."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from cornerstone.errors import CornerstoneError
from cornerstone.recipes.placement import Placement
from cornerstone.runtime.home import home

Say = Callable[[str], None]
LOOK_EVERY = 5.0  # seconds between looks at a growing cluster
SAY_EVERY = 60.0


@contextmanager
def connect(say: Say) -> Iterator[None]:
    """Ray for the length of the block: the cluster of `RAY_ADDRESS` or of this job, or one started here and stopped after."""
    import ray

    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS")
    with ExitStack() as own:
        if address:
            ray.init(address=address, logging_level=logging.WARNING, log_to_driver=log_to_driver())
        else:
            # A Ray of one's own is guarded by a token of Ray's making; it needs no telling.
            logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
            say("starting Ray on this machine (set RAY_ADDRESS to use a cluster)")
            port = _free_port()
            own.enter_context(_asked_at(f"http://127.0.0.1:{port}"))
            ray.init(
                address="local",
                logging_level=logging.WARNING,
                log_to_driver=log_to_driver(),
                dashboard_host="127.0.0.1",
                dashboard_port=port,
            )
        own.callback(ray.shutdown)
        _warm_up()
        _quieten()
        if address:
            _check_reach()
        yield


@contextmanager
def _asked_at(url: str) -> Iterator[None]:
    """Ray's processes that start within the block ask their own dashboard about its actors.

    They would ask that of the Ray which was last started on this machine by `ray start`, and Ray Train's placement group
    cleaner takes its word: a dead one costs 10 s at a run's end, a living one knows no such run and has it cleaned up.
    """
    variable = "RAY_API_SERVER_ADDRESS"
    before = os.environ.get(variable)
    os.environ[variable] = url
    try:
        yield
    finally:
        del os.environ[variable]
        if before is not None:
            os.environ[variable] = before


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def stoppable(how_to_go_on: str, say: Say) -> Iterator[None]:
    """Within the block Ctrl-C and `ray job stop` say how to go on, and end the program with status 130.

    Entered after Ray was connected, whose own handlers would end the process without a word. It is said before anything
    is tidied up: a stopped job has three seconds until it is killed. A second signal ends the program at once.
    """

    told = threading.Event()

    def tell() -> None:
        if not told.is_set():
            told.set()
            say(f"\nStopped. {how_to_go_on}")

    def stop(number: int, frame: Any) -> None:
        for again in before:
            signal.signal(again, signal.SIG_DFL)
        tell()
        raise KeyboardInterrupt

    in_main_thread = threading.current_thread() is threading.main_thread()
    before = {n: signal.signal(n, stop) for n in (signal.SIGINT, signal.SIGTERM)} if in_main_thread else {}
    try:
        yield
    except KeyboardInterrupt:
        tell()
        raise SystemExit(130) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _warm_up() -> None:
    """Have Ray Data's first execution done by the cluster while the caller prepares; nobody waits for it."""
    import ray

    ray.remote(num_cpus=0)(_first_execution).remote()


def _first_execution() -> None:
    from cornerstone.data.execution import warm_up

    warm_up()


def _quieten() -> None:
    """Ray Data tells of each execution's plan and end; what a person follows is the progress of what it serves."""
    import ray.data  # noqa: F401 - its loggers are set up by this import

    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # "progress bars disabled": by us


def log_to_driver() -> bool:
    """Whether workers' own output is shown: `CORNERSTONE_WORKER_LOGS=1`. Progress and errors are shown in any case."""
    return os.environ.get("CORNERSTONE_WORKER_LOGS", "") not in ("", "0")


def require(placement: Placement, say: Say) -> None:
    """Return once the cluster holds one trial of this placement.

    Raises CornerstoneError at once, with the arithmetic, where the cluster is too small and no autoscaler could bring what
    is missing; otherwise waits for it, saying for what, up to `placement.wait_limit` seconds.
    """
    import ray

    needed = {"CPU": placement.trial_cpus, "GPU": float(placement.trial_gpus)}
    limits = autoscaler_limits()
    begun = said = time.monotonic() - SAY_EVERY
    begun += SAY_EVERY
    with ExitStack() as afterwards:
        while missing := _missing(needed, ray.cluster_resources()):
            has = ", ".join(f"{ray.cluster_resources().get(kind, 0):g} {kind}s" for kind in needed)
            reachable = not _missing(needed, limits)
            if not reachable:
                raise CornerstoneError(
                    f"This placement needs {placement.arithmetic()}; the cluster has {has}, and no autoscaler can bring more. "
                    f"Lower --workers, --placement.cpus-per-worker, --placement.decode-actors or "
                    f"--placement.cpus-per-decode-actor, or use a larger cluster."
                )
            if time.monotonic() - begun > placement.wait_limit:
                raise CornerstoneError(
                    f"Waited {placement.wait_limit:.0f} s for {missing}: the cluster has {has}. This placement needs "
                    f"{placement.arithmetic()}. See `ray status`, or raise --placement.wait-limit."
                )
            if time.monotonic() - said > SAY_EVERY:
                said = time.monotonic()
                say(
                    f"waiting for the autoscaler to bring {missing} (the cluster has {has}; needed: {placement.arithmetic()})"
                )
                _ask_for(needed)
                afterwards.callback(_ask_for, {})  # a request stands until the next: the cluster would never shrink
            time.sleep(LOOK_EVERY)


def _missing(needed: dict[str, float], held: dict[str, float]) -> str:
    """`2.5 CPUs and 1 GPUs`, or nothing."""
    short = {
        kind: amount - held.get(kind, 0.0) for kind, amount in needed.items() if amount > held.get(kind, 0.0) + 1e-6
    }
    return " and ".join(f"{amount:g} {kind}s" for kind, amount in short.items())


def autoscaler_limits() -> dict[str, float]:
    """The most that the autoscaler may bring; empty where there is none. Ray Train sizes its workers by the same call."""
    from ray._private.state import state

    limits = state.get_max_resources_from_cluster_config()
    return {kind: float(amount) for kind, amount in (limits or {}).items()}


def _ask_for(needed: dict[str, float]) -> None:
    """Tell the autoscaler what is wanted: it grows a cluster for demands, and nothing demands anything yet."""
    from ray.autoscaler.sdk import request_resources

    request_resources(bundles=[{kind: 1} for kind, amount in needed.items() for _ in range(int(amount + 0.999))])


def _check_reach() -> None:
    """Refuse a home on this machine's disk where the cluster has other machines that must write to it."""
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"]]
    if not home().is_local or len({node["NodeManagerAddress"] for node in nodes}) < 2:
        return
    probe = home().join(".reach", f"{os.getpid()}-{time.time_ns()}")
    probe.write_text("seen from here")
    try:
        blind = [node["NodeManagerAddress"] for node in nodes if not _sees(node["NodeID"], probe.uri)]
    finally:
        probe.remove()
    if blind:
        raise CornerstoneError(
            f"CORNERSTONE_HOME is {home()}, which {', '.join(blind[:3])} cannot read: on a cluster of several machines set it "
            f"to a shared folder or a storage URI (s3://bucket/cornerstone)."
        )


def _sees(node: str, path: str) -> bool:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there = ray.remote(num_cpus=0)(os.path.exists).options(
        scheduling_strategy=NodeAffinitySchedulingStrategy(node_id=node, soft=False)
    )
    return bool(ray.get(there.remote(path)))
