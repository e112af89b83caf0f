"""`cornerstone attention`: the picture of several models, its arguments, and MLflow."""

from __future__ import annotations

import json

import mlflow
import numpy as np
import pytest
import tiny_released
import torch
from matplotlib.axes import Axes
from PIL import Image

from cornerstone.cli import main
from cornerstone.data.pairs.views import Box
from cornerstone.data.scenes.write import write_evaluation_sets
from cornerstone.evaluation.attention_picture import Shown, draw_attention


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_released.clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture
def pictures(tmp_path, small_data):
    for i in range(2):
        (tmp_path / f"{i}.png").write_bytes(small_data.picture(i))
    return [str(tmp_path / f"{i}.png") for i in range(2)]


def exits(capsys, *arguments):
    with pytest.raises(SystemExit) as stopped:
        main([*map(str, arguments), "--device", "cpu"])
    assert stopped.value.code == 1
    return " ".join(capsys.readouterr().out.split())


def test_two_models_beside_each_other(folder, pictures, tmp_path, capsys, monkeypatch):
    titles, plain = [], Axes.set_title
    monkeypatch.setattr(
        Axes, "set_title", lambda self, name, **style: titles.append(name) or plain(self, name, **style)
    )
    out = tmp_path / "new" / "maps.png"
    texts = ("a red bus", "the sea is calm " * 60)
    main(
        [
            "attention",
            folder,
            f"second={folder}",
            "--images",
            *pictures,
            "--texts",
            *texts,
            "--out",
            str(out),
            "--device",
            "cpu",
        ]
    )
    with Image.open(out) as found:
        assert found.width > found.height > 400
        assert len(np.unique(np.asarray(found.convert("RGB")).reshape(-1, 3), axis=0)) > 1000
    assert "2 models, 2 images" in capsys.readouterr().out
    assert titles == [folder.rpartition("/")[2], "second"]


def test_rows_of_scenes_have_boxes(folder, tmp_path, monkeypatch):
    write_evaluation_sets(tmp_path / "sets", images=3, sets=["long-human"], workers=1)
    seen = []
    monkeypatch.setattr(
        "cornerstone.evaluation.attention_picture.draw_attention", lambda *a, **k: seen.append(a) or a[2]
    )
    data = str(tmp_path / "sets" / "long-human")
    main(["attention", folder, "--data", data, "--rows", "2", "--out", str(tmp_path / "x.png"), "--device", "cpu"])
    ((rows, names, _),) = seen
    assert [len(row.boxes) >= 4 for row in rows] == [True, True]
    assert rows[0].maps[0].shape == (4, 4)
    assert names == [folder.rpartition("/")[2]]


def test_equal_cosines_have_equal_colours_in_all_models(tmp_path):
    """A flat map among others: on the common scale it has one colour, and another map's colour at the same cosine."""
    grey = np.full((32, 32, 3), 128, np.uint8)
    low, high = torch.full((4, 4), 0.1), torch.full((4, 4), 0.5)
    high[0, 0] = 0.1
    row = Shown(grey, "text", (low, high), (Box(0.0, 0.0, 0.25, 0.25),))
    colours = {}
    for scale in ("common", "each"):
        with Image.open(draw_attention([row], ["a", "b"], tmp_path / f"{scale}.png", scale=scale)) as found:
            pixels = np.asarray(found.convert("RGB")).astype(int)
        middle = pixels[pixels.shape[0] // 2]
        left, right = middle[int(0.55 * len(middle))], middle[int(0.80 * len(middle))]
        colours[scale] = (left, right)
    assert np.abs(colours["common"][0] - colours["common"][1]).sum() > 100
    assert np.abs(colours["each"][0] - colours["common"][0]).sum() < 10  # the lowest colour both times


def test_what_is_wrong_is_said(folder, pictures, tmp_path, capsys):
    ask = ("attention", folder, "--out", tmp_path / "x.png")
    assert "Give either --images" in exits(capsys, *ask)
    assert "Give either --images" in exits(capsys, *ask, "--data", "d", "--texts", "a")
    assert "2 images and 3 texts" in exits(capsys, *ask, "--images", *pictures, "--texts", "a", "b", "c")
    assert "No picture at /no.png" in exits(capsys, *ask, "--images", "/no.png", "--texts", "a")
    assert "ends in .png" in exits(capsys, "attention", folder, "--out", "x.jpg", "--images", *pictures, "--texts", "a")
    model = tiny_released.siglip(tmp_path / "siglip", tiny_released.t5_like())
    said = exits(capsys, "attention", model, "--out", tmp_path / "x.png", "--images", *pictures, "--texts", "a")
    assert "no patches in the space of texts" in said


def test_the_picture_goes_to_the_named_run_or_server(folder, pictures, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    ask = [
        "attention",
        folder,
        "--images",
        pictures[0],
        "--texts",
        "a cat",
        "--out",
        str(tmp_path / "x.png"),
        "--device",
        "cpu",
    ]
    main(ask)
    (run,) = client.search_runs([client.get_experiment_by_name("attention").experiment_id])
    assert [one.path for one in client.list_artifacts(run.info.run_id)] == ["x.png"]
    own = client.create_run(client.create_experiment("mine", (tmp_path / "a").as_uri())).info.run_id
    main([*ask, "--mlflow-run", own])
    assert [one.path for one in client.list_artifacts(own)] == ["x.png"]
    assert len(client.search_runs([client.get_experiment_by_name("attention").experiment_id])) == 1
    assert "did not take x.png for the run 'none'" in exits(capsys, *ask[:-2], "--mlflow-run", "none")
    assert json.dumps(run.data.tags["cornerstone.model_0"]) == json.dumps(folder)
