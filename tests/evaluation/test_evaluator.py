from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from sources import pair_source, texts_of

from cornerstone.data.images import Transform
from cornerstone.data.layout import Layout, StreamSpec
from cornerstone.data.pairs.batch import EvaluationBatch
from cornerstone.data.pairs.image_input import DecodedImages
from cornerstone.data.plan import Plan
from cornerstone.data.records import Caption
from cornerstone.data.stream import Stream
from cornerstone.errors import CornerstoneError
from cornerstone.evaluation.evaluator import Model, evaluate
from cornerstone.evaluation.judged import metrics_of, per_query_table, queries_of
from cornerstone.evaluation.ranking import cosine
from cornerstone.evaluation.sets import open_sets
from cornerstone.evaluation.tasks import EvaluationInputs, pair_task
from cornerstone.evaluation.tasks.classification import class_features
from cornerstone.evaluation.tasks.pair_task import encode_texts
from cornerstone.models.lotlip import Lotlip
from cornerstone.models.method import Inputs
from cornerstone.recipes import CornerText, LotlipConfig

SIZE, WIDTH = 8, 12
CPU = torch.device("cpu")


class Encoder:
    """A model of random tables: features that depend on every pixel, every id and the order of the ids."""

    def __init__(self) -> None:
        draw = torch.Generator().manual_seed(0)
        self.pixels = torch.randn(3 * SIZE * SIZE, WIDTH, generator=draw)
        self.words = torch.randn(512, 64, WIDTH, generator=draw)
        self.longest = 0

    def encode_image(self, image):
        return F.normalize((image.flatten(1).float() / 255 - 0.5) @ self.pixels, dim=-1)

    def encode_text(self, ids, lengths):
        assert ids.shape[1] == lengths.max()
        self.longest = max(self.longest, ids.shape[1])
        place = torch.arange(ids.shape[1])
        summed = (self.words[ids, place] * (place < lengths[:, None])[..., None]).sum(1)
        return F.normalize(summed, dim=-1)

    similarity = text_similarity = staticmethod(cosine)


@pytest.fixture(scope="module")
def sets(tmp_path_factory, small_data, wordpiece):
    """23 images of 1 to 3 raw texts, some shared, with classes; 12 look-alikes in threes. One image is corrupt."""

    def captions(i):
        return tuple(Caption("web", "raw", f"raw {i * (k != 1)}") for k in range(1 + i % 3))

    folder = tmp_path_factory.mktemp("sets")
    changes = [{"captions": captions(i), **({"image": b"broken"} if i == 9 else {})} for i in range(23)]
    pairs = (small_data.pair(i, **change) for i, change in enumerate(changes))
    small_data.write(folder / "photos", pairs, classes=("cat", "dog", "bus", "sky"), prompts=("a photo of a {}.", "{}"))
    alike = (small_data.pair(i, group=f"g{i // 3}") for i in range(12))
    small_data.write(folder / "alike", alike, tasks=("lookalike",))
    return open_sets((str(folder / "photos"), str(folder / "alike")))


@pytest.fixture(scope="module")
def layout(sets, wordpiece):
    """A run of one step that is evaluated."""
    train = pair_source(sets[0].folder, wordpiece.read_text(), Transform(SIZE))
    return Layout(StreamSpec(train, Plan(train.parts, 4, seed=0), 1, sources(sets, train)), 1)


def sources(sets, train):
    """The sets as the model of `train` reads them."""
    return tuple(one.source(EvaluationInputs(DecodedImages(Transform(SIZE)), train.texts, "")) for one in sets)


def batches(layout, worker):
    stream = Stream.local(layout, worker, 0)
    stream.batch(0)
    return list(stream.evaluation(0))


class Caught(Exception):
    """Carries what a worker gathers."""


def evaluated(layout, sets, workers):
    """The flat metrics of `results`."""
    return metrics_of(results(layout, sets, workers))


def results(layout, sets, workers):
    """The results on the first of several workers, with the features of the others gathered."""
    layout, tokenizer = replace(layout, workers=workers), layout.spec.train.texts.open()

    def catch(seen):
        raise Caught(seen)

    others = []
    for worker in range(1, workers):
        with pytest.raises(Caught) as caught:
            evaluate(Encoder(), batches(layout, worker), sets, tokenizer, CPU, catch)
        others.append(caught.value.args[0])
    return evaluate(Encoder(), batches(layout, 0), sets, tokenizer, CPU, lambda seen: [*others, seen])


@pytest.mark.parametrize("workers", [2, 3, 7])
def test_metrics_do_not_depend_on_how_rows_are_spread(layout, sets, workers):
    alone = evaluated(layout, sets, 1)
    assert set(alone) == {
        *(f"eval/photos/{way}_r{k}" for way in ("i2t", "t2i") for k in (1, 5)),
        "eval/photos/top1",
        "eval/photos/top5",
        "eval/photos/rows_left_out",
        *(f"eval/alike/{view}_accuracy" for view in ("long", "short", "first_sentence")),
    }
    assert len(set(alone.values())) > 4
    assert alone["eval/photos/rows_left_out"] == 1  # the corrupt image
    assert evaluated(layout, sets, workers) == alone


@pytest.fixture(scope="module")
def truth(sets, small_data, layout):
    """Features of the usable photos and of all their texts, by hand."""
    model, tokenizer = Encoder(), layout.spec.train.texts.open()
    kept = [i for i in range(23) if i != 9]
    pixels = [Transform(SIZE, train=False)(small_data.picture(i)) for i in kept]
    texts = [(owner, f"raw {i * (k != 1)}") for owner, i in enumerate(kept) for k in range(1 + i % 3)]

    def encode(texts):
        return torch.cat(
            [model.encode_text(torch.tensor([ids]), torch.tensor([len(ids)])) for ids in tokenizer.encode_texts(texts)]
        )

    images = model.encode_image(torch.stack([torch.from_numpy(p) for p in pixels]))
    return kept, images, texts, encode([text for _, text in texts]), encode


def test_retrieval_with_several_texts_an_image_and_shared_ones(layout, sets, truth):
    """Every text of an image counts, and so do copies of it that belong to other images; ties are wrong."""
    _, images, texts, features, _ = truth
    similarity = images @ features.T
    owned = {}
    for owner, text in texts:
        owned.setdefault(owner, set()).add(text)
    right = torch.tensor([[text in owned[image] for _, text in texts] for image in range(len(images))])
    best = similarity.masked_fill(~right, -9).amax(1, keepdim=True)
    i2t = (((similarity >= best) & ~right).sum(1) == 0).double().mean() * 100
    best = similarity.masked_fill(~right, -9).amax(0, keepdim=True)
    t2i = (((similarity >= best) & ~right).sum(0) == 0).double().mean() * 100
    found = evaluated(layout, sets, 1)
    assert found["eval/photos/i2t_r1"] == pytest.approx(i2t.item())
    assert found["eval/photos/t2i_r1"] == pytest.approx(t2i.item())
    assert 0 < i2t < 100


def test_classes_are_the_mean_of_their_prompts(layout, sets, truth):
    kept, images, _, _, encode = truth
    prompts = [p.replace("{}", name) for name in ("cat", "dog", "bus", "sky") for p in ("a photo of a {}.", "{}")]
    classes = class_features(encode(prompts).view(4, 2, WIDTH))
    hits = (images @ classes.T).argmax(1) == torch.tensor([i % 4 for i in kept])
    assert evaluated(layout, sets, 1)["eval/photos/top1"] == pytest.approx(hits.double().mean().item() * 100)


def test_each_view_of_lookalikes_has_its_text(layout, sets, truth, small_data):
    *_, encode = truth
    pixels = [torch.from_numpy(Transform(SIZE, train=False)(small_data.picture(i))) for i in range(12)]
    images = Encoder().encode_image(torch.stack(pixels))
    words = ("one", "two", "three", "four", "five")
    views = {
        "long": [". ".join(f"a {i} {word}" for word in words) + "." for i in range(12)],
        "short": [f"raw {i}" for i in range(12)],
        "first_sentence": [f"a {i} one" for i in range(12)],
    }
    found = evaluated(layout, sets, 1)
    for view, texts in views.items():
        similarity = (encode(texts) @ images.T).view(4, 3, 4, 3)
        groups = torch.stack([similarity[g, :, g] for g in range(4)])
        hits = groups.argmax(-1) == torch.arange(3)
        assert found[f"eval/alike/{view}_accuracy"] == pytest.approx(hits.double().mean().item() * 100)


def test_texts_are_encoded_by_length_and_come_back_in_order(monkeypatch):
    monkeypatch.setattr(pair_task, "ROWS_AT_ONCE", 3)
    model, lengths = Encoder(), torch.tensor([5, 2, 9, 1, 2, 7, 3])
    ids = torch.randint(1, 512, (7, 16), generator=torch.Generator().manual_seed(1))
    found = encode_texts(model, ids, lengths, CPU)
    alone = [model.encode_text(ids[i : i + 1, :n], lengths[i : i + 1]) for i, n in enumerate(lengths.tolist())]
    torch.testing.assert_close(found, torch.cat(alone))
    assert model.longest == 9


def test_a_set_without_a_usable_row_or_text_is_named(layout, sets, tmp_path, small_data):
    def judged(name, **changes):
        folder = small_data.write(
            tmp_path / name, (small_data.pair(i, **changes) for i in range(3)), tasks=("retrieval",)
        )
        named = open_sets((folder,))
        spec = replace(layout.spec, evaluations=sources(named, layout.spec.train))
        return evaluated(replace(layout, spec=spec), named, 1)

    with pytest.raises(CornerstoneError, match="'corrupt' has no usable row"):
        judged("corrupt", image=b"broken", captions=(Caption("web", "raw", "raw"),))
    with pytest.raises(CornerstoneError, match="'silent' has no usable text"):
        judged("silent", captions=(Caption("web", "raw", ""),))


def test_corners_are_not_computed_but_shift_the_text_and_count_against_the_limit(layout):
    """FACTS: the m-position shift stays where corners are not computed, and a text may fill the limit."""
    limit, corners = 14, 2
    tokenizer = texts_of(layout.spec.train.texts.tokenizer, limit, corners).open()
    (ids,) = tokenizer.encode_texts(["a 1 one. a 2 two. a 3 three. a 4 four. a 5 five."])
    assert len(ids) == limit - corners
    given = torch.tensor([ids]), torch.tensor([len(ids)])

    def model(corners):
        text = CornerText(name="", width=16, layers=2, heads=2, token_limit=limit, corner_tokens=corners)
        built = Lotlip.build(LotlipConfig(text=text), Inputs(tokenizer.vocab_size, 8), seed=0).eval()
        for weight in built.text.bert.parameters():
            weight.data *= 10 if weight.ndim > 1 else 1  # trained ones are strong enough for places to matter
        return built

    with torch.no_grad():
        judged = encode_texts(model(corners), *given, CPU)
        trained = model(corners).encode_text(*given, corners=True)[:, 0]
        unshifted = encode_texts(model(0), *given, CPU)
    torch.testing.assert_close(judged, trained, rtol=0, atol=1e-6)
    assert (judged - unshifted).abs().max() > 1e-3


def test_images_are_encoded_in_parts_of_limited_size(layout, sets, monkeypatch):
    sizes, encode = [], Encoder.encode_image

    def counted(self, image):
        sizes.append(len(image))
        return encode(self, image)

    monkeypatch.setattr(Encoder, "encode_image", counted)
    whole = evaluated(layout, sets, 1)
    most, images = max(sizes), sum(sizes)
    sizes.clear()
    monkeypatch.setattr(pair_task, "ROWS_AT_ONCE", 3)
    assert evaluated(layout, sets, 1) == whole
    assert most > 3 == max(sizes)
    assert sum(sizes) == images == 22 + 22 + 12  # the photos are read by two tasks
    monkeypatch.undo()
    assert pair_task.ROWS_AT_ONCE == 256


def test_queries_are_counted_as_they_were_measured(layout, sets):
    """22 usable images with 43 texts: text→image asks every text, image→text every image."""
    texts = sum(1 + i % 3 for i in range(23) if i != 9)
    assert texts > 22
    assert queries_of(results(layout, sets, 2)) == {
        **{f"eval/photos/i2t_r{k}": 22 for k in (1, 5)},
        **{f"eval/photos/t2i_r{k}": texts for k in (1, 5)},
        **{f"eval/photos/top{k}": 22 for k in (1, 5)},
        **{f"eval/alike/{view}_accuracy": 12 for view in ("long", "short", "first_sentence")},
    }


def test_the_per_query_table_has_every_query_behind_every_metric(layout, sets):
    found = results(layout, sets, 1)
    table = per_query_table(found)
    assert table.column_names == ["set", "metric", "query", "cluster", "correct"]
    rows = table.to_pylist()
    by_metric = {}
    for row in rows:
        by_metric.setdefault(f"eval/{row['set']}/{row['metric']}", []).append(row)
    assert {name: len(part) for name, part in by_metric.items()} == queries_of(found)
    metrics = metrics_of(found)
    for name, part in by_metric.items():
        assert [row["query"] for row in part] == list(range(len(part)))
        assert 100 * sum(row["correct"] for row in part) / len(part) == pytest.approx(metrics[name])
    owners = [owner for owner, i in enumerate(i for i in range(23) if i != 9) for _ in range(1 + i % 3)]
    assert [row["cluster"] for row in by_metric["eval/photos/t2i_r1"]] == owners
    for view in ("long", "short", "first_sentence"):
        assert [r["cluster"] for r in by_metric[f"eval/alike/{view}_accuracy"]] == [i // 3 * 3 for i in range(12)]


def test_no_result_gives_an_empty_per_query_table():
    assert per_query_table(()).num_rows == 0
    assert per_query_table(()).schema.names == ["set", "metric", "query", "cluster", "correct"]


def test_a_result_names_its_set_its_task_and_the_rows_left_out(layout, sets):
    found = [(r.set, r.task, r.rows_left_out) for r in results(layout, sets, 1)]
    assert found == [("photos", "retrieval", 1), ("photos", "classification", 1), ("alike", "lookalike", 0)]


def test_an_empty_batch_is_skipped():
    nothing = torch.zeros(0, dtype=torch.int64)
    texts = (nothing.view(0, 8), nothing, nothing, nothing, nothing)
    empty = EvaluationBatch(0, nothing, nothing.bool(), (), nothing, (), *texts, nothing.view(0, WIDTH))
    seen = pair_task.PairFeatures()
    seen.add(empty, Model(Encoder(), None, CPU))
    assert seen == pair_task.PairFeatures()


def test_a_set_at_another_token_limit_is_judged_as_a_model_of_that_limit_judges_it(layout, sets):
    """Its rows and its class prompts are cut there; the set itself is read as before."""
    train = layout.spec.train
    at_six = tuple(one.at_limit(6, 2) for one in sets)
    both = (*sets, *at_six)
    assert [one.name for one in at_six] == [f"{one.name}@6" for one in sets]
    two = replace(layout, spec=replace(layout.spec, evaluations=sources(both, train)))
    shorter = replace(train, texts=train.texts.with_limit(4))
    alone = replace(layout, spec=replace(layout.spec, train=shorter, evaluations=sources(sets, shorter)))
    found, whole, cut = evaluated(two, both, 1), evaluated(layout, sets, 1), evaluated(alone, sets, 1)
    assert {name: value for name, value in found.items() if "@" not in name} == whole
    assert {name.replace("@6", ""): value for name, value in found.items() if "@" in name} == cut
    changed = {name for name in whole if cut[name] != whole[name]}
    assert {"eval/photos/top1", "eval/alike/long_accuracy"} <= changed
