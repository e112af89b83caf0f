"""Sweeps without Ray: a stand-in gives the trials' results."""

from __future__ import annotations

import contextlib
import signal

import pytest

from cornerstone.sweeps.state import TrialResult


@pytest.fixture(scope="module")
def tracking(tmp_path_factory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


@pytest.fixture
def trials(tmp_path, monkeypatch, tracking):
    """A stand-in for `driver.run_trials`. Each trial finishes with metrics (`values` by row), unless it is in `fail`.

    `asked` holds the trials of the last call, `started` those that had no result yet.
    """
    monkeypatch.setenv("CORNERSTONE_HOME", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking)
    monkeypatch.setattr("cornerstone.runtime.cluster.connect", lambda say: contextlib.nullcontext())
    monkeypatch.setattr("cornerstone.runtime.cluster.require", lambda placement, say: placement.on_cluster(0))
    monkeypatch.setattr("sys.argv", ["ablate.py", "--seeds", "2"])
    before = signal.getsignal(signal.SIGTERM)

    class Trials:
        fail: tuple = ()
        rounds: list
        """The number of trials of each round, and of those that are to come later."""
        model = ""
        interrupt = False
        opens_runs = False

        def run(self, trials, state, records, parent, placement, progress):
            self.asked, self.board = trials, progress.board
            self.rounds.append((len(trials), progress.board.later))
            if self.interrupt:
                raise KeyboardInterrupt
            results = []
            for trial in trials:
                failed = {"error": "out of memory"} if (trial.point, trial.seed) in self.fail else {}
                metrics = {
                    "eval/pairs/i2t_r1": 20.0 + trial.seed + len(trial.point),
                    **self.values.get(trial.point, {}),
                }
                run = trial.job.identity.run
                result = TrialResult(
                    trial.point, trial.seed, run, {} if failed else metrics, model=self.model, **failed
                )
                if self.opens_runs:
                    records.start(trial.name, {"cornerstone.run": run, "cornerstone.point": trial.point}, parent)
                before = state.result(run)
                if before is not None and before.finished:
                    result = before
                else:
                    self.started.append((trial.point, trial.seed))
                    state.save(result)
                results.append(result)
            return results

    played = Trials()
    played.asked, played.started, played.values, played.rounds = [], [], {}, []
    monkeypatch.setattr("cornerstone.sweeps.driver.run_trials", played.run)
    yield played
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def options(pairs_folder):
    """A little recipe on the small pairs."""
    return [
        *("--preset", "photos", "--train", pairs_folder, "--eval", pairs_folder, "--tokenizer", pairs_folder),
        *("--steps", "4", "--recipe.optimization.batch-size", "8", "--recipe.method.image.size", "32"),
    ]
