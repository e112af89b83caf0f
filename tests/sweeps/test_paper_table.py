from __future__ import annotations

import pytest

from cornerstone.sweeps.paper_table import PaperTable, plain
from cornerstone.sweeps.papers import lcl
from cornerstone.sweeps.papers.lotlip import FIGURE_2, FIGURE_4, TABLE_3
from cornerstone.sweeps.papers.sets import ALIASES, STAND_INS


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
