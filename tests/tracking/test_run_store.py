"""A run's store under a local home, and under a home in an object store that several machines write to."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import fs

from cornerstone.data.batch import ROW
from cornerstone.data.storage import Location
from cornerstone.errors import CornerstoneError
from cornerstone.tracking import journal as journal_module
from cornerstone.tracking.journal import read_journal
from cornerstone.tracking.run_store import (
    EVALUATIONS,
    RunStore,
    evaluations,
    read_evaluation,
    read_quarantine,
    run_folder,
)

HOME = "bucket://cornerstone/home"
RUN = "0123"


class Bucket:
    """An object store as a folder of this machine: what it holds, what was written to it, and whether it answers."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.written, self.reachable = folder, [], True

    def path(self, *names: str) -> Path:
        return self.folder.joinpath("cornerstone", "home", "runs", RUN, *names)

    def resolve(self, location: Location) -> tuple[fs.FileSystem, str]:
        if not location.uri.startswith("bucket://"):
            return fs.FileSystem.from_uri(location.uri)
        if not self.reachable:
            raise OSError("the endpoint cannot be reached")
        return fs.SubTreeFileSystem(str(self.folder), fs.LocalFileSystem()), location.uri.removeprefix("bucket://")

    def write_bytes(self, location: Location, content: bytes) -> None:
        if location.uri.startswith("bucket://"):
            self.written.append(location.name)
        with location.replacing() as file:
            file.write(content)


@pytest.fixture
def bucket(tmp_path, monkeypatch) -> Bucket:
    bucket = Bucket(tmp_path / "bucket")
    bucket.folder.mkdir()
    monkeypatch.setattr(Location, "resolve", lambda self: bucket.resolve(self))
    monkeypatch.setattr(Location, "write_bytes", lambda self, content: bucket.write_bytes(self, content))
    return bucket


@pytest.fixture
def on(tmp_path, monkeypatch):
    """Makes a machine of that name the one that the test runs on: it has its own disk."""

    def use(machine: str) -> None:
        folder = tmp_path / machine
        folder.mkdir(exist_ok=True)
        monkeypatch.setenv("HOME", str(folder))

    use("first")
    return use


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(journal_module, "FIRST_RETRY", 0.01)


class Server:
    """Records the lines that it is sent, or refuses every connection."""

    def __init__(self, up=True):
        self.up, self.received = up, []

    def connect(self):
        return self.send

    def send(self, lines):
        if not self.up:
            raise ConnectionError("connection refused")
        self.received += [(line.step, dict(line.metrics)) for line in lines]


def open_store(home, rank=0, said=None):
    return RunStore(RUN, str(home), rank, (said if said is not None else []).append)


def life(home, steps=(), server=None, patience=15.0):
    """One start of a run: a line of the journal for each step; returns the number of lines that were not sent."""
    store = open_store(home)
    journal = store.journal(server.connect if server else None, destination="run")
    for step in steps:
        journal.write(step, {"loss": step / 2})
    return store.close(patience)


def sent(steps):
    return [(step, {"loss": step / 2}) for step in steps]


def results(value):
    return pa.table({"set": ["dci", "dci"], "query": [0, 1], "rank": [value, value + 1]})


def quarantine(store, *entries):
    """Append to a rank's quarantine, as the observer does."""
    store.quarantine.parent.mkdir(parents=True, exist_ok=True)
    with store.quarantine.open("a") as file:
        for row, what in entries:
            file.write(json.dumps({"row": row, "what": what, "step": 3, "reason": "empty"}) + "\n")


def test_a_local_home_holds_the_files_themselves(tmp_path):
    store = open_store(tmp_path)
    store.write_recipe({"name": "smoke"})
    store.write_evaluation(8, results(1))
    store.journal().write(4, {"train/loss": 1.0})
    quarantine(store, (7, ROW))
    folder = tmp_path / "runs" / RUN
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert files == [
        ".lives-0",
        "evaluations/step-000000008.parquet",
        "journal.jsonl",
        "quarantine-0.jsonl",
        "recipe.json",
    ]
    assert json.loads((folder / "recipe.json").read_text()) == {"name": "smoke"}
    assert store.upload()
    assert store.close() == 1  # a line that no server has
    assert run_folder(tmp_path, RUN).uri == str(folder)


def test_a_run_that_is_restarted_goes_on_with_its_journal(tmp_path):
    down, server = Server(up=False), Server()
    assert life(tmp_path, range(4), down, patience=0.05) == 4
    assert life(tmp_path, range(2, 6), server) == 0
    assert server.received == sent(range(6))


def test_the_problem_is_the_servers_until_it_has_everything(tmp_path):
    server = Server(up=False)
    store = open_store(tmp_path)
    store.journal(server.connect).write(0, {"loss": 1.0})
    deadline = time.monotonic() + 20
    while not store.problem and time.monotonic() < deadline:
        time.sleep(0.005)
    assert store.problem == "ConnectionError: connection refused"
    server.up = True
    assert store.close() == 0
    assert store.problem == ""


def test_every_rank_has_a_quarantine_of_its_own(tmp_path):
    ranks = [open_store(tmp_path, rank) for rank in range(3)]
    assert [store.quarantined() for store in ranks] == [set()] * 3
    quarantine(ranks[0], (7, ROW))
    quarantine(ranks[2], (7, "image 1"), (9, ROW))
    assert sorted(path.name for path in ranks[0].folder.glob("quarantine*")) == [
        "quarantine-0.jsonl",
        "quarantine-2.jsonl",
    ]
    again = open_store(tmp_path, rank=1)  # of another number of workers, for example
    assert again.quarantined() == {(7, ROW), (7, "image 1"), (9, ROW)}


def test_quarantines_of_earlier_versions_and_cut_lines_can_be_read(tmp_path):
    path = tmp_path / "quarantine-0.jsonl"
    path.write_text('{"row": 1, "step": 0, "reason": "empty"}\n[]\n{"row": 2, "what": "image 0", "step": 0, "rea')
    assert list(read_quarantine(path)) == [{"row": 1, "what": ROW, "step": 0, "reason": "empty"}]


def test_an_evaluation_that_is_repeated_replaces_the_first(tmp_path):
    store = open_store(tmp_path)
    store.write_evaluation(8, results(1))
    store.write_evaluation(16, results(2))
    store.write_evaluation(8, results(3))
    (store.folder / EVALUATIONS / "step-000000024.parquet.part-1-ab").write_bytes(b"half")  # of a killed writer
    folder = run_folder(tmp_path, RUN)
    assert list(evaluations(folder)) == [8, 16]
    assert read_evaluation(folder, 8) == results(3)
    assert read_evaluation(folder) == results(2)
    with pytest.raises(CornerstoneError, match=r"No evaluation after step 24 in .*after step: 8, 16\."):
        read_evaluation(folder, 24)
    with pytest.raises(CornerstoneError, match=r"after step: none"):
        read_evaluation(run_folder(tmp_path, "another"))


def test_a_home_in_an_object_store_gets_everything(bucket, on):
    store = open_store(HOME)
    assert store.folder.is_relative_to(Path.home())
    store.write_recipe({"name": "smoke"})
    store.write_evaluation(8, results(1))
    journal = store.journal()
    journal.write(4, {"loss": 1.0})
    quarantine(store, (7, ROW))
    assert not bucket.path("recipe.json").exists()  # local first
    assert store.upload()
    assert json.loads(bucket.path("recipe.json").read_text()) == {"name": "smoke"}
    assert [line.step for line in read_journal(bucket.path("journal.jsonl"))] == [4]
    assert [entry["row"] for entry in read_quarantine(bucket.path("quarantine-0.jsonl"))] == [7]
    assert read_evaluation(run_folder(HOME, RUN)) == results(1)
    journal.write(8, {"loss": 0.5})
    store.close()
    assert [line.step for line in read_journal(bucket.path("journal.jsonl"))] == [4, 8]


def test_only_files_that_changed_are_uploaded(bucket, on):
    store = open_store(HOME)
    store.write_recipe({"name": "smoke"})
    store.write_evaluation(8, results(1))
    store.upload()
    assert bucket.written == [".lives-0", "recipe.json", "step-000000008.parquet"]
    bucket.written.clear()
    store.upload()
    assert bucket.written == []
    store.write_evaluation(16, results(2))
    quarantine(store, (7, ROW))
    store.close()
    assert bucket.written == ["quarantine-0.jsonl", "step-000000016.parquet"]


def test_a_rank_uploads_its_own_files_only(bucket, on):
    first, second = open_store(HOME, 0), open_store(HOME, 1)  # on one machine
    first.write_recipe({"name": "smoke"})
    quarantine(first, (7, ROW))
    quarantine(second, (8, ROW))
    bucket.written.clear()
    second.close()
    assert bucket.written == ["quarantine-1.jsonl"]
    assert not bucket.path("recipe.json").exists()


def test_an_upload_that_fails_stops_nothing_and_is_tried_again(bucket, on):
    said = []
    store = open_store(HOME, said=said)
    store.write_recipe({"name": "smoke"})
    bucket.reachable = False
    assert not store.upload()
    assert not store.upload()
    assert len(said) == 1
    assert "Cannot upload the run's records" in said[0]
    assert str(store.folder) in said[0]
    assert store.problem == "OSError: the endpoint cannot be reached"
    bucket.reachable = True
    assert store.upload()
    assert store.problem == ""
    assert bucket.path("recipe.json").exists()


def test_metrics_reach_the_server_while_uploads_fail(bucket, on):
    server = Server()
    store = open_store(HOME)
    bucket.reachable = False
    store.journal(server.connect).write(0, {"loss": 0.0})
    assert store.close() == 0
    assert server.received == sent([0])


def test_lines_are_uploaded_before_they_are_sent(bucket, on):
    found = []

    class Killed(Server):
        def send(self, lines):
            found.append([line.step for line in read_journal(bucket.path("journal.jsonl"))])

    assert life(HOME, [0], Killed()) == 0
    assert found == [[0]]


def test_a_run_that_goes_on_on_another_machine_downloads_its_records_first(bucket, on):
    server = Server()
    assert life(HOME, range(4), server) == 0
    on("second")
    assert not (Path.home() / ".cornerstone").exists()
    assert life(HOME, range(2, 6), server) == 0
    assert server.received == sent(range(6))
    assert [line.step for line in read_journal(bucket.path("journal.jsonl"))] == list(range(6))
    on("first")  # whose own files are older now
    assert life(HOME, range(5, 8), server) == 0
    assert server.received == sent(range(8))
    assert [line.step for line in read_journal(bucket.path("journal.jsonl"))] == list(range(8))


def test_what_could_not_be_uploaded_is_not_lost_on_the_same_machine(bucket, on):
    server = Server()
    store = open_store(HOME)
    journal = store.journal()
    journal.write(0, {"loss": 0.0})
    store.upload()
    bucket.reachable = False
    journal.write(1, {"loss": 0.5})
    store.close()
    bucket.reachable = True
    assert life(HOME, [2], server) == 0
    assert server.received == sent(range(3))
    assert [line.step for line in read_journal(bucket.path("journal.jsonl"))] == [0, 1, 2]


def test_a_killed_life_loses_at_most_what_was_not_uploaded(bucket, on):
    """Killed on the first machine after a checkpoint, and started from it on a second one."""
    killed, server = open_store(HOME), Server()
    journal = killed.journal()
    for step in (0, 1):
        journal.write(step, {"loss": step / 2})
    killed.write_evaluation(2, results(1))
    killed.upload()
    journal.write(2, {"loss": 99.0})  # after the checkpoint; the second machine repeats the step
    on("second")
    assert life(HOME, [2, 3], server) == 0
    assert server.received == sent(range(4))
    assert read_evaluation(run_folder(HOME, RUN)) == results(1)


def test_the_quarantines_of_all_ranks_are_known_on_another_machine(bucket, on):
    for rank, entry in enumerate([(7, ROW), (8, "image 1")]):
        store = open_store(HOME, rank)
        quarantine(store, entry)
        store.close()
    on("second")
    store = open_store(HOME, 0)
    assert store.quarantined() == {(7, ROW), (8, "image 1")}
    quarantine(store, (9, ROW))
    store.close()
    assert [entry["row"] for entry in read_quarantine(bucket.path("quarantine-0.jsonl"))] == [7, 9]


def test_a_home_that_cannot_be_read_is_an_error_at_the_start(bucket, on):
    bucket.reachable = False
    with pytest.raises(CornerstoneError, match=r"Cannot read the records of an earlier start in bucket://"):
        open_store(HOME)


@pytest.mark.parametrize("home", [HOME, "local"])
def test_a_store_knows_how_often_it_was_opened_before(bucket, on, tmp_path, home):
    place = tmp_path / home if home == "local" else home
    first, second, other = (open_store(place, rank) for rank in (0, 0, 1))
    on("second")  # another machine goes on
    assert [store.restarts for store in (first, second, other, open_store(place))] == [0, 1, 0, 2]
