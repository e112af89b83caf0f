from __future__ import annotations

import json
import re

import pytest

from cornerstone.errors import CornerstoneError
from cornerstone.sweeps.state import STOPPED, SweepState, TrialRecord, TrialResult, new_sweep_id

TRIALS = [TrialRecord("0", 0, "run-a", "hash-a", "eval"), TrialRecord("2, no mask", 1, "run-b", "hash-b", "eval")]


@pytest.fixture
def state(tmp_path, monkeypatch) -> SweepState:
    monkeypatch.setenv("CORNERSTONE_HOME", str(tmp_path))
    return SweepState.of("20260131-142501-3f9a")


def test_trials_come_back_as_they_were(state):
    state.write("ablate", TRIALS)
    assert SweepState.of(state.sweep).read("ablate") == TRIALS


def test_results_come_back_as_they_were(state):
    whole = TrialResult(
        "0", 0, "run-a", {"eval/dci/i2t_r1": 49.5}, "/m", "/c", "/b", seconds=1.5, unsent=3, queries={"a": 7}
    )
    failed = TrialResult("2", 1, "run-b", error="out of memory")
    assert state.result("run-a") is None
    state.save(whole)
    state.save(failed)
    assert state.result("run-a") == whole
    assert state.result("run-b") == failed
    assert (whole.finished, failed.finished) == (True, False)
    state.save(TrialResult("2", 1, "run-b", {"a": 1.0}))  # run again
    assert state.result("run-b").finished


def test_a_result_of_an_older_version_has_no_queries(state):
    fields = {
        "point": "0",
        "seed": 0,
        "run": "run-a",
        "metrics": {"a": 1.0},
        "model": "/m",
        "checkpoint": "",
        "error": "",
    }
    state.folder.join("trials", "run-a.json").write_text(json.dumps(fields))
    assert state.result("run-a") == TrialResult("0", 0, "run-a", {"a": 1.0}, "/m")
    assert state.result("run-a").queries == {}


def test_choices_come_back_and_an_older_sweep_has_none(state):
    state.write("ablate", TRIALS, {"2": "lr 1e-3"})
    assert state.choices("ablate") == {"2": "lr 1e-3"}
    assert state.read("ablate") == TRIALS
    path = state.folder.join("sweep.json")
    old = json.loads(path.read_text())
    del old["choices"]
    path.write_text(json.dumps(old))
    assert state.choices("ablate") == {}
    with pytest.raises(CornerstoneError, match="belongs to 'ablate'"):
        state.choices("other")


def test_a_stopped_trial_has_neither_finished_nor_failed():
    assert TrialResult("0", 0, "a", error=STOPPED).stopped
    assert not TrialResult("0", 0, "a", error=STOPPED).finished
    assert not TrialResult("0", 0, "a", error="out of memory").stopped


def test_an_unknown_sweep_is_answered_with_the_nearest_name(state):
    with pytest.raises(
        CornerstoneError, match=r"No sweep '20260131-142501-3f9a' under .*sweeps. There are no sweeps yet"
    ):
        state.read("ablate")
    state.write("ablate", TRIALS)
    (state.folder.parent.join("another")).make()  # not named: there may be hundreds
    with pytest.raises(
        CornerstoneError, match=r"No sweep '20260131-142501-3f9b'.*did you mean '20260131-142501-3f9a'\?$"
    ):
        SweepState.of("20260131-142501-3f9b").read("ablate")


def test_a_sweep_of_another_experiment_is_refused(state):
    state.write("ablate_token_limit", TRIALS)
    with pytest.raises(CornerstoneError, match="belongs to 'ablate_token_limit', not to 'ablate_corner_tokens'"):
        state.read("ablate_corner_tokens")


def test_names_of_sweeps_sort_by_time_and_are_unique():
    assert re.fullmatch(r"\d{8}-\d{6}-[0-9a-f]{4}", new_sweep_id())
    assert len({new_sweep_id() for _ in range(20)}) > 1


def test_a_result_that_is_forgotten_is_gone(tmp_path, monkeypatch):
    monkeypatch.setenv("CORNERSTONE_HOME", str(tmp_path))
    state = SweepState.of("s1")
    state.save(TrialResult("0", 0, "r1", error="out of memory"))
    state.forget("r1")
    state.forget("r1")
    assert state.result("r1") is None
