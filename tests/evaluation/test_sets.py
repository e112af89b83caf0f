from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from cornerstone.data.manifest import Manifest
from cornerstone.data.pairs.views import Wanted
from cornerstone.data.records import Caption
from cornerstone.data.storage import Location
from cornerstone.errors import CornerstoneError
from cornerstone.evaluation.sets import eval_hash, metric_names, only_task, open_sets, split_name
from cornerstone.evaluation.tasks import TASKS
from cornerstone.hashing import digest

LONG_TEXTS, RAW_TEXTS = (Wanted("long"),), (Wanted("raw"),)
LOOKALIKE_TEXTS = (
    Wanted("long", every=False),
    Wanted("raw", every=False),
    Wanted("long", every=False, sentences=1),
)
RAW, LONG = Caption("web", "raw", "a bus"), Caption("a", "long", "A bus. A red one.")


@pytest.fixture(scope="module")
def write(tmp_path_factory, small_data):
    """A set of 6 rows with these captions; the folder's path."""

    def written(captions=(RAW,), label=None, name="photos", **manifest):
        folder = tmp_path_factory.mktemp("sets") / name
        pairs = (small_data.pair(i, captions=captions, label=label) for i in range(6))
        return small_data.write(folder, pairs, **manifest)

    return written


def judged(*folders):
    return [(s.name, s.task.name, s.view) for s in open_sets(tuple(folders))]


def test_captions_are_judged_by_retrieval(write):
    assert judged(write((RAW,))) == [("photos", "retrieval", RAW_TEXTS)]
    assert judged(write((LONG,))) == [("photos", "retrieval", LONG_TEXTS)]
    assert judged(write((RAW, LONG))) == [("photos", "retrieval", LONG_TEXTS), ("photos-short", "retrieval", RAW_TEXTS)]


def test_labels_are_judged_by_classification(write):
    folder = write((), label=1, classes=("cat", "bus"), prompts=("a {}",))
    (only,) = open_sets((folder,))
    assert (only.task, only.view, only.classes, only.prompts) == (
        TASKS["classification"],
        (),
        ("cat", "bus"),
        ("a {}",),
    )


def test_one_folder_may_be_judged_by_several_tasks(write):
    expected = [("photos", "retrieval", RAW_TEXTS), ("photos", "classification", ())]
    assert judged(write((RAW,), label=1, classes=("cat", "bus"))) == expected
    tasks = ("retrieval", "classification")  # as an import with captions and labels says
    assert judged(write((RAW,), label=1, classes=("cat", "bus"), tasks=tasks)) == expected


def test_the_manifest_says_what_a_set_is_for(write):
    assert judged(write((RAW, LONG), tasks=("lookalike",))) == [("photos", "lookalike", LOOKALIKE_TEXTS)]
    (only,) = open_sets((write((LONG,), tasks=("retrieval",), pool=3),))
    assert only.pool == 3


def test_a_set_reads_its_own_rows(write):
    folder = write()
    (only,) = open_sets((folder,))
    assert (only.folder, only.rows) == (folder, 6)
    assert only.content_hash == Manifest.read(folder).content_hash


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("dci=/data/x", ("dci", "/data/x")),
        ("/data/x", ("", "/data/x")),
        ("/data/split=val/x", ("", "/data/split=val/x")),
        ("dci=s3://b/split=val", ("dci", "s3://b/split=val")),
        ("s3://b/split=val", ("", "s3://b/split=val")),
    ],
)
def test_a_name_may_precede_the_folder(argument, expected):
    assert split_name(argument) == expected


def test_a_relative_folder_is_resolved_in_this_process(write, monkeypatch):
    folder = Path(write())
    monkeypatch.chdir(folder.parent)
    (only,) = open_sets((f"dci={folder.name}",))
    assert only.name == "dci"
    assert only.folder == str(folder)


def test_two_sets_with_the_same_name_are_refused(write):
    one, two = write((RAW,)), write((LONG,))
    with pytest.raises(CornerstoneError, match=r"Two evaluation sets are named 'photos'.* --eval OTHER=DIR"):
        open_sets((one, two))
    assert [s.name for s in open_sets((one, f"other={two}"))] == ["photos", "other"]


def test_a_folder_that_no_task_can_judge_is_refused(write, tmp_path):
    with pytest.raises(CornerstoneError, match="neither captions nor labelled classes"):
        open_sets((write(()),))
    manifest = Manifest.read(write())
    Manifest("features", "x", manifest.shards).write(Location.of(tmp_path))
    with pytest.raises(
        CornerstoneError, match="holds features; an evaluation set is a folder of documents or of packing or of pairs"
    ):
        open_sets((str(tmp_path),))
    with pytest.raises(CornerstoneError, match="No data set at"):
        open_sets((str(tmp_path / "nowhere"),))


def test_the_sets_of_a_task(write):
    both = open_sets((write((RAW,)), write((), label=0, classes=("cat",), name="animals")))
    assert [s.name for s in only_task(both, "classification")] == ["animals"]
    with pytest.raises(
        CornerstoneError, match=r"be judged by lookalike: the data gives animals \(classification\), photos"
    ):
        only_task(both, "lookalike")


def test_an_unknown_task_is_answered_with_the_nearest_name(write):
    folder = write((RAW,), tasks=("retreival",))
    with pytest.raises(CornerstoneError, match=f"{folder}: Unknown evaluation task 'retreival'; did you mean 'retrie"):
        open_sets((folder,))
    with pytest.raises(CornerstoneError, match="Unknown evaluation task 'look-alike'; did you mean 'lookalike'"):
        only_task(open_sets((write((RAW,)),)), "look-alike")


def test_the_metrics_of_sets_are_those_of_their_tasks(write):
    sets = open_sets((write((RAW,), label=1, classes=("cat", "bus")),))
    named = ["i2t_r1", "t2i_r1", "i2t_r5", "t2i_r5", "top1", "top5"]
    assert metric_names(sets) == [f"eval/photos/{name}" for name in named]


def test_the_evaluation_hash_is_that_of_what_is_measured(write):
    one, other = write((RAW,)), write((LONG,))
    base = eval_hash(open_sets((f"a={one}", f"b={other}")))
    assert eval_hash(open_sets((f"b={other}", f"a={one}"))) == base
    assert eval_hash(open_sets((f"a={write((RAW,))}", f"b={other}"))) == base  # the same rows elsewhere
    changed = [(f"a={one}",), (f"a={other}", f"b={one}"), (f"a={one}", f"c={other}")]
    pooled = (f"a={one}", f"b={write((LONG,), pool=2)}")
    assert len({base, *(eval_hash(open_sets(named)) for named in (*changed, pooled))}) == 5


def test_the_evaluation_hash_stays_what_it_was(write):
    """It is compared with the hash that an earlier start of a sweep wrote down."""
    (only,) = open_sets((write((RAW,)),))
    assert eval_hash((only,)) == digest([["photos", "retrieval", only.content_hash, "None"]])


def test_a_set_travels_to_workers_with_its_task(write):
    (only,) = open_sets((write((RAW,)),))
    assert pickle.loads(pickle.dumps(only)) == only
