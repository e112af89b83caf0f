"""`cornerstone evaluate` of a released model: the numbers of its own features, on every task of pairs."""

from __future__ import annotations

import json

import pytest
import tiny_released
import torch

import cornerstone
from cornerstone.cli import main
from cornerstone.data.shards import DataSet, Reader
from cornerstone.errors import CornerstoneError
from cornerstone.evaluation.offline import evaluate_model
from cornerstone.evaluation.sets import open_sets
from cornerstone.evaluation.tasks.classification import classify


@pytest.fixture(scope="module", params=["clip", "naflex"])
def folder(request, tmp_path_factory):
    made = tmp_path_factory.mktemp(request.param)
    if request.param == "naflex":
        return tiny_released.naflex(made, tiny_released.gemma_like())
    return tiny_released.clip(made)


def test_evaluate(folder, pairs_folder, tmp_path, capsys):
    file = tmp_path / "result.json"
    main(
        ["evaluate", folder, "--task", "classification", "--data", pairs_folder, "--device", "cpu", "--json", str(file)]
    )
    found = json.loads(file.read_text())
    data, model = DataSet.open(pairs_folder), cornerstone.load(folder)
    reader = Reader(data, ["image", "label"])
    groups = [reader.group(i) for i in range(sum(len(s.row_groups) for s in data.manifest.shards))]
    images = [model.transform(image) for g in groups for image in g["image"].to_pylist()]
    labels = torch.tensor([label for g in groups for label in g["label"].to_pylist()])
    prompts = [prompt.format(name) for name in data.manifest.classes for prompt in data.manifest.prompts]
    features = model.encode_text(prompts).unflatten(0, (len(data.manifest.classes), -1))
    expected = classify(model.encode_image(torch.stack(images)), features, labels).metrics
    top1 = next(value for name, value in found.items() if name.endswith("top1"))
    assert top1 == expected["top1"]
    assert 0 < top1 < 100


def test_stored_features_of_a_run_are_refused(folder, pairs_folder, tiny_tower, tmp_path):
    model = cornerstone.load(folder)
    with pytest.raises(CornerstoneError, match="No "):
        evaluate_model(model, open_sets([pairs_folder]), features=[str(tmp_path)])
