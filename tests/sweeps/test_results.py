from __future__ import annotations

import io
import json
from dataclasses import replace
from types import SimpleNamespace

import pyarrow as pa
import pytest
from rich.console import Console

from cornerstone.evaluation.sets import EvaluationSet
from cornerstone.evaluation.tasks import TASKS
from cornerstone.evaluation.tasks.retrieval import LONG
from cornerstone.recipes import preset
from cornerstone.sweeps import Candidate, Claim, FollowUp, Point, Sweep
from cornerstone.sweeps.papers.lotlip import TABLE_3
from cornerstone.sweeps.rendering import to_markdown
from cornerstone.sweeps.results import Results, columns_of
from cornerstone.sweeps.state import SweepState, TrialResult
from cornerstone.tracking.address import Address
from cornerstone.tracking.run_store import RunStore

RECIPE = preset("scenes").with_optimization(steps=200, batch_size=64)


def judged(name, task, rows=100, pool=None):
    return EvaluationSet(name, TASKS[task], "", rows, (), "hash", pool)


BEST = (RECIPE.evaluation.best,)
SETS = (
    judged("long-human", "retrieval", pool=50),
    judged("class", "classification"),
    judged("lookalike", "lookalike"),
    judged("validation", "retrieval"),
)
SWEEP = Sweep([Point(name, RECIPE) for name in ("0", "1", "2")], "0", TABLE_3, notes=("A note of the sweep.",))


def result(point, seed, i2t=10.0, **changes):
    metrics = {metric: i2t + i for i, (metric, *_) in enumerate(columns_of(SETS, BEST))}
    return TrialResult(point, seed, f"run-{point}-{seed}", **({"metrics": metrics} | changes))


def results(found, recipe=RECIPE, features="", sets=SETS):
    points = [point.name for point in SWEEP.points if point.name in {r.point for r in found}]
    described = dict.fromkeys(points, prepared(recipe, sets, features))
    return Results("ablate_corner_tokens", SweepState.of("s1"), SWEEP, described, found)


def prepared(recipe=RECIPE, sets=SETS, features=""):
    return SimpleNamespace(recipe=recipe, sets=sets, stored_features=bool(features), overlaps=())


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("CORNERSTONE_HOME", str(tmp_path))
    return tmp_path


def test_columns_are_the_shown_metrics_of_all_sets_except_those_that_choose():
    expected = [
        ("eval/long-human/i2t_r1", "long-human i→t R@1"),
        ("eval/long-human/t2i_r1", "long-human t→i R@1"),
        ("eval/class/top1", "class top-1"),
        ("eval/lookalike/long_accuracy", "lookalike long text"),
        ("eval/lookalike/short_accuracy", "lookalike short text"),
        ("eval/lookalike/first_sentence_accuracy", "lookalike first sentence"),
    ]
    assert columns_of(SETS, ["eval/validation/i2t_r1", ""]) == [(*column, "%") for column in expected]
    assert columns_of(SETS, ["", ""])[-1] == ("eval/validation/t2i_r1", "validation t→i R@1", "%")
    without = columns_of(SETS, ["eval/validation/i2t_r1", "eval/class/top1"])
    assert [column.metric for column in without] == [m for m, _ in expected if m != "eval/class/top1"]


def test_the_columns_of_all_rows_are_shown_each_once():
    """A point on other sets, and a follow-up on a set of its own: the table is the union, in the order of the rows."""
    other = (judged("class", "classification"), judged("coco", "retrieval"))
    described = {"0": prepared(sets=SETS[:2]), "1": prepared(sets=other), "1 → x": prepared(sets=other[1:])}
    found = [
        result("0", 0, metrics={"eval/class/top1": 1.0, "eval/long-human/i2t_r1": 2.0}, queries={"eval/class/top1": 7}),
        result("1", 0, metrics={"eval/class/top1": 3.0, "eval/coco/t2i_r1": 4.0}, queries={"eval/coco/t2i_r1": 25_000}),
        result("1 → x", 0, metrics={"eval/coco/i2t_r1": 5.0}),
    ]
    table = Results("e", SweepState.of("s1"), SWEEP, described, found, rows=("0", "1", "1 → x")).table
    assert [column.label for column in table.named] == [
        *("long-human i→t R@1", "long-human t→i R@1", "class top-1", "coco i→t R@1", "coco t→i R@1")
    ]
    means = [[cell.value.mean for cell in row.cells] for row in table.rows]
    assert [[value if value == value else None for value in row] for row in means] == [
        [2.0, None, 1.0, None, None],
        [None, None, 3.0, None, 4.0],
        [None, None, None, 5.0, None],
    ]
    assert table.rows[0].cells[2].over_queries > 0
    assert table.rows[1].cells[4].over_queries == pytest.approx(100 * (0.04 * 0.96 / 25_000) ** 0.5, rel=1e-3)


def test_the_title_and_the_notes_are_those_of_all_rows():
    long = preset("scenes-long").with_optimization(steps=400, batch_size=64)
    described = {
        "0": prepared(features="/store"),
        "1": prepared(long),
        "2": prepared(sets=(judged("a", "retrieval", 10, 5),)),
    }
    shown = Results(
        "e", SweepState.of("s1"), SWEEP, described, [result("0", 0)], notes=("A choice.", "A note of the sweep.")
    )
    assert shown.table.title == "e: scenes, 200 steps × 64; scenes-long, 400 steps × 64"
    notes = shown.table.notes
    assert notes[:2] == ["A note of the sweep.", "A choice."]
    for part in ("one fixed crop", "pools of 50 images", "pools of 5 images", "which look alike"):
        assert sum(part in note for note in notes) == 1
    assert len(notes) == len(set(notes)) == 6
    (warning,) = shown.table.warnings
    assert warning.startswith("200 steps show")


def test_a_set_that_chooses_a_candidate_has_no_column():
    """Not for any row: the point that chose by it would be compared with others on it."""
    point = Point("0", RECIPE, (Candidate("a", RECIPE),), "eval/class/top1", (FollowUp("x", lambda model: RECIPE),))
    sweep = Sweep([Point("1", RECIPE), point], "0")

    def table(sets):
        described = {"1": prepared(sets=sets), "0": prepared(sets=sets)}
        return Results("e", SweepState.of("s1"), sweep, described, [result("0", 0)]).table

    assert [column.label for column in table(SETS[:2]).named] == ["long-human i→t R@1", "long-human t→i R@1"]
    assert [column.label for column in table(SETS[1:2]).named] == ["class top-1"]  # there is nothing else to show
    assert table(SETS).baselines == {"0 → x": "0 → x"}


def test_the_table_holds_the_points_that_were_run():
    table = results([result("2", 0, 12.0), result("0", 0)]).table
    assert [row.point for row in table.rows] == ["0", "2"]
    assert [column.metric for column in table.named] == [column.metric for column in columns_of(SETS, BEST)]
    assert table.rows[1].cells[0].value.mean == 12.0
    assert table.title == "ablate_corner_tokens: scenes, 200 steps × 64"
    assert table.baseline == "0"


def test_a_short_preset_says_above_the_table_what_it_cannot_show():
    shown = results([result("0", 0)])
    (warning,) = shown.table.warnings
    assert warning.endswith(
        "For conclusions run: python experiments/ablate_corner_tokens.py --preset scenes-long --seeds 8"
    )
    text = to_markdown(shown.table)
    assert text.index(warning) < text.index("| point") < text.index("A note of the sweep.")
    assert results([result("0", 0)], recipe=preset("scenes-long")).table.warnings == []


def test_notes_say_what_the_numbers_depend_on():
    notes = results([result("0", 0)], features="/store").table.notes
    assert notes[0] == "A note of the sweep."
    assert any("one fixed crop" in note for note in notes)
    assert any("pools of 50 images" in note for note in notes)
    plain = results([result("0", 0)], sets=SETS[1:]).table.notes
    assert not any("crop" in note or "pools" in note for note in plain)


def test_files_are_written_to_the_sweeps_folder(own_home):
    shown = results([result("0", 0), result("1", 0, error="out of memory", metrics={})])
    folder = own_home / "sweeps" / "s1"
    assert shown.write() == [folder / "table.md", folder / "table.csv", folder / "plot.png"]
    assert "out of memory" in (folder / "table.md").read_text()
    assert (folder / "table.csv").read_text().startswith("point,")
    assert (folder / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_there_is_no_plot_if_no_trial_has_a_number(own_home):
    paths = results([result("0", 0, error="out of memory", metrics={})]).write()
    assert [path.name for path in paths] == ["table.md", "table.csv"]


def said(shown, records, parent="p1"):
    stream = io.StringIO()
    shown.write()
    shown.say_where(Console(file=stream, width=60), records, parent)
    return stream.getvalue()


def recording(uri, experiment="7"):
    return SimpleNamespace(address=Address.of(uri), experiment_id=experiment, find=lambda tag, run: f"ml-{run}")


def test_the_paths_of_all_files_are_printed_and_the_last_line_is_a_link(own_home):
    shown = results([result("0", 0, error="x"), result("1", 0, model="/runs/[a]/model", unsent=3)])
    text = said(shown, recording("sqlite:////home/a b/mlflow.db"))
    assert f"{own_home}/sweeps/s1/table.md" in text
    assert f"{own_home}/sweeps/s1/plot.png" in text
    assert "cornerstone.load('/runs/[a]/model')" in text
    assert "start it with: MLFLOW_TRACKING_URI='sqlite:////home/a b/mlflow.db' " in text
    assert "cornerstone ui --sweep s1\n" in text
    assert "3 lines of metrics did not reach MLflow" in text
    assert "http://127.0.0.1:5000/#/experiments/7/runs/p1?workflowType=machine_learning" in text
    page = "http://127.0.0.1:5000/#/experiments/7/runs?workflowType=machine_learning&viewStateShareKey=s1"
    assert [line.strip() for line in text.splitlines()[-2:]] == [
        f"trials: {page}",
        f"comparison: {page}&compareRunsMode=CHART",
    ]


def test_the_place_of_the_metrics_is_printed(own_home):
    shown = results([result("0", 0)])
    assert f"in the journals under {own_home}/runs" in said(shown, recording("http://x", None))
    assert f"in the journals under {own_home}/runs" in said(shown, recording("http://x"), None)
    served = said(shown, recording("http://server:5000"))
    assert "http://server:5000/#/experiments/7/runs/p1" in served
    assert "cornerstone ui" not in served
    assert "not sent" not in served


def test_the_sweeps_own_run_has_the_table(own_home):
    kept = {}
    records = SimpleNamespace(
        artifact=lambda run, path: kept.setdefault("files", []).append(path.name),
        note=lambda run, text: kept.update(note=text),
        metrics=lambda run, metrics: kept.update(metrics=metrics),
        find=lambda tag, run: run,
        experiment_id="7",
    )
    shown = results([result("0", 0, 10.0), result("2", 0, 12.0), result("1", 0, error="x", metrics={})])
    shown.write()
    shown.record(records, "p1", ("ablate_corner_tokens", "3"))
    assert kept["files"] == ["table.md", "table.csv", "plot.png"]
    links, _, table = kept["note"].partition("\n\n")
    assert table.strip() == to_markdown(shown.table).strip()
    page = "#/experiments/7/runs?workflowType=machine_learning&viewStateShareKey=s1"
    assert links.startswith(f"[trials]({page}) · [comparison]({page}&compareRunsMode=CHART) · ")
    assert links.endswith("[best model](#/models/ablate_corner_tokens/versions/3?workflowType=machine_learning)")
    assert "[plot.png](#/experiments/7/runs/p1/artifacts/plot.png?workflowType=machine_learning) · " in links
    assert kept["metrics"]["final/long-human/i2t_r1/0"] == 10.0
    assert kept["metrics"]["final/long-human/i2t_r1/2"] == 12.0
    assert not any(name.endswith("/1") for name in kept["metrics"])


def test_the_average_that_a_column_shows_is_a_metric_of_each_trial():
    """Of the rows of one run the first is the trial's own: a variant's average is another number."""
    long = tuple(EvaluationSet(name, TASKS["retrieval"], "", 100, LONG, "hash") for name in ("dci", "iiw"))
    metrics = {f"eval/{one.name}/{way}_r1": value for one in long for way, value in (("i2t", 10.0), ("t2i", 20.0))}
    found = [
        result("0", 0, metrics=metrics),
        replace(result("1", 0, metrics=dict.fromkeys(metrics, 0.0)), run="run-0-0"),
    ]
    logged = {}
    records = SimpleNamespace(
        note=lambda *given: None,
        metrics=lambda run, metrics: logged.setdefault(run, []).append(metrics),
        find=lambda tag, run: run,
        experiment_id="7",
    )
    results(found, sets=long).record(records, "p1")
    assert logged["run-0-0"] == [{"final/long texts/r1": 15.0}]


def test_the_trials_page_has_the_columns_of_the_table(own_home):
    tags = {}
    records = SimpleNamespace(tag_experiment=lambda name, text: tags.update({name: text}))
    shown = results([result("0", 0)])
    shown.share_view(records, None, ["point"])
    assert tags == {}
    shown.share_view(records, "p1", ["point", "point.corner_tokens"])
    ((name, text),) = tags.items()
    assert name == "mlflow.sharedViewState.s1"
    names = [f"metrics.`final/{column.metric.removeprefix('eval/')}`" for column in shown.table.named]
    columns = json.loads(text)["selectedColumns"]
    assert columns == ["params.`point`", "params.`point.corner_tokens`", *names]


def test_the_table_is_shown_at_full_width_in_a_log(capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    results([result(str(p), s, 10.0 + p + s) for p in range(3) for s in range(2)]).show(Console(width=40))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) > 100
    assert any("lookalike" in line and "long-human" in line for line in lines)


def test_the_table_is_as_wide_as_the_readers_terminal_and_no_note_is_cut(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "90")
    shown = results([result(str(p), s, 10.0 + p + s) for p in range(3) for s in range(2)])
    shown.show(Console(width=90))
    lines = capsys.readouterr().out.splitlines()
    assert max(len(line) for line in lines if "±" in line and not line.startswith("•")) <= 90
    for note in (*shown.table.warnings, *shown.table.footer):
        assert f"• {note}" in lines


def test_the_verdict_is_made_of_the_kept_queries(own_home):
    """The sets' long texts, the results of single queries in the runs' stores, and the words of the sweep's claim."""
    sets = (EvaluationSet("dci", TASKS["retrieval"], "", 100, LONG, "hash"),)
    metrics = ("eval/dci/i2t_r1", "eval/dci/t2i_r1")
    shares = {"0": 0.2, "1": 0.6, "2": 0.4}
    found = []
    for point, share in shares.items():
        queries = [(name.split("/")[2], q) for name in metrics for q in range(100)]
        table = pa.table(
            {
                "set": ["dci"] * 200,
                "metric": [metric for metric, _ in queries],
                "query": [q for _, q in queries],
                "cluster": [q for _, q in queries],
                "correct": [q < 100 * share for _, q in queries],
            }
        )
        RunStore(f"run-{point}-0", str(own_home), 0).write_evaluation(200, table)
        found.append(result(point, 0, metrics=dict.fromkeys(metrics, 100 * share)))
    claim = Claim("1", "corner tokens", "2", "the control", "the weight")
    sweep = Sweep([Point(name, RECIPE) for name in shares], "0", claim=claim)
    described = dict.fromkeys(shares, prepared(sets=sets))
    table = Results("e", SweepState.of("s1"), sweep, described, found).table
    assert table.verdict[0].startswith("Verdict: corner tokens raise long-text retrieval by 40.0 ± 9.6 points")
    assert "the control raises it by 20.0 ± 7.8" in table.verdict[0]
    assert "corner tokens add 20.0 ± 7.8 points" in table.verdict[1]
    assert table.verdict[0] in to_markdown(table)
