"""The connection to Ray, and the check that the cluster is large enough: Ray itself would wait without a message."""

from __future__ import annotations

import logging
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, TypeVar

from cornerstone.errors import CornerstoneError, first_line
from cornerstone.recipes.placement import Placement
from cornerstone.runtime import autoscaler, capacity
from cornerstone.runtime.home import home, problem_of_home
from cornerstone.runtime.on_nodes import on_nodes

Say = Callable[[str], None]
T = TypeVar("T")
POLL_EVERY = 1.0  # seconds between polls of a cluster that the autoscaler is growing
CONNECT_TRIES, CONNECT_SECONDS = 3, 5.0
LONGEST_SOCKET = 107  # bytes of the path of a UNIX socket
SOCKET_NAME = len("/session_2026-01-31_14-25-01_123456_1234567/sockets/plasma_store.1")
SAY_EVERY = 60.0  # seconds between messages about it
NAMED = 3  # problems of nodes in a message


class StillGrowing(CornerstoneError):
    """The autoscaler has not added enough nodes in the time that it was given; it has not refused to."""


@contextmanager
def connect(say: Say) -> Iterator[None]:
    """Connect to Ray during the block: to the cluster of `RAY_ADDRESS` or of this job, or to a local Ray, started for it."""
    import ray

    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS")
    with ExitStack() as stack:
        if address:
            _join(address)
        else:
            # Ray logs that it generated an authentication token for the local cluster, which nobody needs to know.
            logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
            say("starting Ray on this machine (set RAY_ADDRESS to use a cluster)")
            port = _free_port()
            stack.enter_context(_dashboard_at(f"http://127.0.0.1:{port}"))
            ray.init(
                address="local",
                logging_level=logging.WARNING,
                log_to_driver=log_to_driver(),
                dashboard_host="127.0.0.1",
                dashboard_port=port,
                _temp_dir=_short_folder(say),
            )
        stack.callback(ray.shutdown)
        _warm_up()
        _set_log_levels()
        if address or not home().is_local:
            _check_home()
        yield


def _join(address: str) -> None:
    """Join the cluster of `RAY_ADDRESS`. Raises CornerstoneError, within seconds, if that is not possible."""
    import ray

    what = f"RAY_ADDRESS is {address!r}"
    how = "Set it to HOST:6379 of a running cluster, or unset it to start Ray on this machine."
    if address.startswith(("http://", "https://")):
        raise CornerstoneError(
            f"{what}: that is a dashboard, to which jobs are submitted: ray job submit -- python .. (it reads RAY_ADDRESS). "
            f"{how}"
        )
    found = _started_here() if address == "auto" else address
    host, _, port = found.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal() and not listens(host.strip("[]"), int(port)):
        if address == "auto":
            raise CornerstoneError(f"{what}, but the Ray that was last started here ({found}) has ended. {how}")
        raise CornerstoneError(f"{what}, where nothing answers. {how}")
    try:
        ray.init(address=address, logging_level=logging.WARNING, log_to_driver=log_to_driver())
    except Exception as error:  # Ray raises ConnectionError, ValueError, RuntimeError and others
        raise CornerstoneError(f"{what}, which cannot be joined: {first_line(error)}. {how}") from error


def listens(host: str, port: int) -> bool:
    """Whether something accepts connections there; Ray itself would try for minutes."""
    for _ in range(CONNECT_TRIES):
        try:
            socket.create_connection((host, port), CONNECT_SECONDS).close()
            return True
        except OSError:
            time.sleep(1.0)
    return False


def _started_here() -> str:
    """The address that `auto` stands for: of the Ray that was last started on this machine; "" if there is none."""
    from ray._private.utils import (
        read_ray_address,  # private: `auto` itself would wait minutes for a Ray that has ended
    )

    return read_ray_address() or ""


def sessions_folder() -> str:
    """Where a Ray that is started on this machine keeps its sessions: Ray's own choice, or a shorter path."""
    chosen = os.path.join(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir(), "ray")
    return chosen if len(chosen) + SOCKET_NAME <= LONGEST_SOCKET else "/tmp/ray"


def _short_folder(say: Say) -> str | None:
    """Another folder for Ray's files if that of TMPDIR makes the names of sockets too long; None for Ray's own choice."""
    given = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    if (folder := sessions_folder()) == os.path.join(given, "ray"):
        return None
    say(f"TMPDIR is too long for the names of Ray's sockets ({given}): Ray's files are in {folder}")
    os.environ["TMPDIR"], tempfile.tempdir = "/tmp", None  # Python's own sockets, in the processes that Ray starts
    return folder


@contextmanager
def _dashboard_at(url: str) -> Iterator[None]:
    """Set the dashboard's address for Ray processes that are started within the block.

    By default Ray Train's placement group cleaner asks the dashboard of the Ray that was last started on this machine by
    `ray start`. If that one is dead, the end of a run takes 10 s longer; if it is alive, it does not know the run, and the
    cleaner removes the placement group of a run that is still training.
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
def stoppable(how_to_continue: str, say: Say) -> Iterator[None]:
    """Within the block, Ctrl-C and `ray job stop` print how to continue, and exit with status 130.

    Enter it after `connect`, since Ray installs signal handlers that exit without a message. The message is printed before
    any clean-up: a stopped job is killed after three seconds. A second signal exits at once.
    """

    printed = threading.Event()

    def print_once() -> None:
        if not printed.is_set():
            printed.set()
            say(f"\nStopped. {how_to_continue}")

    def stop(number: int, frame: Any) -> None:
        for other in before:
            signal.signal(other, signal.SIG_DFL)
        print_once()
        raise KeyboardInterrupt

    in_main_thread = threading.current_thread() is threading.main_thread()
    before = {n: signal.signal(n, stop) for n in (signal.SIGINT, signal.SIGTERM)} if in_main_thread else {}
    try:
        yield
    except KeyboardInterrupt:
        print_once()
        raise SystemExit(130) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def interruptible(call: Callable[[], T]) -> T:
    """The result of `call`, made in another thread: Ray Train takes over Ctrl-C in the main one."""
    outcome: list[T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(call())
        except BaseException as error:  # raised again in the caller's thread
            failure.append(error)

    thread = threading.Thread(target=run, daemon=True, name="run")
    thread.start()
    while thread.is_alive():
        thread.join(0.2)
    if failure:
        raise failure[0]
    return outcome[0]


def _warm_up() -> None:
    """Start Ray Data's first execution, which is slow, in a task, while the caller prepares; its result is not awaited."""
    import ray

    ray.remote(num_cpus=0)(_first_execution).remote()


def _first_execution() -> None:
    from cornerstone.data.execution import warm_up

    warm_up()


def _set_log_levels() -> None:
    """Silence Ray Data's messages about the plan and the end of each execution."""
    import ray.data  # noqa: F401 - its loggers are set up by this import

    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # the warning "progress bars disabled"


def log_to_driver() -> bool:
    """Whether the output of workers is printed, by `CORNERSTONE_WORKER_LOGS=1`. Progress and errors always are."""
    return os.environ.get("CORNERSTONE_WORKER_LOGS", "") not in ("", "0")


def require(placement: Placement, say: Say) -> Placement:
    """Return once the cluster is large enough for one trial, with GPUs and groups of nodes decided (`Placement.on_cluster`).

    If the cluster is too small and no autoscaler can add what is missing, raises CornerstoneError at once, with the
    arithmetic. Otherwise asks the autoscaler for the trial's bundles and waits for up to `placement.wait_limit` seconds.
    """
    automatic, given = placement.gpus_per_worker is None, placement
    placement, found = decided(given, capacity.nodes()), capacity.nodes()
    if capacity.trials_held(placement, found):
        return placement
    start, said, request = time.monotonic(), float("-inf"), autoscaler.Request(placement)
    grows = autoscaler.present() and not _is_beyond(placement, autoscaler.limits(), found)
    try:
        while not capacity.trials_held(placement, found):
            has = f"the cluster has {capacity.in_words(found)}"
            if not grows or (request.is_refused() and _is_idle()):
                why = (
                    f"its autoscaler cannot add what is missing{_at_most(autoscaler.limits())}"
                    if autoscaler.present()
                    else "no autoscaler can add more"
                )
                raise CornerstoneError(
                    f"This placement needs {placement.arithmetic()}; {has}, and {why}. "
                    f"Lower --workers, --placement.cpus-per-worker, --placement.decode-actors or "
                    f"--placement.cpus-per-decode-actor, or use a larger cluster."
                    + (" --placement.gpus-per-worker 0 trains on CPUs." if automatic and placement.gpus else "")
                )
            waited = time.monotonic() - start
            if waited > placement.wait_limit:
                raise StillGrowing(
                    f"Waited {waited:.0f} s for the autoscaler: {has}. This placement needs {placement.arithmetic()}. "
                    f"See `ray status`, or raise --placement.wait-limit."
                )
            if time.monotonic() - said > SAY_EVERY:
                said = time.monotonic()
                say(f"waiting for the autoscaler to add room for {placement.arithmetic()} ({has})")
            request.ask(1)
            time.sleep(POLL_EVERY)
            found = capacity.nodes()
            placement = decided(given, found)
    finally:
        request.withdraw()
    return placement


def decided(placement: Placement, cluster: Sequence[capacity.Node]) -> Placement:
    """The placement with GPUs and groups decided. Groups that it does not name are used only if a trial fits there."""
    gpus = max(sum(node.gpus for node in cluster), autoscaler.limits().get("GPU", 0.0))
    grouped, anywhere = placement.on_cluster(gpus, capacity.groups(cluster)), placement.on_cluster(gpus)
    fits = capacity.trials_held(grouped, cluster) or not capacity.trials_held(anywhere, cluster)
    return grouped if fits else anywhere


def _is_beyond(placement: Placement, limits: Mapping[str, float], cluster: Sequence[capacity.Node]) -> bool:
    """Whether an autoscaler that says how far it goes cannot grow the cluster that far."""
    cpus = max(limits.get("CPU", 0.0), sum(node.cpus for node in cluster))
    gpus = max(limits.get("GPU", 0.0), sum(node.gpus for node in cluster))
    return bool(limits) and (placement.trial_cpus > cpus + capacity.ROUNDING or placement.trial_gpus > gpus)


def _at_most(limits: Mapping[str, float]) -> str:
    """` (it stops at 64 CPUs and 8 GPUs)`; "" if it does not say where."""
    held = capacity.Node(limits.get("CPU", 0.0), limits.get("GPU", 0.0))
    return f" (it stops at {held})" if limits else ""


def _is_idle() -> bool:
    """Whether nothing else uses the cluster. If something does, what the autoscaler cannot add may become free."""
    import ray

    held, free = ray.cluster_resources(), ray.available_resources()
    return all(free.get(kind, 0.0) >= held.get(kind, 0.0) - capacity.ROUNDING for kind in ("CPU", "GPU"))


def _check_home() -> None:
    """Raise CornerstoneError if this process, or another machine of the cluster, cannot write to the home, or sees another."""
    import ray

    machines = {node["NodeManagerAddress"]: node["NodeID"] for node in ray.nodes() if node["Alive"]}
    if home().is_local and len(machines) < 2:
        return
    token = f"{os.getpid()}-{time.time_ns()}"
    if problem := problem_of_home(token, write=True):
        raise CornerstoneError(problem)
    try:
        found = [problem for problem in _problems_of_home(list(machines.values()), token) if problem]
    finally:
        with suppress(Exception):  # credentials that may write need not be allowed to delete
            home().join(".probe", token).remove()
    if found:
        raise CornerstoneError("\n".join(found[:NAMED]) + (f"\n(and {len(found) - NAMED} more)" * (len(found) > NAMED)))


def _problems_of_home(nodes: Sequence[str], token: str) -> list[str]:
    """What `problem_of_home` says on each node."""
    return on_nodes(nodes, problem_of_home, token, False, home().uri, failed=str)
