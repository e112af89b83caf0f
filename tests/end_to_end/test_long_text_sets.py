"""LoTLIP's evaluation sets from small files in their published layouts to the printed table: import, evaluate, average."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import tiny_released
import torch
from PIL import Image

import cornerstone
from cornerstone.cli import main
from cornerstone.data.importers import FORMATS, ImportOptions
from cornerstone.data.importers.core import run_import
from cornerstone.data.parallel import map_here
from cornerstone.data.storage import Location
from cornerstone.data.texts import clean, sub_captions
from cornerstone.evaluation.judged import metrics_of
from cornerstone.evaluation.offline import evaluate_model
from cornerstone.evaluation.sets import eval_hash, open_sets
from cornerstone.evaluation.tasks.retrieval import retrieve

WORDS = ("red", "blue", "bus", "sky", "tree", "cat", "two", "dogs", "run", "sea", "calm", "bar", "stars", "open")


def picture(number: int) -> bytes:
    stream, rng = io.BytesIO(), np.random.default_rng(number)
    Image.fromarray(rng.integers(0, 255, (40, 48, 3), dtype=np.uint8)).save(stream, "JPEG", quality=95)
    return stream.getvalue()


def text(number: int) -> str:
    """Three sentences with a newline and a number such as 3.5, which the cleaning splits; no two are alike."""
    words = [WORDS[(number * k + number // len(WORDS)) % len(WORDS)] for k in (1, 2, 3, 5)]
    return f"a {words[0]} is {number % 9}.5 on the {words[1]}.\nthe {words[2]} of {number}.  {words[3]} photo."


def write(place, content):
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(content) if isinstance(content, bytes) else place.write_text(content)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """The five sets as they are released; IIW has a DCI image, ShareGPT4V-1k is the beginning of 10k."""
    root = tmp_path_factory.mktemp("released")
    dci = root / "dci" / "densely_captioned_images"
    for i in range(9):
        write(dci / "photos" / f"sa_{i}.jpg", picture(i))
        short, _, extra = text(i).partition("\n")
        fields = {"image": f"sa_{i}.jpg", "short_caption": short, "extra_caption": extra}
        write(dci / "annotations" / f"sa_{i}.json", json.dumps(fields))
    write(
        dci / "splits.json",
        json.dumps({"train": [f"sa_{i}.json" for i in range(5)], "test": [f"sa_{i}.json" for i in range(5, 9)]}),
    )
    names = [{"image/key": "aar_1"}, {"image": "test_00002"}, {"image": "sa_7.jpg"}, {"image/key": "aar_3"}]
    for i, name in enumerate(names):
        (file,) = name.values()
        write(
            root / "iiw" / (file if file.endswith(".jpg") else f"{file}.jpg"), picture(7 if "sa_7" in file else 20 + i)
        )
    rows = [{**name, "IIW": text(30 + i)} for i, name in enumerate(names)]
    write(root / "iiw" / "data.jsonl", "\n".join(map(json.dumps, rows)))
    entries = []
    for i in range(12):
        write(root / "sv" / "sam" / "images" / f"sa_{100 + i}.jpg", picture(100 + i))
        turns = [{"from": "human", "value": "<image>\nDescribe."}, {"from": "gpt", "value": text(100 + i)}]
        entries.append({"id": str(i), "image": f"sam/images/sa_{100 + i}.jpg", "conversations": turns})
    write(root / "sv" / "share4v_sam_10k.json", json.dumps(entries))
    for i in range(6):
        write(root / "urban" / "image" / f"{i}.jpg", picture(200 + i))
        write(root / "urban" / "caption" / f"{i}.txt", text(200 + i).replace("\n", " ") + "\nsecond line")
    return root


@pytest.fixture(scope="module")
def folders(sources, tmp_path_factory):
    out = tmp_path_factory.mktemp("imported")

    def imported(name, format, src, **options):
        source, place = FORMATS[format](Location.of(sources / src), ImportOptions(**options)), Location.of(out / name)
        run_import(format, source, Location.of(sources / src), place, None, mapped=map_here)
        return place.uri

    return {
        "dci": imported("dci", "dci", "dci", long="caption"),
        "iiw": imported("iiw", "iiw", "iiw"),
        "sv-1k": imported("sv-1k", "sharegpt4v", "sv/share4v_sam_10k.json", first=5),
        "sv-10k": imported("sv-10k", "sharegpt4v", "sv/share4v_sam_10k.json"),
        "urban1k": imported("urban1k", "urban1k", "urban"),
    }


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_released.clip(tmp_path_factory.mktemp("clip"))


def test_from_the_released_files_to_the_printed_average(folders, model, tmp_path, capsys):
    named = [f"{name}={folder}" for name, folder in folders.items()]
    main(["evaluate", model, "--data", *named, "--device", "cpu", "--json", str(tmp_path / "x.json")])
    said, found = capsys.readouterr().out, json.loads((tmp_path / "x.json").read_text())
    details = found.pop("details")
    long = [f"eval/{name}/{way}_r1" for name in folders for way in ("i2t", "t2i")]
    assert {name: details[f"eval/{name}/i2t_r1"]["queries"] for name in folders} == {
        "dci": 9,
        "iiw": 4,
        "sv-1k": 5,
        "sv-10k": 12,
        "urban1k": 6,
    }
    assert found["eval/long texts/r1"] == pytest.approx(sum(found[name] for name in long) / 10)
    assert details["eval/long texts/r1"]["mean of"] == long
    line = next(line for line in said.splitlines() if "long texts" in line)
    assert f"{found['eval/long texts/r1']:.2f} %" in line
    assert f"{details['eval/long texts/r1']['low']:.2f} to" in line
    assert details["eval/sv-1k/i2t_r1"]["split"] == "the first 5"
    assert details["eval/dci/i2t_r1"]["split"] == "all"  # of all splits, as in the paper
    assert "Overlap: 1 of 9 images of dci are also in iiw" in said
    assert "Overlap: 5 of 5 images of sv-1k are also in sv-10k" in said


def test_texts_are_cleaned_and_compared_as_by_hand(folders, model):
    """The numbers of DCI, with the paper's texts (short, newline, extra) cleaned here."""
    opened = cornerstone.load(model)
    texts = [clean(text(i)) for i in range(9)]
    assert (
        sub_captions(texts[3])[:3] == ["a tree is 3", "5 on the bar", "the calm of 3"]
        or len(sub_captions(texts[3])) == 4
    )
    images = torch.stack([opened.transform(picture(i)) for i in range(9)])
    expected = retrieve(opened.encode_image(images), opened.encode_text(texts), torch.arange(9)).metrics

    sets = open_sets([folders["dci"]])
    found = metrics_of(evaluate_model(opened, sets))
    assert {name.rpartition("/")[2]: value for name, value in found.items()} == pytest.approx(expected)
    assert sets[0].view[0].cleaned
    assert eval_hash(sets) != eval_hash([type(sets[0])(**{**vars(sets[0]), "view": ()})])


def test_coco_has_five_texts_an_image_both_ways(tmp_path, model):
    """Karpathy's test split alone: an image finds any of its five, and 5 × N texts look for their images."""
    images = []
    for i in range(8):
        write(tmp_path / "val2014" / f"COCO_val2014_{i:012d}.jpg", picture(i))
        name, sentences = (
            f"COCO_val2014_{i:012d}.jpg",
            [{"raw": f"{w} {WORDS[i]} {i}"} for w in ("a", "the", "on", "is", "of")],
        )
        images.append(
            {"filepath": "val2014", "filename": name, "split": "test" if i < 6 else "val", "sentences": sentences}
        )
    write(tmp_path / "dataset_coco.json", json.dumps({"images": images}))
    source = FORMATS["karpathy"](Location.of(tmp_path / "dataset_coco.json"), ImportOptions(where=("split=test",)))
    place = Location.of(tmp_path / "coco")
    run_import("karpathy", source, Location.of(tmp_path), place, None, mapped=map_here)
    main(["evaluate", model, "--data", f"coco={place.uri}", "--device", "cpu", "--json", str(tmp_path / "x.json")])
    details = json.loads((tmp_path / "x.json").read_text())["details"]
    assert details["eval/coco/i2t_r1"]["queries"] == 6
    assert details["eval/coco/t2i_r1"]["queries"] == 30
    assert details["eval/coco/t2i_r1"]["split"] == "split=test"
    assert not any(wanted["cleaned"] for wanted in details["eval/coco/t2i_r1"]["texts"])
