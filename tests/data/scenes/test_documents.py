"""Interleaved documents of scenes: true, deterministic, and of known worth."""

from __future__ import annotations

import json
import math
from collections import Counter

import numpy as np
import pytest
from scipy.stats import chisquare

from cornerstone import cli
from cornerstone.data.documents.config import PackingConfig
from cornerstone.data.documents.index import measure
from cornerstone.data.documents.pieces import LOW, pack
from cornerstone.data.scenes.documents import TOPIC_SPECIES, DocumentsSpec, document, manifest_fields, passages_of
from cornerstone.data.scenes.texts import NUMBERS
from cornerstone.data.scenes.tokenizer import texts_of, train_wordpiece
from cornerstone.data.scenes.world import COLOUR_NAMES, NOUNS, SHAPES, Scene, Thing, place_name
from cornerstone.data.scenes.write import write_documents
from cornerstone.data.shards import DataSet, Reader
from cornerstone.data.texts import plain_tokenizer
from cornerstone.errors import CornerstoneError

PLACES = {place_name(cell, 3): cell for cell in range(9)}


def passages(rows=300, **knobs):
    spec = DocumentsSpec(rows=rows, **knobs)
    return [passage for row in range(rows) for passage in passages_of(spec, row)]


def stated(text: str) -> tuple:
    """What a sentence says, read from its words: ("object", species, cell) or ("count", number)."""
    words = text.rstrip(".").split()
    if any(word.startswith("object") for word in words):
        return ("count", [NUMBERS.index(word) for word in words if word in NUMBERS][-1])  # "one can count five objects"
    cell = next(cell for name, cell in PLACES.items() if name in text)
    noun = next((NOUNS.index(word) for word in words if word in NOUNS), None)
    if noun is None:
        colour = next(i for i, name in enumerate(COLOUR_NAMES) if name in words)
        noun = colour * len(SHAPES) + next(i for i, name in enumerate(SHAPES) if name in words)
    return ("object", noun, cell)


def holds(fact: tuple, scene: Scene) -> bool:
    if fact[0] == "count":
        return fact[1] == len(scene.things)
    return any((thing.species, thing.cell) == fact[1:] for thing in scene.things)


def test_what_is_said_is_true_and_of_the_kind_it_claims():
    for passage in passages(redundancy=0.5):
        before = [stated(said.text) for said in passage.before if said.kind == "context"]
        behind = [passage.matched, *passage.after]
        facts = [stated(said.text) for said in behind]
        assert all(holds(fact, passage.scene) for fact in [*before, *facts])
        seen = list(before)
        for said, fact in zip(behind, facts, strict=True):
            assert (said.kind == "copyable") == (fact in before)
            assert (said.kind == "new") == (fact not in seen)
            assert (said.nats > 0) == (said.kind == "new")
            texts = [other.text for other in passage.before]
            assert said.text not in texts  # copied in another form
            seen += [fact] if said.kind == "new" else []


@pytest.mark.parametrize(("redundancy", "kind"), [(0.0, "new"), (1.0, "copyable")])
def test_the_ends_of_redundancy(redundancy, kind):
    found = Counter(s.kind for p in passages(100, redundancy=redundancy) for s in (p.matched, *p.after))
    assert set(found) == {kind}
    worth = sum(p.worth for p in passages(100, redundancy=redundancy))
    assert (worth > 500) == (kind == "new")


def test_context_and_fillers():
    speaking = [p.before for p in passages(200, context=1.0)]
    assert {said.kind for before in speaking for said in before} == {"context"}
    silent = [p.before for p in passages(200, context=0.0, redundancy=0.0)]
    assert {said.kind for before in silent for said in before} == {"filler"}
    assert all(2 <= len(before) <= 3 for before in [*speaking, *silent])


def test_values_are_uniform_given_what_is_said():
    """The first fact behind an image of which nothing is said: its cell among 9, its species among the topic's 12."""
    spec = DocumentsSpec(rows=3000, context=0.0, redundancy=0.0)
    cells, places, counts = Counter(), Counter(), Counter()
    for row in range(spec.rows):
        several = passages_of(spec, row)
        topic = sorted({thing.species for p in several for thing in p.scene.things})
        for passage in several:
            fact = stated(passage.matched.text)
            counts[len(passage.scene.things)] += 1
            if fact[0] == "object":
                cells[fact[2]] += 1
                places[topic.index(fact[1]) / len(topic) < 0.5] += 1
                assert passage.matched.nats == pytest.approx(math.log(TOPIC_SPECIES) + math.log(9))
            else:
                assert passage.matched.nats == pytest.approx(math.log(4))
    for found in (cells, counts):
        assert chisquare(list(found.values())).pvalue > 1e-3
    assert len(cells) == 9


def test_one_and_two_workers_write_the_same_bytes(tmp_path):
    for workers in (1, 2):
        manifest = write_documents(tmp_path / str(workers), documents=70, rows_per_shard=32, workers=workers)
    one, two = ({p.name: p.read_bytes() for p in sorted((tmp_path / n).iterdir())} for n in "12")
    assert one == two
    assert len(one) == 4
    assert (manifest.kind, manifest.name, manifest.rows) == ("documents", "documents", 70)
    source = manifest.source
    spec = DocumentsSpec(rows=70, rows_per_shard=32)
    assert source["expected_worth"] == manifest_fields(spec)["source"]["expected_worth"]
    rows = Reader(DataSet.open(tmp_path / "1", "documents"), ["segments", "extra"]).group(0).to_pylist()
    each = [json.loads(row["extra"])["worth"] for row in rows]
    assert sum(each[:64]) > 0
    images = [part for row in rows for part in row["segments"] if part["kind"] == "image"]
    assert source["images"] >= len(images)
    scene = json.loads(images[0]["extra"])["scene"]
    Scene(scene["cells"], scene["background"], tuple(Thing(*thing) for thing in scene["things"]))


def test_the_image_stands_directly_before_its_sentence():
    spec = DocumentsSpec(rows=20)
    for row in range(20):
        segments = document(spec, row).segments
        texts = [part for part in segments if part.text is not None]
        for place, part in enumerate(segments):
            if part.image is not None:
                index = json.loads(part.extra)["matched_text_index"]
                assert texts[index] is segments[place + 1]


def test_mismatched_images_are_what_the_filter_drops(tmp_path):
    folder = tmp_path / "documents"
    manifest = write_documents(folder, documents=200, mismatch=0.3, workers=1)
    assert 0.2 < manifest.source["mismatched"] / manifest.source["images"] < 0.4
    data = DataSet.open(folder, "documents")
    tokenizer = plain_tokenizer(train_wordpiece(texts_of(data)))
    segments = Reader(data, ["segments"]).group(0)["segments"]
    config = PackingConfig(token_budget=512, image_tokens=16)
    sequences, counted = pack(measure(segments, 0, tokenizer, config), config)
    group = [json.loads(part["extra"])["matched_sim"] for row in segments.to_pylist() for part in row if part["image"]]
    assert counted.left_out["images", LOW] == sum(similarity < 0.24 for similarity in group)
    assert all(similarity < 0.24 or similarity >= 0.25 for similarity in group)
    assert not {why for _, why in counted.left_out} - {LOW, "no usable image", "with its document"}
    tokens = np.array([piece.tokens for sequence in sequences for piece in sequence])
    assert 60 < tokens.mean() < 260


def test_the_command(tmp_path, capsys):
    out = tmp_path / "docs"
    cli.main(["data", "scenes", "--documents", "12", "--out", str(out), "--redundancy", "1"])
    assert "12 rows of documents in" in " ".join(capsys.readouterr().out.split())
    assert sorted(path.name for path in out.iterdir()) == ["manifest.json", "shard-00000.parquet", "tokenizer.json"]
    for arguments, message in (
        ([], "--pairs 0, --documents 0: give exactly one of them"),
        (["--pairs", "3", "--documents", "3"], "--pairs 3, --documents 3: give exactly one of them"),
        (["--documents", "3", "--redundancy", "1.5"], "--redundancy 1.5: expected 0 to 1"),
        (["--documents", "3", "--set", "class"], "--set class: of documents there are the sets train and validation"),
        (["--documents", "12"], "already holds a finished data set"),
    ):
        with pytest.raises(SystemExit):
            cli.main(["data", "scenes", "--out", str(out), *arguments])
        assert message in " ".join(capsys.readouterr().out.split())
    with pytest.raises(CornerstoneError, match="--documents 0: expected 1 or more"):
        write_documents(tmp_path / "none", documents=0)
