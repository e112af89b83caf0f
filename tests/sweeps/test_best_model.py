"""Which trial's model is a sweep's best, what is registered of it, and what its signature says."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import tiny_pairs
import torch

from cornerstone.inference.saved_model import load, save_model
from cornerstone.sweeps.best_model import best_model, best_trial, shapes
from cornerstone.sweeps.state import TrialRecord, TrialResult
from cornerstone.sweeps.table import ResultTable
from cornerstone.tracking.mlflow_models import ANY, ModelShapes
from cornerstone.tracking.mlflow_records import Records

METRIC = "eval/dci/i2t_r1"


def tokenizer_json():
    from tokenizers import Tokenizer, models

    return Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "a": 4}, "[UNK]")).to_str()


def result(point, seed, value, model="/m", **changes):
    metrics = {} if value is None else {METRIC: value}
    return TrialResult(point, seed, f"run-{point}-{seed}", metrics, model, **changes)


def best(*found):
    chosen = best_trial(ResultTable("t", found, [(METRIC, "dci")]), found)
    return None if chosen is None else (chosen.point, chosen.seed)


def test_the_best_row_is_by_its_mean_and_its_model_is_that_of_the_first_seed():
    assert best(result("a", 1, 10.0), result("a", 0, 30.0), result("b", 0, 21.0), result("b", 1, 25.0)) == ("b", 0)


def test_a_trial_without_a_model_or_the_metric_is_left_out():
    assert best(result("a", 0, 50.0, model=""), result("b", 0, 20.0), result("c", 0, None)) == ("b", 0)
    assert best(result("a", 0, 50.0, model=""), result("a", 1, 50.0), result("b", 0, 20.0)) == ("a", 1)
    assert best(result("a", 0, None, error="out of memory", model="")) is None
    assert best_trial(ResultTable("t", [], []), []) is None


CONFIG = {"method": {"text": {"token_limit": 64}}, "build": {"image_width": 128}, "image_tower": {"size": 32}}


def test_a_length_that_the_configuration_does_not_name_is_any():
    assert shapes(CONFIG) == ModelShapes(32, 64, 128)
    assert shapes({"method": {"kind": "lcl"}, "build": {}, "image_tower": None}) == ModelShapes(ANY, ANY, ANY)


@pytest.fixture
def records(tmp_path):
    said: list[str] = []
    records = Records("ablate", f"sqlite:///{tmp_path}/mlflow.db", said.append)
    records.said = said
    return records


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "runs" / "r1" / "model"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "recipe.json").write_text('{"name": "smoke"}')
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def described(model, run, value=21.0, eval_hash="5678"):
    trial = TrialRecord("b", 0, "run-b-0", "1234", eval_hash, recipe_seed=100)
    return best_model("ablate", "s1", METRIC, result("b", 0, value, str(model)), trial, run)


def test_a_version_has_a_signature_tags_the_alias_and_how_to_open_it(records, model, tmp_path):
    from mlflow import MlflowClient
    from mlflow.models import Model

    run = records.start("b, seed 0", {})
    version = records.register(described(model, run))
    client = MlflowClient(tracking_uri=records.uri)
    found = client.get_model_version_by_alias("ablate", "best")
    assert (version, str(found.version), found.run_id) == ("1", "1", run)
    assert found.tags["cornerstone.point"] == "b"
    assert found.tags["cornerstone.sweep"] == "s1"
    assert found.tags["cornerstone.seed"] == "100"  # as the run has it: the recipe's
    assert found.tags["cornerstone.recipe_hash"] == "1234"
    assert found.tags["cornerstone.model"] == str(model)
    assert f"cornerstone.load('{model}')" in found.description
    kept = [path for path in (tmp_path / "mlartifacts").rglob("*") if path.is_file()]
    assert sorted(path.name for path in kept) == ["MLmodel", "config.json", "recipe.json"]  # no weights
    (written,) = [path for path in kept if path.name == "MLmodel"]
    signature = Model.load(str(written)).signature
    assert [(one.name, one.shape) for one in signature.inputs.inputs] == [
        ("images", (-1, 3, 32, 32)),
        ("token_ids", (-1, 64)),
    ]
    assert [(one.name, one.shape) for one in signature.outputs.inputs] == [
        ("image_features", (-1, 128)),
        ("text_features", (-1, 128)),
    ]
    assert records.said == []


def test_no_entry_holds_the_password_of_a_storage_uri(records, model, tmp_path):
    from mlflow import MlflowClient

    place = "s3://KEY:correct-horse@bucket/home/runs/r1/model"
    made = described(model, records.start("b, seed 0", {}))
    files = {"recipe.json": json.dumps({"data": place})}
    records.register(replace(made, location=place, tags={"cornerstone.model": place}, files=files))
    client = MlflowClient(tracking_uri=records.uri)
    found = client.get_model_version_by_alias("ablate", "best")
    (logged,) = client.search_logged_models([records.experiment_id])
    kept = [path.read_text() for path in (tmp_path / "mlartifacts").rglob("*") if path.is_file()]
    texts = [*kept, found.description, str(found.tags), str(logged.tags)]
    assert len(kept) == 2
    assert ["correct-horse" in text for text in texts] == [False] * 5
    assert all("s3://KEY:***@bucket" in text for text in texts)


def test_the_same_run_is_registered_once_and_the_alias_moves_to_a_better_one(records, model):
    from mlflow import MlflowClient

    one, other, worse, elsewhere = (records.start(name, {}) for name in "abcd")
    client = MlflowClient(tracking_uri=records.uri)

    def registered(run, **measured):
        version = records.register(described(model, run, **measured))
        return version, client.get_model_version_by_alias("ablate", "best").run_id

    assert registered(one) == ("1", one)
    assert registered(one) == ("1", one)
    assert registered(other, value=22.0) == ("2", other)
    assert registered(worse, value=21.5) == ("3", other)
    assert registered(elsewhere, value=3.0, eval_hash="9999") == ("4", elsewhere)  # on other data: not comparable


def test_a_store_without_a_registry_is_said_once(records, model, monkeypatch):
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import FEATURE_DISABLED

    def none(self, name):
        raise MlflowException("not supported", FEATURE_DISABLED)

    monkeypatch.setattr(MlflowClient, "create_registered_model", none)
    run = records.start("a", {})
    assert [records.register(described(model, run)) for _ in range(2)] == [None, None]
    (text,) = records.said
    assert "has no model registry" in text
    assert records.problem == ""


@pytest.mark.parametrize("kind", sorted(tiny_pairs.KINDS))
def test_the_lengths_of_the_signature_are_those_of_the_model(tmp_path, kind):
    module = tiny_pairs.method(kind=kind)
    save_model(str(tmp_path), module, recipe={}, tokenizer_json=tokenizer_json())
    found, opened = shapes(json.loads((tmp_path / "config.json").read_text())), load(str(tmp_path))
    image = torch.zeros(2, 3, found.image_size, found.image_size)
    widths = {opened.encode_image(image).shape[-1], opened.encode_text(["a"]).shape[-1]}
    assert widths == {found.width}
    assert found.tokens == tiny_pairs.LIMIT
