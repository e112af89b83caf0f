from __future__ import annotations

import json
from collections import Counter, defaultdict
from itertools import groupby
from math import log
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest

from cornerstone.commands.data import ScenesCommand
from cornerstone.data.documents.config import PackingConfig
from cornerstone.data.documents.index import measure
from cornerstone.data.documents.pieces import LOW, pack
from cornerstone.data.manifest import Manifest
from cornerstone.data.records import DOCUMENTS
from cornerstone.data.scenes.documents import DocumentsSpec, Topic, document, expected_worth
from cornerstone.data.scenes.statements import COMING, HERE, OF_THE_TOPIC
from cornerstone.data.scenes.texts import JUNK, NUMBERS
from cornerstone.data.scenes.tokenizer import texts_of, train_wordpiece
from cornerstone.data.scenes.world import BACKGROUND_NAMES, NOUNS, place_name
from cornerstone.data.scenes.write import write_documents, write_scenes
from cornerstone.data.shards import DataSet, Reader
from cornerstone.data.texts import plain_tokenizer
from cornerstone.errors import CornerstoneError

PLACES = [place_name(cell, 3) for cell in range(9)]


def files(folder):
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def images_of(one):
    """The images of a document: what is known of each, and its texts (`said`), each with its words and place."""
    parts = [(place, segment, json.loads(segment.extra)) for place, segment in enumerate(one.segments)]
    texts = [(place, s.text, extra) for place, s, extra in parts if s.image is None]
    pictures = [(place, extra) for place, s, extra in parts if s.image is not None]
    for (place, extra), (number, around) in zip(pictures, groupby(texts, key=lambda t: t[2]["image"]), strict=True):
        said = [
            SimpleNamespace(at=at, text=text, words=tuple(v["word"] for v in of["values"]), **of)
            for at, text, of in around
        ]
        known = {"described": extra["scene"], **extra}
        yield SimpleNamespace(number=number, at=place, mismatched="described" in extra, said=said, **known)


def all_images(documents=150, **knobs):
    spec = DocumentsSpec(image_size=32, **knobs)
    return [(index, image) for index in range(documents) for image in images_of(document(spec, index))]


def true_of(scene, fact, words):
    things = [(NOUNS[species], PLACES[cell]) for species, cell, *_ in scene["things"]]
    return {
        "large": lambda: words == things[0][:1],
        "place": lambda: words == things[0][1:],
        "number": lambda: words == (NUMBERS[len(things)],),
        "empty": lambda: words[0] in PLACES and words[0] not in {place for _, place in things},
        "small": lambda: words in things[1:],
    }[fact]()


def test_one_and_two_workers_write_the_same_bytes(tmp_path):
    for workers in (1, 2):
        write_documents(tmp_path / str(workers), documents=50, rows_per_shard=20, image_size=32, workers=workers)
    assert files(tmp_path / "1") == files(tmp_path / "2")
    assert sorted(files(tmp_path / "1"))[1:] == [f"shard-0000{n}.parquet" for n in range(3)]


def test_shards_hold_the_documents_and_the_manifest_tells_how_they_came_about(tmp_path):
    knobs = {"redundancy": 0.2, "mismatch": 0.3, "image_size": 32, "seed": 3}
    manifest = write_documents(tmp_path / "x", documents=30, workers=1, set="documents-validation", **knobs)
    assert (manifest.kind, manifest.name, manifest.rows) == ("documents", "documents-validation", 30)
    assert Manifest.read(str(tmp_path / "x"), "documents") == manifest
    table = pq.read_table(tmp_path / "x" / manifest.shards[0].file)
    assert table.schema.equals(DOCUMENTS)
    spec = DocumentsSpec(**manifest.source["scenes"])
    assert spec == DocumentsSpec(set="documents-validation", rows=30, **knobs)
    assert table.to_pylist() == [document(spec, i).as_row() for i in range(30)]
    other = document(DocumentsSpec(**{**manifest.source["scenes"], "set": "documents"}), 0)
    assert Topic.of(spec, 0) != json.loads(other.extra)["topic"]


def test_totals_are_sums_over_the_values(tmp_path):
    manifest = write_documents(tmp_path / "x", documents=40, workers=1, image_size=32, mismatch=0.2)
    spec, totals, nats = DocumentsSpec(**manifest.source["scenes"]), manifest.source["totals"], Counter()
    for index in range(40):
        one = document(spec, index)
        known, own = json.loads(one.extra), Counter()
        for image in images_of(one):
            for text in image.said:
                own[text.role] += sum(value["nats"] for value in text.values)
                own["sentences"] += 1
            own["images"] += 1
        assert known["worth_after"] == pytest.approx(own["after"], abs=1e-3)
        assert (known["images"], known["sentences"]) == (own["images"], own["sentences"])
        nats += own
    assert totals == {
        "documents": 40,
        "images": nats["images"],
        "sentences": nats["sentences"],
        **{f"worth_{role}": pytest.approx(nats[role], abs=1e-2) for role in ("before", "matched", "after")},
    }
    assert expected_worth(manifest) == pytest.approx(nats["after"] + nats["matched"] / 2, abs=1e-2)
    pairs = write_scenes(tmp_path / "pairs", pairs=2, workers=1, image_size=32)
    with pytest.raises(CornerstoneError, match="is not known"):
        expected_worth(pairs)


def test_an_image_stands_directly_before_its_matched_sentence_between_two_or_three_others():
    spec = DocumentsSpec(image_size=32)
    for index in range(60):
        one = document(spec, index)
        images, topic = list(images_of(one)), Topic.of(spec, index)
        texts = [segment.text for segment in one.segments if segment.image is None]
        assert 1 <= len(images) <= 6
        for image in images:
            roles = [text.role for text in image.said]
            before, after = roles.count("before"), roles.count("after")
            assert roles == ["before"] * before + ["matched"] + ["after"] * after
            assert 2 <= before <= 3
            assert 2 <= after <= 3
            assert [text.at for text in image.said[before:]] == list(range(image.at + 1, image.at + 2 + after))
            assert texts[image.matched_text_index] == image.said[before].text
            assert image.scene["background"] == topic.background
            assert {species for species, *_ in image.scene["things"]} <= set(topic.species)
            assert len(set(topic.species)) == 12


def test_the_number_of_images_is_one_and_a_quarter_of_the_others():
    spec = DocumentsSpec(image_size=32)
    counts = [json.loads(document(spec, index).extra)["images"] for index in range(300)]
    assert np.mean(counts) == pytest.approx(2.25, abs=0.2)
    one = DocumentsSpec(image_size=32, images_per_document=1)
    assert {json.loads(document(one, index).extra)["images"] for index in range(30)} == {1}


@pytest.mark.parametrize("mismatch", [0.0, 0.5])
def test_every_stated_fact_is_true_of_the_described_image(mismatch):
    stated = 0
    for _, image in all_images(mismatch=mismatch):
        for text in image.said:
            assert (text.fact is None) == (text.words == ())
            positions = [text.text.index(word) for word in text.words]
            assert positions == sorted(positions)
            if text.fact:
                assert true_of(image.described, text.fact, text.words)
                stated += not true_of(image.scene, text.fact, text.words)
    assert (stated > 0) == (mismatch > 0)


def test_sentences_that_state_no_fact_suit_the_topic():
    topics = [Topic.of(DocumentsSpec(), index) for index in range(150)]
    for index, image in all_images(context=0.2, redundancy=0.0):
        words = {"background": BACKGROUND_NAMES[topics[index].background]}
        allowed = {
            form.format(thing=NOUNS[species], **words) + "."
            for form in OF_THE_TOPIC
            for species in topics[index].species
        }
        for text in image.said:
            if text.fact is None:
                assert text.text in allowed or set(text.text.rstrip(".").split()) <= set(JUNK)


def test_with_full_redundancy_everything_after_the_image_was_said_before_it_in_another_form():
    for _, image in all_images(redundancy=1.0, context=0.1):
        before = {(text.fact, text.words) for text in image.said if text.role == "before"}
        texts = {text.text for text in image.said if text.role == "before"}
        for text in image.said:
            if text.role != "before":
                assert (text.fact, text.words) in before
                assert text.text not in texts
                assert {value["kind"] for value in text.values} == {"copyable"}
                assert {value["nats"] for value in text.values} == {0.0}


@pytest.mark.parametrize("context", [0.0, 1.0])
def test_without_redundancy_no_fact_is_said_twice(context):
    for _, image in all_images(redundancy=0.0, context=context):
        facts = [(text.fact, text.words) for text in image.said if text.fact]
        assert len(set(facts)) == len(facts)
        once = [fact for fact, _ in facts if fact != "small"]
        assert len(set(once)) == len(once)
        kinds = {(text.role == "before", value["kind"]) for text in image.said for value in text.values}
        assert kinds == {(False, "new")} | ({(True, "context")} if context else set())
        assert all(text.fact for text in image.said) == (context == 1)


def test_shares_follow_the_knobs():
    said = [text for _, image in all_images(400, redundancy=0.3, context=0.6) for text in image.said]
    after = [text.values[0]["kind"] == "copyable" for text in said if text.role != "before"]
    assert np.mean(after) == pytest.approx(0.3, abs=0.04)
    assert np.mean([text.fact is not None for text in said if text.role == "before"]) >= 0.6 - 0.04


def test_pictures_and_structure_do_not_depend_on_the_knobs():
    one, other = (DocumentsSpec(image_size=32, redundancy=r, context=c) for r, c in ((0, 0.5), (0.9, 1)))
    for index in range(20):
        a, b = document(one, index), document(other, index)
        assert [s.image for s in a.segments] == [s.image for s in b.segments]
        places = [[json.loads(s.extra).get("role") for s in d.segments] for d in (a, b)]
        assert places[0] == places[1]


def readings(images):
    """For each new value: its fact, its slot, and what a reader who knows topic and text could still expect there."""
    topics = {index: Topic.of(DocumentsSpec(), index) for index, _ in images}
    for index, image in images:
        species = [NOUNS[s] for s in topics[index].species]
        cells, small, empty = list(PLACES), len(image.described["things"]) - 1, 9 - len(image.described["things"])
        for text in image.said:
            if not text.fact or text.values[0]["kind"] == "copyable":
                continue
            for slot, value in enumerate(text.values):
                word, choice = value["word"], 1
                if text.fact == "number":
                    left = list(NUMBERS[4:8])
                else:
                    left = species if word in NOUNS else cells
                if text.fact == "small" and slot == 0:
                    choice, small = small, small - 1
                if text.fact == "empty":
                    choice = empty
                yield SimpleNamespace(fact=text.fact, slot=slot, value=value, left=list(left), choice=choice)
                if text.fact != "number":
                    left.remove(word)


def test_a_value_is_worth_what_the_text_leaves_open_less_what_the_image_does():
    images = all_images(100, context=0.6, redundancy=0.3)
    for read in readings(images):
        assert read.value["nats"] == pytest.approx(log(len(read.left) / read.choice), abs=1e-4)
        assert read.value["nats"] >= 0


def test_values_are_uniform_over_what_the_text_leaves_open():
    counted = defaultdict(Counter)
    for read in readings(all_images(600, context=0.6, redundancy=0.2)):
        counted[read.fact, read.slot, len(read.left)][read.left.index(read.value["word"])] += 1
    tested = 0
    for (_, _, left), counts in counted.items():
        expected = sum(counts.values()) / left
        if expected >= 5:
            square = sum((counts[place] - expected) ** 2 / expected for place in range(left))
            freedom = left - 1  # mean and half the variance of the distribution
            assert square < freedom + 4 * (2 * freedom) ** 0.5
            tested += 1
    assert tested >= 15


def test_no_form_of_the_coming_image_occurs_after_it_and_none_of_its_words_is_a_value():
    values = {*NOUNS, *NUMBERS[4:8], *(word for place in PLACES for word in place.split())}
    openings = [{form.partition("{")[0] for forms in of.values() for form in forms} for of in (COMING, HERE)]
    assert not openings[0] & openings[1]
    forms = [form for of in (COMING, HERE) for each in of.values() for form in each]
    assert not values & {word for form in [*forms, *OF_THE_TOPIC, *JUNK] for word in form.split()}


def test_mismatched_images_are_worth_nothing_and_have_a_low_similarity():
    images = [image for _, image in all_images(300, mismatch=0.3)]
    assert np.mean([image.mismatched for image in images]) == pytest.approx(0.3, abs=0.05)
    for image in images:
        low, high = (0.05, 0.23) if image.mismatched else (0.25, 0.45)
        assert low <= image.matched_sim <= high
        if image.mismatched:
            assert image.scene["background"] != image.described["background"]
            assert {value["nats"] for text in image.said for value in text.values} <= {0.0}


def test_packing_keeps_documents_within_the_budget_without_mismatched_images(tmp_path):
    write_documents(tmp_path / "x", documents=120, workers=1, image_size=32, mismatch=0.3)
    data = DataSet.open(str(tmp_path / "x"))
    texts = list(texts_of(data))
    reader = Reader(data, columns=["segments"])
    segments = [reader.group(group)["segments"] for group in range(len(data.manifest.row_groups))]
    rows = [row for group in segments for row in group.to_pylist()]
    assert texts == [part["text"] for row in rows for part in row if part["kind"] == "text"]
    tokenizer = plain_tokenizer(train_wordpiece(texts))
    assert all(len(tokenizer.encode(noun, add_special_tokens=False).ids) == 1 for noun in NOUNS)
    config = PackingConfig(token_budget=256, image_tokens=16)
    lengths = [length for n, group in enumerate(segments) for length in measure(group, 64 * n, tokenizer, config)]
    sequences, counted = pack(lengths, config)
    assert max(sum(piece.tokens for piece in sequence) for sequence in sequences) <= 256
    totals = data.manifest.source["totals"]
    assert counted.found["images"] == totals["images"]
    mismatched = sum(
        "described" in json.loads(part["extra"]) for row in rows for part in row if part["kind"] == "image"
    )
    assert counted.left_out["images", LOW] == mismatched > 0
    assert 110 <= np.mean([sum(n for n in length.tokens) + 18 * len(length.left_out) + 2 for length in lengths]) <= 125


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "one of --pairs N, --documents N and --conversations N, got none"),
        ({"pairs": 3, "documents": 3}, "got --pairs and --documents"),
        ({"documents": 0}, "raise --documents"),
        ({"documents": 3, "redundancy": 1.5}, "change --redundancy"),
        ({"documents": 3, "context": float("nan")}, "change --context"),
        ({"documents": 3, "mismatch": -0.1}, "change --mismatch"),
        ({"documents": 3, "images_per_document": 0}, "raise --images-per-document"),
        ({"documents": 3, "set": "lookalike"}, "documents have train and validation"),
        (
            {"pairs": 3, "redundancy": 0.9, "images_per_document": 2},
            "--redundancy, --images-per-document: an option of",
        ),
    ],
)
def test_impossible_documents_are_an_error(tmp_path, options, said):
    with pytest.raises(CornerstoneError, match=said):
        ScenesCommand(str(tmp_path / "x"), **options).run()
    assert not (tmp_path / "x").exists()


def test_worlds_without_enough_facts_and_unknown_sets_are_refused():
    with pytest.raises(CornerstoneError, match="4 <= fewest <= most <= 8"):
        DocumentsSpec(min_objects=3)
    with pytest.raises(CornerstoneError, match="4 <= fewest <= most <= 8"):
        DocumentsSpec(max_objects=9)
    with pytest.raises(CornerstoneError, match="did you mean 'documents'"):
        DocumentsSpec(set="document")
    spec = DocumentsSpec(cells=4, min_objects=6, max_objects=12, context=1.0, redundancy=0.0)
    assert all(list(images_of(document(spec, index))) for index in range(20))


def test_the_command_writes_documents_and_a_tokenizer(tmp_path, capsys):
    folder = tmp_path / "x"
    ScenesCommand(str(folder), documents=6, image_size=32).run()
    said = capsys.readouterr()
    assert "6 rows of documents" in said.out + said.err
    assert "nats a document" in said.out + said.err
    tokenizer = plain_tokenizer((folder / "tokenizer.json").read_text())
    assert "[UNK]" not in tokenizer.encode("here is a large dabu.").tokens
    before = files(folder)
    with pytest.raises(CornerstoneError, match="already holds"):
        ScenesCommand(str(folder), documents=7, image_size=32).run()
    assert files(folder) == before
    ScenesCommand(str(tmp_path / "v"), documents=6, image_size=32, set="validation").run()
    assert sorted(files(tmp_path / "v")) == ["manifest.json", "shard-00000.parquet"]
    assert Manifest.read(str(tmp_path / "v")).name == "documents-validation"
