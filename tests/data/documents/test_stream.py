"""Packed sequences in the stream: rows like any other, so that a run goes on from the number of its step alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from cornerstone.data.documents import PackedSequences, PackedSource, PackingConfig
from cornerstone.data.documents.batch import SequenceBatch
from cornerstone.data.execution import ray_datasets, ray_stream
from cornerstone.data.images import Transform
from cornerstone.data.layout import Layout, StreamSpec
from cornerstone.data.mixture import Mixture, write_mixture
from cornerstone.data.plan import Plan
from cornerstone.data.stream import Stream
from cornerstone.errors import CornerstoneError

CONFIG = PackingConfig(token_budget=32, image_tokens=3)
TRANSFORM = Transform(8, crop_scale=(0.5, 1.0))
STEPS, BATCH, SEED = 9, 5, 4


@pytest.fixture
def spec_of(words):
    """The stream over an index or a mixture of them."""

    def make(index: str, **changes) -> StreamSpec:
        mixture = Mixture.open(index, "packing")
        train = PackedSource.of(mixture.sets, mixture.parts, words.tokenizer, TRANSFORM, SEED)
        return StreamSpec(train, Plan(mixture.parts, BATCH, SEED), STEPS, **changes)

    return make


@pytest.fixture
def index(words) -> str:
    """Some 20 sequences of documents with one to three images, one of which cannot be read."""
    documents = [["one", i, "two three"] + [i + 50] * (i % 3) + ["four"] * (i % 2) for i in range(40)]
    documents[7][1] = words.picture(7)[:40]
    return words.pack(words.write("docs", documents), CONFIG)[0]


def values(batch: SequenceBatch) -> dict:
    return {k: v.tolist() if isinstance(v, torch.Tensor) else v for k, v in vars(batch).items()}


def seen(spec: StreamSpec, workers: int = 1, start: int = 0, stop: int = STEPS) -> list[list[dict]]:
    """The batches of all workers, step by step."""
    streams = [Stream.local(Layout(spec, workers), worker, start) for worker in range(workers)]
    return [[values(stream.batch(step)) for stream in streams] for step in range(start, stop)]


def joined(shares: list[dict]) -> dict:
    """The global batch: sequences one after another, without masked places."""
    rows, images = [], []
    for share in shares:
        of_rows = zip(share["row"], share["epoch"], share["token_ids"], share["document"], share["target"], strict=True)
        rows += [row for row, valid in zip(of_rows, share["valid"], strict=True) if valid]
        places = [share["row"][at] for at in share["image_row"]]
        images += zip(
            places, share["image_at"], share["text_before"], share["image_valid"], share["image"], strict=True
        )
    return {"rows": rows, "images": images, "bad": [bad for share in shares for bad in share["bad"]]}


def test_a_batch_is_its_sequences(spec_of, index, words):
    spec = spec_of(index)
    (batch,) = seen(spec)[3]
    rows, epochs = spec.plan.batch(3)
    table = PackedSequences(spec.train.documents, [index], words.tokenizer, CONFIG, TRANSFORM, SEED).take(rows, epochs)
    assert (batch["step"], batch["row"], batch["epoch"]) == (3, rows.tolist(), epochs.tolist())
    for name in ("token_ids", "document", "target"):
        assert batch[name] == table[name].to_pylist()
    counts = [len(images) for images in table["images"].to_pylist()]
    assert batch["image_row"] == np.repeat(np.arange(BATCH), counts).tolist()
    assert np.array(batch["image"]).shape == (sum(counts), 3, 8, 8)
    assert np.array(batch["image"]).reshape(sum(counts), -1).tolist() == [
        i for of in table["images"].to_pylist() for i in of
    ]
    for name in ("image_at", "text_before"):
        assert batch[name] == [value for of in table[name].to_pylist() for value in of]


def test_images_that_cannot_be_read_are_black_and_named(spec_of, index):
    batches = [batch for (batch,) in seen(spec_of(index))]
    bad = [one for batch in batches for one in batch["bad"]]
    assert bad
    assert all("truncated" in reason or "not readable" in reason for _, _, reason in bad)
    assert all(what.startswith("image ") for _, what, _ in bad)
    assert all(all(batch["valid"]) for batch in batches)  # a bad image is no bad row
    for batch in batches:
        black = [not np.any(image) for image in batch["image"]]
        assert [not valid for valid in batch["image_valid"]] == black
        assert sum(black) == len(batch["bad"])


@pytest.mark.parametrize("workers", [2, 3])
def test_every_number_of_workers_sees_the_same_sequences(spec_of, index, workers):
    spec = spec_of(index)
    alone = [joined(shares) for shares in seen(spec)]
    assert [joined(shares) for shares in seen(spec, workers)] == alone
    assert [row for batch in alone for row, *_ in batch["rows"]] == [
        r for s in range(STEPS) for r in spec.plan.batch(s)[0]
    ]


@pytest.mark.parametrize(("before", "after"), [(1, 1), (1, 3), (2, 1)])
def test_a_run_goes_on_from_its_step_alone(spec_of, index, before, after):
    """Also in the middle of a unit, over an epoch's edge, and twice."""
    spec = spec_of(index)
    assert len(Mixture.open(index, "packing")) < 5 * BATCH  # an epoch ends on the way
    whole = [joined(shares) for shares in seen(spec)]
    parts = seen(spec, before, 0, 3) + seen(spec, after, 3, 4) + seen(spec, before, 4, STEPS)
    assert [joined(shares) for shares in parts] == whole


def test_a_sequence_is_laid_out_anew_in_its_next_epoch(spec_of, index):
    by_row: dict[int, dict[int, tuple]] = {}
    for (batch,) in seen(spec_of(index)):
        for row, epoch, ids in zip(batch["row"], batch["epoch"], batch["token_ids"], strict=True):
            by_row.setdefault(row, {})[epoch] = tuple(ids)
    again = [epochs for epochs in by_row.values() if len(epochs) == 2]
    assert len(again) > BATCH
    assert sum(epochs[0] != epochs[1] for epochs in again) > len(again) / 2  # images change sides
    assert all(sorted(epochs[0]) == sorted(epochs[1]) for epochs in again)


def test_packings_of_several_rules_are_mixed_by_weight(spec_of, words, tmp_path):
    """LAION-Random and MMC4 together, as in LCL's table."""
    pairs = words.write("laion", [[i, "one two"] for i in range(30)])
    documents = words.write("mmc4", [["one", i, "two", i + 60, "three"] for i in range(30)])
    one, two = replace(CONFIG, rule="laion", one_document=True), replace(CONFIG, token_budget=32)
    sets = [words.pack(pairs, one)[0], words.pack(documents, two)[0]]
    write_mixture(tmp_path / "both", [(sets[0], "1"), (sets[1], "2")])
    spec = spec_of(str(tmp_path / "both"))
    sizes = [len(Mixture.open(folder, "packing")) for folder in sets]
    assert spec.train.documents == (pairs, documents)
    counts = [0, 0]
    for (batch,) in seen(spec):
        for row, document, ids in zip(batch["row"], batch["document"], batch["token_ids"], strict=True):
            of_second = row >= sizes[0]
            counts[of_second] += 1
            assert (max(document) == 0) or of_second  # a single document by the first rule
            assert len([token for token in ids if token == ids[0]]) >= 1
    wanted = sizes[0] / (sizes[0] + 2 * sizes[1]) * STEPS * BATCH
    assert abs(counts[0] - wanted) < 2
    images = seen(spec)[0][0]
    assert len(images["image_at"]) == len(images["image"])


def test_sequences_of_different_lengths_are_not_mixed(spec_of, words, tmp_path):
    data = words.write("docs", [["one", i, "two"] for i in range(12)])
    sets = [words.pack(data, replace(CONFIG, token_budget=budget))[0] for budget in (32, 40)]
    write_mixture(tmp_path / "both", [(folder, "1") for folder in sets])
    with pytest.raises(
        CornerstoneError, match="Sequences of 32 tokens with 3 an image and 40 tokens with 3 an image cannot"
    ):
        seen(spec_of(str(tmp_path / "both")))


def test_through_ray_it_is_the_same(ray_cluster, spec_of, index):
    layout = Layout(spec_of(index), 1)
    datasets = ray_datasets(layout, lambda: 2, actors=2, cpus_per_actor=0.25)
    shards = {name: build().streaming_split(1, equal=True)[0] for name, build in datasets.items()}
    stream = ray_stream(layout, 2, shards.__getitem__)
    found = [values(stream.batch(step)) for step in range(2, STEPS)]
    assert found == [batch for (batch,) in seen(layout.spec, start=2)]
    assert stream.seconds_to_first_block is not None


def test_a_micro_batch_has_the_images_of_its_sequences(spec_of, index):
    batch = Stream.local(Layout(spec_of(index), 1), 0, 0).batch(0)
    parts = batch.split(2)
    assert [len(part) for part in parts] == [3, 2]
    assert torch.equal(torch.cat([part.image for part in parts]), batch.image)
    assert torch.equal(torch.cat([parts[0].image_row, parts[1].image_row + 3]), batch.image_row)
    assert batch.counted() == {"row": BATCH, "image": len(batch.image)}


def test_units_hold_as_many_sequences_as_fit_their_bytes(spec_of, index):
    layout = Layout(replace(spec_of(index), steps=1000), 1)
    assert layout.spec.train.row_bytes == 9 * 32 + 6 * 3 * 8 * 8
    assert layout.share * layout.steps_per_unit <= 1024
    large = replace(layout.spec, train=replace(layout.spec.train, transform=Transform(224)), steps=1000)
    assert Layout(large, 1).steps_per_unit == 3  # 6 images of 150 kB a row, 16 MiB a unit


def test_a_worker_may_have_no_sequence_of_an_evaluation_set(spec_of, index):
    spec = spec_of(index)
    none = np.zeros(0, dtype=np.int64)
    batch = spec.train.batch(0, spec.train.open().take(none, none))
    assert (len(batch), len(batch.image)) == (0, 0)
    assert batch.token_ids.shape == (0, CONFIG.token_budget)
