"""Kill -9 at a random moment: what the optimizer's steps saw, and what they made of it, is what it would have been.

Every run has a Ray of its own, in a process group of its own. The moment is drawn from the time, and named where a test
fails.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from recording import RecordedConfig, ShortExecutionsJob, counted, lines

from cornerstone.data.layout import UNITS_PER_EXECUTION
from cornerstone.recipes import CornerText, Evaluation, ImageTower, Optimization, PairData, Placement, Recipe
from cornerstone.training.job import Identity
from cornerstone.training.launch import SNAPSHOT, latest_step
from cornerstone.training.prepare import prepare

from ..conftest import picture

pytestmark = [pytest.mark.faults, pytest.mark.timeout(400)]
DRIVER = Path(__file__).parents[2] / "support" / "driver.py"
STEPS, BATCH, ROWS, EVERY = 36, 11, 100, 5
"""Epochs end in steps 9, 18 and 27; a checkpoint every 5 steps."""


NOTICED_SOON = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "2",
}
"""Workers outlive their raylet until it is missed: after 20 s by default, in which a small run ends."""


@dataclass
class Trial:
    """A run, started as often as it takes."""

    job: ShortExecutionsJob
    folder: Path
    process: subprocess.Popen[bytes] | None = None
    resumed: list[int] = field(default_factory=list)
    """Steps of the last committed checkpoint at each strike."""
    struck_down: set[int] = field(default_factory=set)
    """Process ids of rank 0 at each strike."""

    @property
    def seen(self) -> Path:
        return Path(self.job.recipe.method.seen)

    @property
    def outcome(self) -> dict[str, Any]:
        return json.loads((self.folder / "outcome.json").read_text())

    def start(self, workers: int) -> Trial:
        """Start the driver; it goes on from the last checkpoint."""
        (self.folder / "job").write_bytes(pickle.dumps(self.job))
        command = [
            sys.executable,
            str(DRIVER),
            str(self.folder / "job"),
            str(workers),
            str(self.folder / "outcome.json"),
        ]
        with (self.folder / "log").open("ab") as log:
            environment = {**os.environ, **NOTICED_SOON}
            self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, env=environment)
        return self

    def reach(self, step: int) -> None:
        """Wait until rank 0 is past a step that it has not done before, in another process than those that were struck: what
        is left of the workers goes on for some steps until it misses the one that was killed.
        """
        already = len(self.records())
        while (process := self.process) and process.poll() is None:
            later = (line for line in self.records()[already:] if line["pid"] not in self.struck_down)
            if any(line["step"] >= step for line in later):
                wait_a_moment()
                return
            time.sleep(0.02)
        raise AssertionError(f"ended before step {step}:\n{self.log()}")

    def ranks(self) -> int:
        """Workers that have written."""
        return len(list(self.seen.glob("*.jsonl")))

    def records(self) -> list[dict[str, Any]]:
        return lines(self.seen, 0) if (self.seen / "0.jsonl").exists() else []

    def finish(self) -> Trial:
        """Wait for the end, which must be a good one."""
        assert self.process is not None
        assert self.process.wait(timeout=200) == 0, self.log()
        return self

    def tree(self) -> list[psutil.Process]:
        """The driver's Ray and all of its workers."""
        assert self.process is not None
        return psutil.Process(self.process.pid).children(recursive=True)

    def struck(self) -> None:
        """Note where a strike fell: the checkpoint from which the run must go on, and who took the steps."""
        self.resumed.append(latest_step(self.job))
        self.struck_down.update(line["pid"] for line in self.records())

    def decode_actors(self) -> dict[int, psutil.Process]:
        """Those that live, by process id."""
        found = {}
        for process in self.tree():
            with contextlib.suppress(psutil.Error):  # it may end while it is looked at
                if "MapWorker" in " ".join(process.cmdline()):
                    found[process.pid] = process
        return found

    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")[-4000:]


@pytest.fixture(scope="module")
def large(tmp_path_factory, small_data, wordpiece) -> str:
    """100 pairs whose pictures take a while to decode, so that the actors are at work until near the end."""
    folder = tmp_path_factory.mktemp("large") / "train"
    pairs = (small_data.pair(i, image=picture(i, enlarged=50), width=2000, height=1800) for i in range(ROWS))
    small_data.write(folder, pairs)
    (folder / "tokenizer.json").write_text(wordpiece.read_text())
    return str(folder)


@pytest.fixture
def trial_of(shards, tmp_path) -> Iterator[Callable[..., Trial]]:
    """A new run; whatever is left of it is killed in the end."""
    trials: list[Trial] = []

    def make(
        train: str = shards.train,
        zero_stage: int = 0,
        steps: int = STEPS,
        every: int = EVERY,
        pause: float = 0.15,
        units_per_execution: int = UNITS_PER_EXECUTION,
        **trouble: Any,
    ) -> Trial:
        identity, folder = Identity(), tmp_path / f"trial-{len(trials)}"
        (folder / "seen").mkdir(parents=True)
        method = RecordedConfig(
            image=ImageTower(name=shards.tower, size=32),
            text=CornerText(name="", width=32, layers=1, heads=2, token_limit=24),
            seen=str(folder / "seen"),
            snapshot=identity.checkpoints.join(identity.run, SNAPSHOT).uri,
            pause=pause,
            **trouble,
        )
        recipe = Recipe(
            "small",
            method,
            PairData(train=train, crop_scale=(0.8, 1.0), bad_row_limit=0.2),
            Optimization(steps=steps, batch_size=BATCH, learning_rate=5e-3, warmup_steps=2),
            Evaluation(sets=()),
            seed=3,
        )
        placement = Placement(
            cpus_per_worker=0.25,
            cpus_per_decode_actor=0.25,
            zero_stage=zero_stage,
            checkpoint_every=every,
            health_check_interval=0.2,
            max_failures=5,
        )
        job = ShortExecutionsJob(prepare(recipe), placement, identity, units_per_execution)
        trials.append(Trial(job, folder))
        return trials[-1]

    yield make
    for trial in trials:
        if trial.process is not None and trial.process.poll() is None:
            end([*trial.tree(), psutil.Process(trial.process.pid)])


def end(processes: list[psutil.Process]) -> None:
    """Kill what still lives; return when all are gone, so that none writes a line any more."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=20)


def a_worker(trial: Trial) -> None:
    at_work = {line["pid"] for rank in range(trial.ranks()) for line in lines(trial.seen, rank)[-1:]}
    living = [process for process in trial.tree() if process.pid in at_work]
    assert living, "no worker is at work"
    trial.struck()
    random.choice(living).kill()


def a_data_actor(trial: Trial) -> None:
    actors = trial.decode_actors()
    assert actors, trial.tree()
    random.choice(list(actors.values())).kill()
    patience = time.monotonic() + 30
    while not trial.decode_actors().keys() - actors.keys():
        assert time.monotonic() < patience, "no actor took its place: it had nothing to do"
        time.sleep(0.05)


def the_driver(trial: Trial) -> None:
    assert trial.process is not None
    trial.struck()
    orphans = trial.tree()
    trial.process.kill()
    trial.process.wait()
    end(orphans)


def the_raylet(trial: Trial) -> None:
    """The machine is lost to Ray: the driver ends by itself, without success."""
    assert trial.process is not None
    trial.struck()
    orphans = trial.tree()
    next(process for process in orphans if process.name() == "raylet").kill()
    try:
        assert trial.process.wait(timeout=120) != 0
    finally:
        trial.process.kill()
        end(orphans)


def planned(trial: Trial) -> dict[int, list[tuple[int, int]]]:
    """(row, epoch) of every step, by the plan."""
    plan = trial.job.prepared.stream().plan
    return {step: list(zip(*map(list, plan.batch(step)), strict=True)) for step in range(plan_steps(trial))}


def check_starts(trial: Trial) -> None:
    """Every start of rank 0 took the steps one after another from the last checkpoint on; that of each strike, or the next
    one, which may have been on its way.
    """
    starts: dict[int, list[int]] = {}
    for line in lines(trial.seen, 0):
        starts.setdefault(line["pid"], []).append(line["step"])
    runs = list(starts.values())
    assert all(steps == list(range(steps[0], steps[0] + len(steps))) for steps in runs)
    assert runs[0][0] == 0
    assert len(runs) == len(trial.resumed) + 1, (trial.resumed, runs)
    for due, steps, before in zip(trial.resumed, runs[1:], runs, strict=False):
        assert steps[0] in (due, due + EVERY), (due, steps[0])
        assert steps[0] <= before[-1] + 1, "nothing is left out"


def plan_steps(trial: Trial) -> int:
    return trial.job.recipe.optimization.steps


def check_rows(trial: Trial) -> None:
    """The ids of the steps, in order; and every row of every whole epoch once."""
    check_starts(trial)
    found = dict(counted(trial.seen))
    assert found == planned(trial)
    times = Counter(row for rows in found.values() for row in rows)
    whole, left = divmod(plan_steps(trial) * BATCH, ROWS)
    assert Counter(epoch for _, epoch in times) == {
        **dict.fromkeys(range(whole), ROWS),
        **({whole: left} if left else {}),
    }
    assert set(times.values()) == {1}


def moment(first: int = 1, last: int = STEPS - 4) -> int:
    """A random step."""
    step = random.SystemRandom().randint(first, last)
    print(f"strikes after step {step}")
    return step


def wait_a_moment() -> None:
    """Up to as long as a step takes: the strike falls anywhere in it, or in what comes between two."""
    seconds = random.SystemRandom().random() * 0.4
    print(f"and {seconds:.3f} s")
    time.sleep(seconds)


@pytest.mark.parametrize("workers", [1, 3])  # the tests of edges below have 2
def test_workers_that_ray_starts_again_go_on(trial_of, large, workers):
    """Killed twice in a row, the second time soon after the first."""
    trial = trial_of(large, pause=0.05).start(workers)
    first = moment(last=STEPS // 2)
    trial.reach(first)
    a_worker(trial)
    trial.reach(moment(first, first + 5))
    a_worker(trial)
    check_rows(trial.finish())


@pytest.mark.parametrize("workers", [1, 3])  # the tests of edges below have 2
def test_data_actors_that_ray_starts_again_go_on(trial_of, large, workers):
    """Killed twice in a row, the second time as soon as there is another one: by the next step the rest may be decoded."""
    trial = trial_of(large, pause=0.05).start(workers)
    trial.reach(moment(last=STEPS // 4))
    a_data_actor(trial)
    wait_a_moment()
    a_data_actor(trial)
    check_rows(trial.finish())


@pytest.mark.parametrize(
    ("strike", "zero_stage", "before", "between", "after"),
    [(the_driver, 1, 1, 2, 3), (the_driver, 1, 3, 1, 2), (the_raylet, 0, 2, 3, 1)],
    ids=["driver-1-2-3", "driver-3-1-2", "raylet-2-3-1"],
)
def test_another_number_of_workers_goes_on(trial_of, strike, zero_stage, before, between, after):
    """Killed twice, and resumed by other numbers of workers each time; with and without shards of the optimizer's state."""
    trial = trial_of(steps=48, pause=0.3, zero_stage=zero_stage).start(before)
    trial.reach(moment(last=12))
    strike(trial)
    trial.start(between)
    trial.reach(trial.records()[-1]["step"] + moment(1, 6))
    strike(trial)
    trial.start(after).finish()
    check_rows(trial)
    assert {line["workers"] for line in lines(trial.seen, 0)} == {1, 2, 3}


def test_a_kill_in_the_step_where_an_epoch_ends(trial_of):
    trial = trial_of().start(2)
    for edge in (9, 18, 27):
        trial.reach(edge)
        a_worker(trial)
    check_rows(trial.finish())


@pytest.mark.parametrize("strike", [a_worker, a_data_actor], ids=["worker", "data actor"])
def test_a_kill_where_one_execution_of_the_stream_follows_another(trial_of, large, strike):
    trial = trial_of(large, units_per_execution=4).start(2)
    edges = [stop for _, stop in trial.job.layout(2).executions(0)][:-1]
    assert len(edges) > 2
    for edge in edges[1:3]:
        trial.reach(edge - 1)
        strike(trial)
    check_rows(trial.finish())


@pytest.mark.parametrize("workers", [1, 2])
def test_twenty_steps_are_seven_a_kill_and_thirteen(trial_of, workers):
    """Parameters, the optimizer's state and the random state, bit for bit, under ZeRO 1."""
    whole = trial_of(zero_stage=1, steps=20, every=7, pause=0.02).start(workers).finish()
    cut = trial_of(zero_stage=1, steps=20, every=7, after=7, kill_at=7, kill_rank=workers - 1).start(workers).finish()
    steps = [line["step"] for line in lines(cut.seen, workers - 1)]
    assert steps == [*range(20)]  # the killed one wrote nothing of step 7
    assert len({line["pid"] for line in lines(cut.seen, workers - 1)}) == 2
    for rank in range(workers):
        last = [lines(trial.seen, rank)[-1]["random"] for trial in (whole, cut)]
        assert last[0] == last[1]
    states = [checkpoint(trial.outcome["checkpoint"]) for trial in (whole, cut)]
    assert states[0].keys() == states[1].keys()
    assert any("optim" in name for name in states[0])
    for name, state in states[0].items():
        assert_equal(state, states[1][name], name)


def checkpoint(folder: str) -> dict[str, Any]:
    """Every file of tensors in a checkpoint."""
    files = sorted(Path(folder).rglob("*.pt"))
    return {str(file.relative_to(folder)): torch.load(file, weights_only=False) for file in files}


def assert_equal(one: Any, other: Any, where: str) -> None:
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key, value in one.items():
            assert_equal(value, other[key], f"{where}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for place, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_equal(a, b, f"{where}.{place}")
    elif isinstance(one, np.ndarray):
        assert np.array_equal(one, other), where
    elif hasattr(one, "__dict__") and type(one).__eq__ is object.__eq__:
        assert type(one) is type(other), where
        assert_equal(vars(one), vars(other), where)
    else:
        assert one == other, where
