"""Whole runs on Ray Train: what a crash, another number of workers, bad rows and a dead tracking server change (nothing)."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from recording import REPAIRED, RecordedConfig, counted, lines

import cornerstone
from cornerstone.errors import CornerstoneError
from cornerstone.evaluation.judged import metrics_of
from cornerstone.evaluation.offline import evaluate_model
from cornerstone.recipes import CornerText, Evaluation, ImageTower, Optimization, PairData, Placement, Recipe
from cornerstone.tracking.journal import read_journal
from cornerstone.training.job import Identity, Job
from cornerstone.training.launch import SNAPSHOT, Outcome, latest_step, launch
from cornerstone.training.mlflow_run import reason
from cornerstone.training.prepare import prepare

from .conftest import TEXTLESS, TORN

STEPS, BATCH, CHECKPOINT, EVALUATION = 12, 11, 5, 8
"""Checkpoints after 5, 8, 10 and 12 steps, evaluations after 8 and 12; an epoch ends in step 9; shares of 6 and 5 rows."""
NOWHERE = ("http://127.0.0.1:9", "0" * 32)  # a tracking server that went away
PLACEMENT = Placement(
    workers=2, cpus_per_worker=0.25, cpus_per_decode_actor=0.25, checkpoint_every=CHECKPOINT, health_check_interval=0.2
)
BEST = "eval/birds/i2t_r1"


@dataclass(frozen=True)
class Run:
    """A run that came to its end, and the folder of what its steps have seen."""

    job: Job
    outcome: Outcome
    seen: Path

    @property
    def folder(self) -> Path:
        return Path(self.job.identity.folder.uri)

    def weights(self) -> dict[str, torch.Tensor]:
        return safetensors.torch.load_file(Path(self.outcome.model) / "model.safetensors")

    def metrics(self) -> dict[int, dict[str, float]]:
        """What was written for every step; of a step that was done again, the last."""
        found: dict[int, dict[str, float]] = {}
        for line in read_journal(self.folder / "journal.jsonl"):
            found[line.step] = {**found.get(line.step, {}), **line.metrics}
        return found


@pytest.fixture(scope="module")
def job_of(shards, tmp_path_factory):
    """A new job with the trouble that is named; its folder of records is in its recipe."""

    def make(placement=PLACEMENT, steps=STEPS, sets=(shards.retrieval, shards.classes), locked=True, **trouble) -> Job:
        identity = Identity()
        method = RecordedConfig(
            image=ImageTower(name=shards.tower, locked=locked, size=32),
            text=CornerText(name="", width=32, layers=1, heads=2, token_limit=24),
            seen=str(tmp_path_factory.mktemp("seen")),
            snapshot=identity.checkpoints.join(identity.run, SNAPSHOT).uri,
            **trouble,
        )
        recipe = Recipe(
            "small",
            method,
            PairData(train=shards.train, crop_scale=(0.8, 1.0), bad_row_limit=0.2),
            Optimization(steps=steps, batch_size=BATCH, learning_rate=5e-3, warmup_steps=2),
            Evaluation(sets=sets, every=EVALUATION, best=BEST if sets else ""),
            seed=3,
        )
        return Job(prepare(recipe), placement, identity).recorded(*NOWHERE)

    return make


def run(job: Job) -> Run:
    return Run(job, launch(job, print), Path(job.recipe.method.seen))


@pytest.fixture(scope="module")
def undisturbed(ray_cluster, job_of) -> Run:
    return run(job_of())


@pytest.fixture(scope="module")
def planned(undisturbed) -> dict[int, list[tuple[int, int]]]:
    """(row, epoch) of every step, by the plan."""
    plan = undisturbed.job.prepared.stream().plan
    return {step: list(zip(*map(list, plan.batch(step)), strict=True)) for step in range(STEPS)}


@pytest.mark.timeout(240)
def test_the_steps_see_the_rows_of_the_plan_in_their_order(undisturbed, planned):
    assert {line["workers"] for line in lines(undisturbed.seen, 0)} == {2}
    assert dict(counted(undisturbed.seen)) == planned
    assert {epoch for _, epoch in planned[9]} == {0, 1}


@pytest.mark.timeout(240)
def test_bad_rows_are_set_aside_with_their_reasons(undisturbed, planned):
    found = {}
    for rank in range(2):
        for line in (undisturbed.folder / f"quarantine-{rank}.jsonl").read_text().splitlines():
            fields = json.loads(line)
            assert fields["row"] in [row for row, _ in planned[fields["step"]]]
            found[fields["row"]] = fields["reason"]
    assert set(found) == {*TORN, *TEXTLESS}
    assert all("image" in found[row] or "truncated" in found[row] for row in TORN), found
    assert {found[row] for row in TEXTLESS} == {"no text"}


@pytest.mark.timeout(240)
def test_a_tracking_server_that_went_away_stops_nothing(undisturbed):
    metrics = undisturbed.metrics()
    assert sorted(metrics) == list(range(1, STEPS + 1))
    losses = [step["train/loss"] for step in metrics.values()]
    assert losses[-1] < losses[0]
    agreed = {"train/loss", "train/loss_raw", "train/loss_long", "train/samples_per_second", "train/data_wait_share"}
    assert all(agreed <= set(step) for step in metrics.values())
    assert undisturbed.outcome.unsent > 0
    assert "127.0.0.1" in undisturbed.outcome.problem


@pytest.mark.timeout(240)
def test_the_evaluation_in_the_run_is_that_of_the_model_it_leaves(undisturbed):
    outcome, sets = undisturbed.outcome, undisturbed.job.prepared.sets
    model = cornerstone.load(outcome.model)
    again = metrics_of(evaluate_model(model, sets, bad_row_limit=0.2))
    assert outcome.metrics == pytest.approx(again, abs=1e-3)
    assert {BEST, "eval/birds/t2i_r1", "eval/birds-short/i2t_r1", "eval/kinds/top1"} <= set(again)
    journal = undisturbed.metrics()
    assert [step for step, found in journal.items() if BEST in found] == [EVALUATION, STEPS]
    assert {name: journal[STEPS][name] for name in again} == outcome.metrics
    assert journal[EVALUATION] != outcome.metrics
    assert model.encode_text(["a 1 one"]).shape == (1, 32)


@pytest.mark.timeout(240)
def test_the_best_checkpoint_is_best_by_its_set(undisturbed):
    journal, outcome = undisturbed.metrics(), undisturbed.outcome
    best = max(found[BEST] for found in journal.values() if BEST in found)
    step = int(Path(outcome.best_checkpoint).name.removeprefix("step-"))
    assert journal[step][BEST] == best
    assert Path(outcome.checkpoint).name == f"step-{STEPS:09d}"
    assert latest_step(undisturbed.job) == STEPS


@pytest.mark.faults
@pytest.mark.timeout(300)
def test_a_killed_worker_changes_nothing(undisturbed, job_of, planned):
    killed = run(job_of(kill_at=7, after=CHECKPOINT))
    steps = [line["step"] for line in lines(killed.seen, 1)]
    assert steps == [*range(7), *range(CHECKPOINT, STEPS)]  # from the last checkpoint on
    assert dict(counted(killed.seen)) == planned
    expected, found = undisturbed.weights(), killed.weights()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert killed.outcome.metrics == undisturbed.outcome.metrics
    for step, wanted in undisturbed.metrics().items():
        assert killed.metrics()[step]["train/loss"] == wanted["train/loss"]


@pytest.mark.faults
@pytest.mark.timeout(400)
def test_another_number_of_workers_goes_on_with_the_rows_that_are_due(undisturbed, job_of, planned):
    """The first start fails for good, whatever is restarted; the second one is another machine's, with one worker."""
    job = job_of(replace(PLACEMENT, zero_stage=0, max_failures=1), raise_at=9, after=EVALUATION)
    with pytest.raises(Exception) as caught:  # noqa: PT011 - Ray's own, of several kinds
        launch(job, print)
    assert reason(caught.value) == "ArithmeticError: no way on from step 9"
    seen = Path(job.recipe.method.seen)
    assert [line["step"] for line in lines(seen, 0)] == [*range(9), EVALUATION]  # one restart
    assert latest_step(job) == EVALUATION

    (seen / REPAIRED).touch()
    resumed = run(replace(job, placement=replace(job.placement, workers=1)))
    assert [(line["step"], line["workers"]) for line in lines(seen, 0)][10:] == [
        (s, 1) for s in range(EVALUATION, STEPS)
    ]
    assert dict(counted(seen)) == planned
    expected, found = undisturbed.weights(), resumed.weights()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=2e-3, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.timeout(240)
def test_a_loss_that_is_no_number_ends_the_run_at_once_and_no_checkpoint_has_it(ray_cluster, job_of):
    """60 steps write a line every third: the checkpoint after 5 comes before the line that would tell."""
    job = job_of(replace(PLACEMENT, workers=1), steps=60, sets=(), nan_at=3)
    with pytest.raises(CornerstoneError, match="The loss is not finite at step 3"):
        launch(job, print)
    assert len({line["pid"] for line in lines(Path(job.recipe.method.seen), 0)}) == 1
    assert latest_step(job) == 0


@pytest.mark.timeout(240)
def test_a_trained_tower_is_evaluated_and_saved_at_zero_stage_3(ray_cluster, job_of):
    """Its parameters are sharded there: evaluation needs a whole module with a tower of its own."""
    job = job_of(replace(PLACEMENT, zero_stage=3, checkpoint_every=0), steps=2, locked=False)
    found = run(job)
    again = metrics_of(evaluate_model(cornerstone.load(found.outcome.model), job.prepared.sets, bad_row_limit=0.2))
    assert found.outcome.metrics == pytest.approx(again, abs=1e-3)
