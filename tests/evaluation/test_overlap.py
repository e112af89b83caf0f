"""Overlap of evaluation sets with training data and with each other, and what is published about the papers' sets."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cornerstone.data.records import Caption
from cornerstone.data.shards import DataSet
from cornerstone.evaluation import overlap
from cornerstone.evaluation.overlap import Images, Seen, overlap_warnings
from cornerstone.evaluation.sets import open_sets


@pytest.fixture
def write(tmp_path, small_data):
    """A set of pictures by number, under keys of a form."""

    def written(name, numbers, key="{}.jpg", captions=None, **manifest):
        changes = {"captions": captions} if captions else {}
        pairs = (small_data.pair(i, key=key.format(i), **changes) for i in numbers)
        return small_data.write(tmp_path / name, pairs, **manifest)

    return written


def seen(*folders, limit=None):
    return Seen(tuple(DataSet.open(folder) for folder in folders), limit)


def said(sets, seen=None, **known):
    return overlap_warnings(open_sets(sets), seen, **known)


def test_the_same_picture_under_another_name_and_the_same_name_of_another_encoding(write):
    train = write("train", range(10), "web/{}")
    (found,) = said([write("own", range(8, 20), "photo-{}.png")], seen(train))
    assert found.startswith("Overlap: 2 of 12 images of own are in the training data (by name or content)")
    (found,) = said([write("a", range(50, 53), "sa_{}.jpg")], seen(write("b", range(51, 60), "sam/images/sa_{}.jpeg")))
    assert "2 of 3 images of a" in found


def test_a_number_alone_is_no_name(write):
    """Downloads count their pictures: equal numbers mean different pictures."""
    train = write("train", range(100, 110), "{:09d}")
    other = write("other", range(200, 205), "{:09d}")
    assert said([other], seen(train)) == []
    assert said([write("same", range(200, 205), "{:09d}.jpg")], seen(write("numbers", range(5), "{:05d}"))) == []
    assert Images.of([DataSet.open(train)]).names.tolist() == [0] * 10


def test_of_large_training_data_the_names_are_compared(write, monkeypatch):
    train = write("train", range(10), "x_{}")
    evaluated = [write("a", range(5, 15), "x_{}"), write("b", range(5), "y_{}")]
    monkeypatch.setattr(overlap, "MOST_BYTES", 1)
    (found,) = said(evaluated, seen(train))
    assert "5 of 10 images of a are in the training data (by name)" in found
    monkeypatch.setattr(overlap, "MOST_ROWS", 9)
    (found,) = said(evaluated, seen(train))
    assert "10 training rows are too many" in found


def test_only_the_rows_that_are_trained_on_count(write):
    train, more = write("train", range(10), "x_{}"), write("more", range(10, 20), "x_{}")
    (found,) = said([write("a", range(20), "x_{}")], seen(train, more, limit=12))
    assert "12 of 20" in found


def test_two_evaluation_sets_share_images(write):
    """IIW has 112 of DCI's test images."""
    (found,) = said([write("iiw", range(6), "sa_{}.jpg"), write("dci", range(4, 9), "photos/sa_{}.jpg")])
    assert found.startswith("Overlap: 2 of 6 images of iiw are also in dci")


def test_the_papers_sets(write):
    """Long-CLIP and ShareGPT4V-10k; COCO and the captioners; texts by a training captioner."""
    long = (Caption("longSV_captions", "long", "A bus."), Caption("raw", "raw", "a bus"))
    train = seen(write("train", range(3), "t_{}", captions=long))
    sv = write("sv10k", range(20, 22), "s_{}", source={"format": "sharegpt4v"})
    coco = write("coco", range(30, 32), "c_{}", source={"format": "karpathy"})
    found = said([sv, coco], train)
    assert [any(part in one for one in found) for part in ("on which the captioners", "written by ShareGPT4V")] == [
        True
    ] * 2
    assert len(found) == 2
    human = seen(write("human", range(3), "t_{}", captions=(Caption("annotator", "long", "A bus."),)))
    assert said([sv, coco], human) == said([sv, coco]) == []
    (judged, *_) = open_sets([sv])
    many = replace(judged, rows=10_000)
    (found,) = overlap_warnings([many], None, name="hf:zer0int/LongCLIP-GmP-ViT-L-14")
    assert "9,000 of 10,000 images of sv10k" in found
    assert "--first 1000" in found
    assert overlap_warnings([many], None, name="open_clip:ViT-B-16/openai") == []
    assert overlap_warnings([replace(judged, rows=1_000)], None, name="longclip") == []
