"""Whatever a user types, and in whatever environment: one clear message, no traceback, an exit status above 0."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

from cornerstone.cli import main
from cornerstone.runtime import cluster

WRONG = [
    "trian",
    "train --preset smok",
    "train --preset photos",
    "train --preset photos --train /no/where",
    "train --steps many",
    "train --steps 0",
    "train --steps 5 --epochs 1",
    "train --epochs -1",
    "train --workers 0",
    "train --zero-stage 7",
    "train --lr 0",
    "train --batch-size 1",
    "train --recipe.method.text.corner-tokens -1",
    "train --recipe.method.text.heads 5",
    "train --recipe.optimization.warmup-steps 5000",
    "train --placement.decode-actors 0",
    "train --placement.gpus-per-worker -1",
    "train --resume",
    "evaluate",
    "evaluate /no/model --data /no/data",
    "evaluate {pairs} --data {pairs}",
    "evaluate {pairs} --data {pairs} --device quantum",
    "features {pairs} --out {pairs}",
    "features /no/where --out {tmp}/x",
    "recaption {pairs} --captioner no/such-captioner --out {tmp}/x",
    "data",
    "data import",
    "data import nonsense {tmp} --out {tmp}/x",
    "data import webdataset {tmp}/nothing --out {tmp}/x",
    "data import hf-parquet {file} --out {tmp}/x",
    "data import hf-parquet {parquet} --out {tmp}/x",
    "data import imagefolder {tmp} --image x --out {tmp}/x",
    "data import webdataset {tmp} --follow-links --out {tmp}/x",
    "data import pairs-jsonl {pairs} --raw text --out {pairs}",
    "data mix --out {tmp}/x",
    "data mix {pairs} --out {tmp}/x",
    "data mix {pairs}=-1 --out {tmp}/x",
    "data pack {pairs} --tokenizer {pairs} --out {tmp}/x",
    "data derive nonsense {pairs} --out {tmp}/x",
    "data verify {tmp}",
    "data stats {tmp}/nothing",
    "data stats {pairs} --tokenizer no/such-tokenizer",
    "data scenes --pairs 0 --out {tmp}/x",
    "data scenes --pairs 4 --image-size 9000 --out {tmp}/x",
    "data scenes --out {tmp}/x",
    "data scenes --documents 4 --redundancy 2 --out {tmp}/x",
]


FOUND_BY_RAY = [
    "data import pairs-jsonl {file} --raw text --out {tmp}/x",
    "data import coco {file} --out {tmp}/x",
]
"""Files are read in Ray's tasks."""


@pytest.fixture
def places(tmp_path, pairs_folder):
    (tmp_path / "a.jsonl").write_text("not json\n")
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    names = {"tmp": tmp_path, "pairs": pairs_folder, "file": tmp_path / "a.jsonl", "parquet": tmp_path / "a.parquet"}
    return {name: str(place) for name, place in names.items()}


@pytest.mark.parametrize("command", WRONG)
def test_a_wrong_command_is_one_message(command, places, capsys, monkeypatch):
    is_one_message(command, places, capsys, monkeypatch)


@pytest.mark.parametrize("command", FOUND_BY_RAY)
def test_a_file_that_cannot_be_read_is_one_message(command, places, capsys, monkeypatch, ray_cluster):
    is_one_message(command, places, capsys, monkeypatch)


def is_one_message(command, places, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as ended:
        main([part.format(**places) for part in command.split()])
    said = "".join(capsys.readouterr())
    assert "Traceback" not in said
    assert said.strip()
    assert ended.value.code in ((0, 1, 2) if command == "data" else (1, 2))


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("http://127.0.0.1:8265", "that is a dashboard"),
        ("127.0.0.1:{closed}", "where nothing answers"),
        ("ray://127.0.0.1:{closed}", "where nothing answers"),
        ("nonsense", "cannot be joined"),
        ("auto", "has ended"),
    ],
)
def test_a_wrong_address_of_ray_is_one_message(address, expected, places, capsys, monkeypatch, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        closed = probe.getsockname()[1]
    monkeypatch.setenv("RAY_ADDRESS", address.format(closed=closed))
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray._private.utils.read_ray_address", lambda *a: f"127.0.0.1:{closed}")
    monkeypatch.setattr(cluster, "CONNECT_TRIES", 1)
    monkeypatch.setattr(cluster.time, "sleep", lambda seconds: None)
    (tmp_path / "captions.jsonl").write_text('{"image": "a.jpg", "text": "x"}\n')
    with pytest.raises(SystemExit) as ended:
        main(["data", "import", "pairs-jsonl", str(tmp_path), "--raw", "text", "--out", f"{tmp_path}/out"])
    said = "".join(capsys.readouterr())
    assert ended.value.code == 1
    assert said.startswith("Error: RAY_ADDRESS is ")
    assert expected in said
    assert "Traceback" not in said


def run(arguments, pipe="", **environment):
    program = f"{sys.executable} -m cornerstone.cli {arguments} {pipe}"
    given = {**os.environ, **environment}
    return subprocess.run(["bash", "-c", f"set -o pipefail; {program}"], env=given, capture_output=True, text=True)


@pytest.mark.parametrize(
    "given",
    [
        {"arguments": "train --help", "pipe": "| head -1"},
        {"arguments": "train --help", "PYTHONIOENCODING": "ascii", "LC_ALL": "C"},
        {"arguments": "evaluate --help", "PYTHONIOENCODING": "latin-1"},
        {"arguments": "train --help", "COLUMNS": "20"},
        {"arguments": "--version", "pipe": ">&-"},
        {"arguments": "data stats /no/wh\u00e9re", "PYTHONIOENCODING": "ascii"},
    ],
)
def test_no_terminal_ends_a_program(given):
    done = run(**given)
    assert "Traceback" not in done.stdout + done.stderr


def test_a_long_temporary_folder_is_replaced(monkeypatch):
    said = []
    monkeypatch.setenv("RAY_TMPDIR", "/tmp/" + "x" * 90)
    monkeypatch.setenv("TMPDIR", "/tmp")
    assert cluster._short_folder(said.append) == "/tmp/ray"
    assert "TMPDIR is too long" in said[0]
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    assert cluster._short_folder(said.append) is None


@pytest.mark.parametrize(
    ("environment", "answers"),
    [
        ({"HF_HUB_OFFLINE": "1"}, False),
        ({"HF_HUB_OFFLINE": "true"}, False),
        ({"TRANSFORMERS_OFFLINE": "ON"}, False),
        ({"HF_HUB_OFFLINE": "false"}, True),
        ({"HF_HUB_OFFLINE": "0", "TRANSFORMERS_OFFLINE": "no"}, True),
    ],
)
def test_one_rule_says_whether_the_hub_is_used(environment, answers, monkeypatch):
    import huggingface_hub.constants

    from cornerstone.runtime import hub

    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "_responds", lambda: True)
    assert hub.hub_answers.__wrapped__() is answers
    assert huggingface_hub.constants.HF_HUB_OFFLINE is not answers


def test_a_dead_proxy_is_no_hub(monkeypatch):
    from cornerstone.runtime import hub

    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    assert not hub._responds()
