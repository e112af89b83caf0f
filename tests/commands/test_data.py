"""The commands of `cornerstone data` and `features` as a user types them: what they write and print."""

from __future__ import annotations

import json
import shutil

import pytest

from cornerstone import cli
from cornerstone.commands import terminal
from cornerstone.data.manifest import Manifest

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture
def said(capsys):
    """Runs a command; what it printed."""

    def run(*arguments: object) -> str:
        cli.main([str(argument) for argument in arguments])
        return " ".join(capsys.readouterr().out.split())

    return run


@pytest.fixture
def photos(small_data, tmp_path):
    """A list of eight images, one of them broken, with the images."""
    lines = []
    for n in range(8):
        (tmp_path / f"{n}.png").write_bytes(small_data.picture(n) if n else b"torn")
        lines.append(json.dumps({"image": f"{n}.png", "alt": f"picture {n}"}))
    (tmp_path / "captions.jsonl").write_text("\n".join(lines))
    return tmp_path


def test_import_derive_and_mix(said, photos, tmp_path):
    out = tmp_path / "out"
    told = said("data", "import", "pairs-jsonl", photos, "--raw", "alt", "--out", out)
    assert f"7 rows in {out} (content {Manifest.read(str(out)).content_hash})" in told
    assert f"1 left out: 1 × not readable as an image; see {out}/quarantine.jsonl" in told

    told = said("data", "derive", "laion-random", out, "--out", tmp_path / "docs", "--seed", 3)
    assert f"7 rows in {tmp_path / 'docs'}" in told
    assert Manifest.read(str(tmp_path / "docs"), "documents").rows == 7

    copy = shutil.copytree(out, tmp_path / "copy")
    told = said("data", "mix", f"{out}=2", f"{copy}=1", "--out", tmp_path / "mix")
    assert "66.7% 7 pairs × 2" in told
    assert f"mix: 21 pairs an epoch in {tmp_path / 'mix'}" in told
    assert [member.weight for member in Manifest.read(str(tmp_path / "mix")).members] == ["2", "1"]


def test_features_by_the_command(said, pairs_folder, tiny_tower, tmp_path):
    out = tmp_path / "features"
    told = said(
        "features", pairs_folder, "--out", out, "--recipe", "photos", "--image-tower", tiny_tower, "--actors", 1
    )
    assert f"50 features of width 32 in {out}" in told
    manifest = Manifest.read(str(out), "features")
    assert manifest.keys["data"] == Manifest.read(pairs_folder).content_hash
    with pytest.raises(SystemExit):
        said("features", pairs_folder, "--out", out, "--recipe", "photos", "--image-tower", tiny_tower)


def test_wrong_arguments_are_an_error_before_ray_starts(photos, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("cornerstone.runtime.cluster.connect", None)
    for arguments, message in (
        (("data", "import", "coca", photos, "--out", tmp_path / "o"), "Unknown format 'coca'; did you mean 'coco'?"),
        (("data", "import", "pairs-jsonl", photos, "--out", tmp_path / "o"), "No field is named for captions"),
        (("data", "derive", "laion", photos, "--out", tmp_path / "o"), "did you mean 'laion-random'"),
        (("data", "mix", "nothing", "--out", tmp_path / "o"), "expected DIR=WEIGHT"),
    ):
        with pytest.raises(SystemExit) as status:
            cli.main([str(argument) for argument in arguments])
        assert status.value.code == 1
        assert message in " ".join(capsys.readouterr().out.split())
    assert not (tmp_path / "o").exists()


def test_a_log_gets_a_line_every_half_minute(monkeypatch, capsys):
    clock = [0.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: clock[0])
    show = terminal.bar("importing")
    for done in range(1, 101):
        clock[0] += 1.0
        show(done, 100, done * 10)
    assert capsys.readouterr().out.splitlines() == [
        "importing: 30 of 100, about 70 s left",
        "importing: 60 of 100, about 40 s left",
        "importing: 90 of 100, about 10 s left",
    ]
