"""`cornerstone embed`: every kind of file, keys, and broken images."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny_released
import torch

import cornerstone
from cornerstone.cli import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_released.clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture
def pictures(tmp_path, small_data):
    for i in range(3):
        (tmp_path / "p" / "below").mkdir(parents=True, exist_ok=True)
        (tmp_path / "p" / "below" / f"{i}.png").write_bytes(small_data.picture(i))
    (tmp_path / "p" / "broken.JPG").write_bytes(b"no image")
    (tmp_path / "p" / "notes.txt").write_text("no picture")
    return tmp_path / "p"


def test_texts_in_parquet(folder, tmp_path):
    out, texts = tmp_path / "x.parquet", ["a red bus", "the sea", ""]
    main(["embed", folder, "--text", *texts, "--out", str(out), "--device", "cpu"])
    table = pq.read_table(out)
    assert table["key"].to_pylist() == texts
    found = torch.tensor(np.array(table["feature"].to_pylist(), dtype=np.float32))
    torch.testing.assert_close(found, cornerstone.load(folder).encode_text(texts), rtol=0, atol=1e-6)


@pytest.mark.parametrize("ending", [".npz", ".npy"])
def test_pictures_of_a_folder_without_the_broken_ones(folder, pictures, tmp_path, ending, capsys, monkeypatch):
    monkeypatch.setattr("cornerstone.inference.embed.AT_A_TIME", 2)
    out, report = tmp_path / f"x{ending}", tmp_path / "x.json"
    main(["embed", folder, "--images", str(pictures), "--out", str(out), "--device", "cpu", "--json", str(report)])
    keys = [f"below/{i}.png" for i in range(3)]
    loaded = np.load(out)
    if ending == ".npz":
        assert loaded["keys"].tolist() == keys
    else:
        assert json.loads((tmp_path / "x.keys.json").read_text()) == keys
    features = loaded["features"] if ending == ".npz" else loaded
    model = cornerstone.load(folder)
    expected = model.encode_image(torch.stack([model.transform((pictures / key).read_bytes()) for key in keys]))
    np.testing.assert_allclose(features, expected.numpy(), rtol=0, atol=1e-6)
    found = json.loads(report.read_text())
    assert (found["embedded"], found["left_out"], found["width"]) == (3, 1, 24)
    assert list(found["bad"]) == ["broken.JPG"]
    assert "1 broken images were left out: broken.JPG: not readable" in capsys.readouterr().out


def test_rows_of_shards(folder, pairs_folder, tmp_path):
    main(["embed", folder, "--images", pairs_folder, "--out", str(tmp_path / "x.npz"), "--device", "cpu"])
    found = np.load(tmp_path / "x.npz")
    assert found["keys"].tolist() == [f"{i:05d}" for i in range(50)]
    assert np.isclose(np.linalg.norm(found["features"], axis=1), 1).all()


def test_what_is_wrong_is_said(folder, pictures, tmp_path, capsys):
    shutil.rmtree(pictures / "below")
    for arguments, said in (
        (["--out", "x.npz"], "either --text TEXT.. or --images DIR"),
        (["--text", "a", "--images", "b", "--out", "x.npz"], "either --text"),
        (["--text", "a", "--out", "x.csv"], "the ending says what is written"),
        (["--images", str(tmp_path / "none"), "--out", "x.npz"], "holds neither pictures"),
        (["--images", str(pictures), "--out", "x.npz"], "None of the 1 images"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(["embed", folder, *arguments])
        assert ended.value.code == 1
        assert said in capsys.readouterr().out
