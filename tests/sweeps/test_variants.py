"""One trained model, evaluated at several token limits: rows of the table that need no trial, and what stands beside them."""

from __future__ import annotations

import csv
import io

import pytest

from cornerstone.data.shards import DataSet, Reader
from cornerstone.errors import CornerstoneError
from cornerstone.models.bert import bert_config, bert_flops
from cornerstone.recipes import Recipe, preset
from cornerstone.sweeps import Place, Point, Sweep, Variant, main
from cornerstone.sweeps.state import SweepState, TrialResult
from cornerstone.sweeps.text_cost import text_cost
from cornerstone.sweeps.variants import in_rows
from cornerstone.training.prepare import Preparer

RECIPE = preset("scenes")
LIMITED = RECIPE.with_evaluation(token_limits=(8, 80))
VARIANTS = (Variant("short texts", 8, (Place("alone", 8),)), Variant("long texts", 80, (Place("alone", 80),)))


def limits(recipe: Recipe) -> Sweep:
    """A point without variants, and one that is read at two more limits."""
    read = recipe.with_text(token_limit=32).with_evaluation(token_limits=(8, 80))
    points = [Point("16", recipe.with_text(token_limit=16)), Point("32", read, variants=VARIANTS)]
    return Sweep(points, baseline="32", asides=text_cost)


def test_a_result_is_cut_into_its_own_row_and_those_of_its_variants():
    metrics = {"eval/dci/i2t_r1": 5.0, "eval/dci@8/i2t_r1": 1.0, "eval/dci@80/i2t_r1": 8.0, "eval/class@8/top1": 2.0}
    queries = dict.fromkeys(metrics, 100)
    points = [Point("64", LIMITED, variants=VARIANTS), Point("16", RECIPE)]
    found = in_rows(
        [
            TrialResult("64", 0, "run", metrics, queries=queries, chance={"eval/dci@8/i2t_r1": 0.5}, unsent=3),
            TrialResult("16", 0, "other", {"eval/dci@8/i2t_r1": 7.0}),
            TrialResult("64", 1, "failed", error="out of memory"),
        ],
        {"64": "64", "16": "sixteen"},
        points,
    )
    assert [(one.point, one.seed, one.run, one.metrics) for one in found[:4]] == [
        ("64", 0, "run", {"eval/dci/i2t_r1": 5.0}),
        ("short texts", 0, "run", {"eval/dci/i2t_r1": 1.0, "eval/class/top1": 2.0}),
        ("long texts", 0, "run", {"eval/dci/i2t_r1": 8.0}),
        ("sixteen", 0, "other", {"eval/dci@8/i2t_r1": 7.0}),  # no variant of this point
    ]
    assert [one.queries for one in found[:3]] == [dict.fromkeys(one.metrics, 100) for one in found[:3]]
    assert [one.chance for one in found[:3]] == [{}, {"eval/dci/i2t_r1": 0.5}, {}]
    assert sum(one.unsent for one in found) == 3
    assert [(one.point, one.error) for one in found[4:]] == [
        (name, "out of memory") for name in ("64", "short texts", "long texts")
    ]


def test_a_variant_needs_an_evaluation_at_its_limit_and_a_name_of_its_own():
    with pytest.raises(CornerstoneError, match=r"'2' has a variant at token limit 8, at which .* \(given: none\)"):
        Point("2", RECIPE, variants=VARIANTS)
    points = [Point("short texts", RECIPE), Point("2", LIMITED, variants=VARIANTS)]
    with pytest.raises(CornerstoneError, match="Two trials of the sweep are named 'short texts'"):
        Sweep(points, "2")


def test_a_sweep_with_variants_shows_their_rows_and_trains_no_more(trials, options, capsys, tmp_path):
    trials.values = {"32": {"eval/pairs@8/i2t_r1": 3.0, "eval/pairs@80/i2t_r1": 44.0, "eval/pairs/i2t_r1": 33.0}}
    main(limits, [*options, "--recipe.method.text.width", "16", "--recipe.method.text.heads", "2"])
    said = capsys.readouterr().out
    assert "2 trials = 2 points × 1 seeds" in said
    assert [t.point for t in trials.asked] == ["16", "32"]
    assert [one.name for one in trials.asked[1].job.prepared.sets] == [
        name + at for at in ("",) for name in ("pairs", "pairs-short", "pairs")
    ] + [f"{name}@{limit}" for name in ("pairs", "pairs-short", "pairs") for limit in (8, 80)]
    (folder,) = (tmp_path / "sweeps").iterdir()
    rows = {row["point"]: row for row in csv.DictReader(io.StringIO((folder / "table.csv").read_text()))}
    assert list(rows) == ["16", "32", "short texts", "long texts"]
    assert [float(row["eval/pairs/i2t_r1"]) for row in rows.values()] == [22.0, 33.0, 3.0, 44.0]
    assert not any("@" in name for name in rows["32"])
    operations = [float(row["text encoder, GFLOPs a text"]) for row in rows.values()]
    text = trials.asked[1].job.recipe.method.text
    width = trials.asked[1].job.prepared.image_width
    expected = [bert_flops(bert_config(text), limit - 2, width, extra=False) / 1e9 for limit in (16, 32, 8, 80)]
    assert operations == pytest.approx(expected, rel=1e-5)
    cut = [float(row["pairs cut, % of texts"]) for row in rows.values()]
    assert cut[2] == 100 > cut[1] >= cut[3] == 0
    assert "GFLOPs a text" in said
    assert {one.point for one in SweepState.of(folder.name).read("test_variants")} == {"16", "32"}


def test_the_share_of_cut_texts_is_that_of_texts_longer_than_what_the_tower_leaves(pairs_folder):
    recipe = preset("photos").with_image(size=32).with_text(width=16, layers=1, heads=2)
    recipe = recipe.with_optimization(batch_size=8).with_data(train=pairs_folder, tokenizer="")
    recipe = recipe.with_evaluation(
        sets=(pairs_folder, f"val={pairs_folder}"), best="eval/val/i2t_r1", token_limits=(8,)
    )
    prepared = Preparer(print, compute_features=False).prepare(recipe)
    form = prepared.evaluation_texts.open()
    reader, data = Reader(DataSet.open(pairs_folder), ["captions"]), DataSet.open(pairs_folder)
    groups = sum(len(shard.row_groups) for shard in data.manifest.shards)
    captions = [c for group in range(groups) for row in reader.group(group)["captions"].to_pylist() for c in row]
    lengths = [len(form.encode_texts([c["text"]])[0]) for c in captions if c["role"] == "long"]
    assert max(lengths) < form.max_tokens
    limit = min(lengths) + 2  # two corner tokens
    found = {aside.label: aside.value for aside in text_cost(prepared, limit)}
    assert list(found) == ["text encoder", "pairs cut", "pairs-short cut", "val-short cut"]  # `val` chooses
    expected = 100 * sum(length > limit - 2 for length in lengths) / len(lengths)
    assert found["pairs cut"] == expected
    assert 0 < expected < 100
    assert text_cost(prepared)[1].value == 0
    other = Preparer(print, compute_features=False).prepare(recipe.with_text(corner_tokens=0))
    fewer = {aside.label: aside.value for aside in text_cost(other, limit - 2)}
    assert fewer == pytest.approx(found)
