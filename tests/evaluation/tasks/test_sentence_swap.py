"""sentence-swap: against a loop, ties and NaN, places and salience, shuffling, and a user's own file from import to numbers."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from sources import texts_of

from cornerstone.data.importers import FORMATS, ImportOptions
from cornerstone.data.importers.core import run_import
from cornerstone.data.pairs.drawing import viewed
from cornerstone.data.pairs.views import About, Wanted
from cornerstone.data.parallel import map_here
from cornerstone.data.storage import Location
from cornerstone.errors import CornerstoneError
from cornerstone.evaluation.interval import wilson
from cornerstone.evaluation.judged import intervals_of, metrics_of, queries_of
from cornerstone.evaluation.ranking import cosine
from cornerstone.evaluation.sets import open_sets
from cornerstone.evaluation.tasks import TASKS, EvaluationSet
from cornerstone.evaluation.tasks.pair_task import Encoded
from cornerstone.evaluation.tasks.sentence_swap import only_difference

TASK = TASKS["sentence-swap"]
SET = EvaluationSet("foils", TASK, "", 0, (), "")


def features(n, seed=0, width=6):
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


def encoded(image_ND, texts, text_TD=None, similarity=cosine):
    """`texts`: (image, part, source, sentences) of each text."""
    owner = torch.tensor([image for image, *_ in texts])
    about = tuple(About(part, source, tuple(sentences)) for _, part, source, sentences in texts)
    text_TD = features(len(texts), seed=1) if text_TD is None else text_TD
    nothing = torch.full((len(image_ND),), -1)
    place = torch.zeros(len(texts))
    return Encoded(similarity, similarity, image_ND, nothing, (), text_TD, owner, place, place, about)


def three_images():
    """Images of 2, 3 and 9 sentences, each sentence swapped once, and the same shuffled; sentence 0 is the salient one."""
    texts = []
    for image, sentences in enumerate((2, 3, 9)):
        true = list(range(sentences))
        for part, order in ((0, true), (2, true[::-1])):
            texts.append((image, part, "long", order))
            for i in range(sentences):
                source = "salient" if i == 0 else "object"
                texts.append((image, part + 1, source, [100 + x if x == i else x for x in order]))
    return texts


def test_equals_the_loop():
    texts, image, text = three_images(), features(3), features(28 + 6, seed=1)
    assert len(texts) == len(text)
    found = TASK.judge(SET, encoded(image, texts, text), None)
    unit = [x / x.norm(dim=-1, keepdim=True) for x in (image, text)]
    similarity = [float(unit[0][i] @ unit[1][t]) for t, (i, *_) in enumerate(texts)]
    expected: dict[str, list[bool]] = {}
    for name, part in (("swap", 0), ("shuffled", 2)):
        for t, (i, of, source, sentences) in enumerate(texts):
            if of != part + 1:
                continue
            true = next(k for k, (j, p, *_) in enumerate(texts) if (j, p) == (i, part))
            hit = similarity[true] > similarity[t]
            place = [a == b for a, b in zip(texts[true][3], sentences, strict=True)].index(False)
            bucket = "1" if place == 0 else "2" if place < 3 else "4" if place < 6 else "7"
            for share in ("", "_salient" if source == "salient" else "_other", f"_place_{bucket}"):
                expected.setdefault(name + share, []).append(hit)
    assert {name: hits.tolist() for name, hits in found.correct.items()} == expected
    assert set(expected) == {metric.name for metric in TASK.metrics}
    assert 0 < sum(expected["swap"]) < 14
    assert found.metrics["swap"] == pytest.approx(100 * sum(expected["swap"]) / 14)
    assert found.cluster["swap"].tolist() == [0] * 2 + [1] * 3 + [2] * 9
    assert set(found.chance.values()) == {50.0}
    assert found.counts["foils"] == 14


@pytest.mark.parametrize("value", [0.0, 1.0, float("nan")])
def test_ties_and_nan_are_wrong(value):
    texts = three_images()
    found = TASK.judge(SET, encoded(torch.full((3, 6), value), texts, torch.full((34, 6), value)), None)
    assert set(found.metrics.values()) == {0.0}
    assert found.counts["ties"] == (0 if value != value else 14)


def test_a_foil_that_is_no_single_sentence_counts_without_a_place():
    texts = [(0, 0, "long", [1, 2]), (0, 1, "x", [1, 3]), (0, 1, "x", [7, 8]), (0, 1, "x", [1, 2, 3])]
    found = TASK.judge(SET, encoded(features(1), texts), None)
    assert found.counts["foils_of_unknown_place"] == 2
    assert len(found.correct["swap"]) == 3
    assert len(found.correct["swap_place_2"]) == 1
    assert not [name for name in found.metrics if "salient" in name or "other" in name or "shuffled" in name]
    assert [only_difference((1, 2), other) for other in ((1, 2), (1, 2, 3), (3, 4), (1, 4))] == [-1, -1, -1, 1]


def test_a_row_without_a_text_or_a_foil_is_left_out():
    texts = [
        (0, 0, "long", [1]),
        (1, 1, "x", [1]),
        (2, 0, "long", [1]),
        (2, 1, "x", [2]),
        (2, 2, "l", [1]),
        (2, 3, "x", [2]),
    ]
    found = TASK.judge(SET, encoded(features(3), texts), None)
    assert found.cluster["swap"].tolist() == [2]
    assert "shuffled" not in found.metrics  # one sentence has no other order
    with pytest.raises(CornerstoneError, match="--foil FIELD"):
        TASK.judge(SET, encoded(features(3), texts[:2]), None)


def test_images_may_have_several_features_and_a_similarity_of_their_own():
    def largest(image_NQD, text_TD):
        return (image_NQD @ text_TD.T).amax(1)

    texts, image, text = three_images(), features(6).view(3, 2, 6), features(34, seed=1)
    found = TASK.judge(SET, encoded(image, texts, text, largest), None)
    unit = [x / x.norm(dim=-1, keepdim=True) for x in (image, text)]
    assert found.correct["swap"][0] == bool((unit[0][0] @ unit[1][0]).max() > (unit[0][0] @ unit[1][1]).max())


def test_a_row_has_one_other_order_for_its_text_and_its_foils():
    captions = [
        {"source": "long", "role": "long", "text": "a. b. c. d. e."},
        {"source": "x", "role": "foil", "text": "a. b. c. d. wrong."},
    ]
    view = (Wanted("long", every=False, shuffled=True), Wanted("foil", shuffled=True))
    orders = set()
    for row in range(50):
        true, foil = (text.sentences for text in viewed(captions, view, row))
        assert sorted(true) == list("abcde")
        assert [x if x != "e" else "wrong" for x in true] == foil
        orders.add(tuple(true))
    assert len(orders) > 30


class Model:
    """Knows "cat" and "red" alone: an image's feature is their number in its text, as the row tells it."""

    def __init__(self, form, words):
        self.ids = [form.encode_texts([word])[0][1] for word in words]

    def encode_image(self, image):
        return torch.tensor([[1.0, 1.0, 0.0]]).repeat(len(image), 1)

    def encode_text(self, ids, lengths):
        return torch.stack([(ids == number).any(1).float() for number in self.ids] + [torch.full((len(ids),), 0.5)], 1)

    similarity = text_similarity = staticmethod(cosine)


def test_a_users_own_file_from_import_to_numbers(tmp_path, small_data, wordpiece):
    """The record form of the documentation: `foils`, and `salient_foils` about the salient object."""
    from cornerstone.data.images import Transform
    from cornerstone.data.pairs.image_input import DecodedImages
    from cornerstone.evaluation.evaluator import evaluate
    from cornerstone.evaluation.tasks import EvaluationInputs

    rows = []
    for i in range(6):
        (tmp_path / f"{i}.png").write_bytes(small_data.picture(i))
        true = ["one", "two", "three"]
        salient = "five. two. three."
        others = ["one. four. three.", "one. two. four."]
        rows.append(
            {"image": f"{i}.png", "caption": ". ".join(true) + ".", "salient_foils": [salient], "foils": others}
        )
    (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    options = ImportOptions(long="caption", foil=("salient_foils", "foils"))
    source = FORMATS["pairs-jsonl"](Location.of(tmp_path / "captions.jsonl"), options)
    out = Location.of(tmp_path / "out")
    report = run_import("pairs-jsonl", source, Location.of(tmp_path), out, None, mapped=map_here)
    assert report.manifest.tasks == ("retrieval", "sentence-swap")
    sets = [one for one in open_sets([out.uri]) if one.task == TASK]
    assert [one.name for one in sets] == ["out"]
    texts = texts_of(wordpiece.read_text(), 32, 0)
    opened = sets[0].source(EvaluationInputs(DecodedImages(Transform(8)), texts, ""))
    batch = opened.batch(0, opened.open().take(np.arange(6), np.zeros(6, dtype=np.int64)))
    results = evaluate(Model(texts.open(), ("one", "two")), [(0, batch)], sets, texts.open(), torch.device("cpu"))
    found = {name.rpartition("/")[2]: value for name, value in metrics_of(results).items()}
    assert (found["swap_salient"], found["swap_other"]) == (100.0, 50.0)  # "three" against "four" is a tie
    assert found["swap"] == pytest.approx(200 / 3)
    assert (found["swap_place_1"], found["swap_place_2"]) == (100.0, 50.0)
    assert (found["shuffled_salient"], found["shuffled_other"]) == (100.0, 50.0)
    assert queries_of(results)["eval/out/swap"] == 18
    assert intervals_of(results)["eval/out/swap"] == pytest.approx(wilson(200 / 3, 6))  # all images are alike
