"""Parts `memory` and `slow`: memory of a pass over the data, and what a slow consumer costs."""

from __future__ import annotations

import contextlib
import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil

from benchmarks.reading import BATCH, EXECUTOR, cornerstone_batches, processor_seconds_by_role, write_shards
from benchmarks.report import own_process, table
from cornerstone.data.records import Pair


def memory(folder: Path, pairs: list[Pair]) -> None:
    """Peak memory of all processes and of Ray's object store during one pass; a Ray of its own for each size."""
    rows = []
    for count in (2_000, 20_000):
        shards = write_shards(folder / f"rows-{count}", pairs, count)
        size = sum(file.stat().st_size for file in Path(shards).iterdir()) / 1e6
        found = json.loads(own_process("memory", shards, str(count // BATCH), "0"))
        measured = [f"{found[name]:,.0f}" for name in ("rows", "private", "store", "spilled", "seconds")]
        rows.append([measured[0], f"{size:,.0f}", *measured[1:]])
    header = [
        "rows",
        "MB of shards",
        "private memory of all processes, MB",
        "object store, MB",
        "spilled, MB",
        "seconds",
    ]
    table("One pass; the 16,000 scenes of the demo are 43 MB", header, rows)


def slow(folder: Path, pairs: list[Pair]) -> None:
    """Memory and executor load under back-pressure: the consumer is slower than decoding."""
    shards = write_shards(folder / "slow", pairs, len(pairs))
    found = json.loads(own_process("memory", shards, "80", "0.4"))
    measured = [f"{found['store']:,.0f}", f"{found['spilled']:,.0f}", f"{found['executor']:.2f}"]
    header = ["object store, MB", "spilled, MB", "Ray Data's executor, cores"]
    table("A consumer that takes 0.4 s per batch", header, [measured])


class _Peaks:
    """Samples the memory of all processes and the shared memory of the machine twice a second."""

    def __init__(self) -> None:
        self.private = self.store = 0.0
        self._shared_before = psutil.virtual_memory().shared
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._stop.wait(0.5):
            private = 0
            for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
                with contextlib.suppress(psutil.Error):
                    private += process.memory_full_info().uss
            self.private = max(self.private, private / 1e6)
            self.store = max(self.store, (psutil.virtual_memory().shared - self._shared_before) / 1e6)

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()


def main(folder: str, steps: int, pause: float) -> None:
    """Stream some batches to a consumer that takes `pause` seconds for each; print what was measured as JSON."""
    import ray

    from cornerstone.runtime.cluster import connect

    with connect(lambda line: None):
        peaks, begun = _Peaks(), time.perf_counter()
        done, used, since, executor = 0, 0.0, begun, 0.0
        for batch in cornerstone_batches(folder, steps=steps):
            done += batch is not None
            if done == steps // 4:  # the start-up is over
                used, since = processor_seconds_by_role().get(EXECUTOR, 0.0), time.perf_counter()
            if done == steps - 1:
                executor = processor_seconds_by_role().get(EXECUTOR, 0.0) - used
                executor /= time.perf_counter() - since
            time.sleep(pause)
        seconds = time.perf_counter() - begun
        peaks.stop()
        # Private interface of Ray: nothing public names the folder of its session, in which spilled objects lie.
        node: Any = ray._private.worker._global_node
        session = Path(node.get_session_dir_path())
        folders = session.glob("ray_spilled_objects*")
        spilled = sum(file.stat().st_size for each in folders for file in each.rglob("*") if file.is_file())
        measured = {
            "rows": done * BATCH,
            "private": peaks.private,
            "store": peaks.store,
            "spilled": spilled / 1e6,
            "executor": executor,
            "seconds": seconds,
        }
        print(json.dumps(measured), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
