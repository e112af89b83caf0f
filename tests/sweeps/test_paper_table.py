from __future__ import annotations

import pytest

from cornerstone.sweeps.paper_table import PaperTable, plain
from cornerstone.sweeps.papers import lcl
from cornerstone.sweeps.papers.lotlip import FIGURE_2, FIGURE_4, TABLE_2, TABLE_3, TABLE_8, TABLE_9
from cornerstone.sweeps.papers.lotlip_zero_shot import SCALES, TABLES_10_11, zero_shot
from cornerstone.sweeps.papers.sets import ALIASES, STAND_INS
from cornerstone.sweeps.rendering import to_markdown
from cornerstone.sweeps.table import ResultTable


def test_table_3_as_printed():
    assert len(TABLE_3.columns) == 9
    assert TABLE_3.value("0", "DCI T2I") == 47.96
    assert TABLE_3.value("2", "DCI I2T") == 47.82
    assert TABLE_3.value("2, no mask", "IIW T2I") == 86.11
    assert TABLE_3.value("4", "IN-1k") == 50.59
    assert TABLE_3.value("0, long loss × 3", "IN-1k") is None
    assert list(TABLE_3.rows) == ["short only", "0", "1", "2", "3", "4", "2, no mask", "2 register tokens"]


@pytest.mark.parametrize(
    ("metric", "column"),
    [
        ("eval/DCI/i2t_r1", "DCI T2I"),  # swapped in print
        ("eval/dci/t2i_r1", "DCI I2T"),
        ("eval/long-human/i2t_r1", "DCI T2I"),
        ("eval/ShareGPT4V-10k/t2i_r1", "SV-10k I2T"),
        ("eval/coco/i2t_r1", "MSCOCO I2T"),  # not swapped
        ("eval/short/t2i_r1", "MSCOCO T2I"),
        ("eval/imagenet/top1", "IN-1k"),
        ("eval/class/top1", "IN-1k"),
        ("eval/dci/i2t_r5", None),
        ("eval/lookalike/long_accuracy", None),
        ("eval/mine/i2t_r1", None),
    ],
)
def test_columns_are_found_by_what_they_really_measure(metric, column):
    assert TABLE_3.column(metric) == column


def test_notes_mention_the_swap_and_the_stand_ins_that_were_used():
    assert "swapped" in " ".join(TABLE_3.notes)
    assert "On scenes" in " ".join(TABLE_3.notes_beside(["eval/long-human/i2t_r1"]))
    assert "On scenes" not in " ".join(TABLE_3.notes_beside(["eval/dci/i2t_r1"]))


def test_a_table_knows_no_other_names_than_it_is_given():
    columns = {"columns": ("A",), "measures": (("mscoco", "top1"),), "rows": {"0": (1.0,)}}
    assert PaperTable("T", "S", **columns).column("eval/short/top1") is None
    table = PaperTable(
        "T", "S", **columns, aliases={"coco": "mscoco"}, stand_ins={"short": "mscoco"}, stand_in_note="!"
    )
    assert table.column("eval/COCO/top1") == table.column("eval/short/top1") == "A"
    assert table.notes_beside(["eval/short/top1"]) == ["!"]
    assert table.notes_beside(["eval/coco/top1"]) == []


def test_two_tables_beside_each_other_have_the_columns_of_both():
    both = lcl.TABLE_3.beside(lcl.TABLE_4)
    assert both.columns == (*lcl.TABLE_3.columns, *lcl.TABLE_4.columns)
    assert both.value("OpenCLIP, full", "IN-1k") == 86.2
    assert both.value("OpenCLIP, full", "MME") == 1345.4
    assert both.value("LCL LAION, full", "GQA") is None  # of Table 3 alone
    assert both.value("LCL LAION, full", "COCO C") == 129.7
    assert both.column("eval/coco/cider") == "COCO C"
    assert both.column("eval/pope/f1") == "POPE"
    assert both.column("eval/mme/perception") == "MME"
    assert both.column("eval/pope/accuracy") is None
    assert lcl.transfer_table(("dialogue",)) == lcl.TABLE_4
    assert lcl.transfer_table(("classification",)) == lcl.TABLE_3
    assert lcl.transfer_table(("caption", "dialogue")).columns == both.columns
    assert "GQA" in " ".join(both.notes_beside(["eval/conversations/accuracy"]))


def test_what_one_of_two_tables_lacks_is_shown_as_nothing():
    both = lcl.TABLE_3.beside(lcl.TABLE_4)
    shown = to_markdown(ResultTable(title="T", records=[], columns=[("eval/mine/top1", "top-1")], paper=both))
    assert "nan" not in shown.lower()
    (row,) = [line for line in shown.splitlines() if line.startswith("| LCL LAION, full ")]
    assert row.split("|")[2:4] == [" 86.10 ", " 61.90 "]
    assert row.count("–") == len(lcl.TABLE_4.columns)


def test_names_are_written_as_they_are_compared():
    for names in (ALIASES, STAND_INS):
        assert all(plain(name) == name for pair in names.items() for name in pair)
    assert plain("Long-Human") == "longhuman"


def test_figures_have_trends_and_no_numbers():
    for figure in (FIGURE_2, FIGURE_4):
        assert not figure.has_numbers
        assert figure.trends
        assert "without printing numbers" in figure.notes[0]
        assert figure.column("eval/dci/i2t_r1") is None


def test_a_row_of_another_length_is_refused():
    with pytest.raises(ValueError, match="1 columns, but another number"):
        PaperTable("T", "S", columns=("A",), measures=(("a", "top1"),), rows={"0": (1.0, 2.0)})


def test_the_tables_of_lcl_as_printed():
    assert lcl.TABLE_3.value("OpenAI CLIP, frozen", "IN-1k") == 83.7
    assert lcl.TABLE_3.value("LCL LAION + MMC4, full", "COCO C") == 130.9
    assert lcl.TABLE_5.value("OBELICS", "NoCaps C") == 77.6
    for table in (lcl.TABLE_1, lcl.TABLE_3, lcl.TABLE_5):
        assert table.column("eval/coco/cider") == "COCO C"
        assert table.column("eval/in1k/top1") == "IN-1k"
        assert table.column("eval/class/top1") == "IN-1k"
        assert table.column("eval/short/bleu4") == "COCO B@4"
        assert table.column("eval/probe/linear_top1") is None


AVERAGES = {
    "FILIP": 19.21, "LaCLIP": 27.26, "SigLIP": 19.40, "LiT": 44.38, "LoTLIP": 74.37, "CLIP, 400M (released)": 68.12,
    "ALIGN, 700M (released)": 74.59, "SigLIP, 12B (released)": 76.59, "Long-CLIP, 400M + 1M (released)": 72.62,
}  # fmt: skip
"""The column of Table 4 that is left out: the mean of the eight before it."""
SCALED = {
    "LiT, B/32": (39.72, 56.56, 58.82, 64.47),
    "LoTLIP, B/32": (70.45, 76.04, 78.26, 80.84),
    "LiT, B/16": (44.38, 62.61, 60.24, 66.44),
    "LoTLIP, B/16": (74.37, 79.48, 82.06, 83.72),
}


def test_the_zero_shot_tables_have_the_averages_that_are_printed():
    def average(table, row):
        return sum(table.rows[row][:8]) / 8

    three = zero_shot("3M")
    assert {row: average(three, row) for row in AVERAGES} == pytest.approx(AVERAGES, abs=0.0095)
    assert set(three.rows) == {"CLIP", *AVERAGES}
    printed = {f"{model}, {s}": x for model, xs in SCALED.items() for s, x in zip(SCALES, xs, strict=True)}
    assert {row: average(TABLES_10_11, row) for row in printed} == pytest.approx(printed, abs=0.0095)
    assert set(TABLES_10_11.rows) == {*printed, *TABLES_10_11.released}
    for scale in SCALES:
        table = zero_shot(scale)
        assert table.rows["LiT"] == TABLES_10_11.rows[f"LiT, B/16, {scale}"]
        assert set(table.released) == {row for row in AVERAGES if "released" in row}


@pytest.mark.parametrize(
    ("metric", "column"),
    [
        ("eval/dci/i2t_r1", "DCI T2I"),  # swapped in print
        ("eval/ShareGPT4V-1k/t2i_r1", "SV-1k I2T"),
        ("eval/sv10k/i2t_r1", "SV-10k T2I"),
        ("eval/imagenet/top1", "IN-1k"),
        ("eval/coco/i2t_r5", "MSCOCO I2T R@5"),  # not swapped
        ("eval/flickr30k/t2i_r1", "Flickr30k T2I R@1"),
        ("eval/Flickr/i2t_r5", "Flickr30k I2T R@5"),
        ("eval/iiw/i2t_r5", None),
    ],
)
def test_the_columns_of_the_zero_shot_tables_are_what_they_really_measure(metric, column):
    assert zero_shot("100M").column(metric) == TABLES_10_11.column(metric) == column


def test_numbers_of_the_zero_shot_tables_agree_with_the_ablations_where_both_print_them():
    """Tables 2 and 8 have nine of their columns."""
    same = {"MSCOCO T2I": "MSCOCO T2I R@1", "MSCOCO I2T": "MSCOCO I2T R@1"}
    for row, (ablation, named) in {
        "LiT": (TABLE_2, "LiT, short only"),
        "LoTLIP": (TABLE_2, "LoTLIP"),
        "CLIP": (TABLE_8, "CLIP"),
    }.items():
        for column in ablation.columns:
            assert zero_shot("3M").value(row, same.get(column, column)) == ablation.value(named, column)
    assert zero_shot("3M").value("CLIP", "Flickr30k I2T R@1") is None  # Table 8 does not print it
    assert zero_shot("100M").value("LoTLIP", "Flickr30k T2I R@5") == 87.98
    assert TABLES_10_11.value("LoTLIP, B/32, 100M", "IN-1k") == 67.20


def test_table_9_as_printed():
    assert TABLE_9.value("InstructBLIP", "IN-1k") == 50.32
    assert TABLE_9.value("ShareGPT4V", "SV-10k T2I") == 77.93
    assert TABLE_9.value("LLaVA", "MSCOCO T2I") == 31.10
    assert TABLE_9.rows["All"] == TABLE_3.rows["2"]
    assert TABLE_9.column("eval/sv10k/i2t_r1") == "SV-10k T2I"
