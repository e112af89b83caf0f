"""Output folders: one writer at a time, finished tasks are kept, partial files never count."""

from __future__ import annotations

import errno
import io
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cornerstone.data import output
from cornerstone.data.importers import import_pairs
from cornerstone.data.manifest import FILE, Manifest, Shard
from cornerstone.data.output import Done, finish, finished, stamps, writing
from cornerstone.data.scenes.write import write_scenes
from cornerstone.data.shards import DataSet, write_shard
from cornerstone.data.storage import Location
from cornerstone.errors import CornerstoneError

HOLDER = """
import sys, time
from cornerstone.data.output import writing
from cornerstone.data.storage import Location

with writing(Location.of(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def other_writer(tmp_path):
    """Another process that holds `tmp_path / "out"`."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path / "out")], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_writer_is_refused_and_told_who_writes(other_writer, tmp_path, small_data):
    with pytest.raises(CornerstoneError, match=rf"is being written by process {other_writer.pid} on .*name another"):
        small_data.write(tmp_path / "out", [small_data.pair(0)])
    with pytest.raises(CornerstoneError, match="is being written by"):
        write_scenes(tmp_path / "out", pairs=4, workers=1)
    with pytest.raises(CornerstoneError, match="is unfinished: it is being written, or the writing was interrupted"):
        DataSet.open(str(tmp_path / "out"))
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".writer"]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_writer_holds_nothing(other_writer, tmp_path, small_data, number):
    other_writer.send_signal(number)
    other_writer.wait()
    small_data.write(tmp_path / "out", [small_data.pair(0)])
    assert len(DataSet.open(str(tmp_path / "out"))) == 1
    assert ".writer" not in os.listdir(tmp_path / "out")


def test_a_second_writer_in_the_same_process_is_refused(tmp_path):
    folder = Location.of(tmp_path / "out")
    with writing(folder):
        with pytest.raises(CornerstoneError, match=f"is being written by process {os.getpid()} on"), writing(folder):
            pass
        assert os.listdir(tmp_path / "out") == [".writer"]
    with writing(folder):
        pass
    assert os.listdir(tmp_path / "out") == []


def test_of_many_writers_that_wait_for_their_turn_one_at_a_time_writes(tmp_path):
    """The lock's file is removed and made again all the time; nobody may lock the removed one."""
    folder, inside, most, turns = Location.of(tmp_path / "out"), [], [], []

    def write():
        while len(turns) < 60:
            with suppress(CornerstoneError), writing(folder):
                inside.append(1)
                most.append(len(inside))
                time.sleep(0.001)
                inside.pop()
                turns.append(1)

    with ThreadPoolExecutor(4) as threads:
        for done in [threads.submit(write) for _ in range(4)]:
            done.result()
    assert max(most) == 1


def test_a_disk_that_supports_no_locks_is_held_by_heartbeats(tmp_path, monkeypatch):
    def unsupported(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", unsupported)
    folder = Location.of(tmp_path / "out")
    with writing(folder):
        assert len(list((tmp_path / "out").glob(".writer-*"))) == 1
        with pytest.raises(CornerstoneError, match="is being written by"), writing(folder):
            pass
    assert os.listdir(tmp_path / "out") == []


def test_one_folder_of_several_that_is_taken_frees_the_others(other_writer, tmp_path):
    free, taken = Location.of(tmp_path / "free"), Location.of(tmp_path / "out")
    with pytest.raises(CornerstoneError, match="is being written by"), writing(free, taken):
        pass
    with writing(free):
        pass


def test_a_data_set_that_was_finished_meanwhile_is_not_overwritten(tmp_path, monkeypatch):
    @contextmanager
    def finished_meanwhile(folder):
        folder.join(FILE).write_text("{}")
        yield

    monkeypatch.setattr(output, "_held", finished_meanwhile)
    with pytest.raises(CornerstoneError, match="already holds a finished data set"), writing(Location.of(tmp_path)):
        pass


@pytest.fixture
def no_locks(monkeypatch):
    """A storage without locks and renames, as object stores are."""
    monkeypatch.setattr(Location, "is_local", property(lambda self: False))


def test_writers_send_heartbeats_if_the_storage_has_no_locks(no_locks, tmp_path, monkeypatch):
    monkeypatch.setattr(output, "BEAT", 0.05)
    folder = Location.of(tmp_path / "out")
    with writing(folder):
        (first,) = (tmp_path / "out").glob(".writer-*")
        written = first.stat().st_mtime_ns
        with pytest.raises(CornerstoneError, match=f"is being written by process {os.getpid()} on"), writing(folder):
            pass
        assert list((tmp_path / "out").iterdir()) == [first]
        patience = time.monotonic() + 20
        while first.stat().st_mtime_ns == written and time.monotonic() < patience:
            time.sleep(0.02)
        assert first.stat().st_mtime_ns > written
    assert list((tmp_path / "out").iterdir()) == []


def test_a_failed_write_shows_nothing_where_files_cannot_be_renamed(no_locks, tmp_path):
    place = Location.of(tmp_path / "file")
    with pytest.raises(RuntimeError), place.replacing() as file:  # noqa: PT012
        file.write(b"half")
        raise RuntimeError
    assert not place.exists()


def test_a_writer_without_heartbeats_is_dead(no_locks, tmp_path):
    dead = tmp_path / "out" / ".writer-0123"
    dead.parent.mkdir()
    dead.write_text("process 1 on another")
    os.utime(dead, (time.time() - output.DEAD - 5,) * 2)
    with writing(Location.of(tmp_path / "out")):
        assert not dead.exists()
    dead.write_text("process 1 on another")
    taken = pytest.raises(CornerstoneError, match="is being written by process 1 on another")
    with taken, writing(Location.of(tmp_path / "out")):
        pass


def shard(folder: Path, small_data) -> Shard:
    made = write_shard(Location.of(folder), 0, [small_data.pair(i) for i in range(3)])
    assert made is not None
    return made


def test_a_task_is_finished_only_with_the_same_settings_and_complete_files(tmp_path, small_data):
    folder, done = Location.of(tmp_path), Done((shard(tmp_path, small_data),), {"bad": [["k", "why"]]})
    assert finished(folder, "task", "a") is None
    finish(folder, "task", "a", done)
    assert finished(folder, "task", "a") == done
    assert finished(folder, "task", "b") is None
    assert finished(folder, "other", "a") is None
    with (tmp_path / "shard-00000.parquet").open("ab") as file:
        file.write(b"x")
    assert finished(folder, "task", "a") is None


def test_partial_files_are_removed_when_the_data_set_is_finished(tmp_path, small_data):
    left = ("task-00000.done.json", "shard-00000.parquet.part-12-ab", "notes.txt")
    for name in left:
        (tmp_path / name).write_text("{}")
    with pytest.raises(KeyError), writing(Location.of(tmp_path)):
        raise KeyError  # unfinished: nothing is thrown away
    assert sorted(os.listdir(tmp_path)) == sorted(left)
    small_data.write(tmp_path, [small_data.pair(0)])
    assert sorted(os.listdir(tmp_path)) == [FILE, "notes.txt", "shard-00000.parquet"]


def test_a_file_that_changed_has_another_stamp(tmp_path):
    place = tmp_path / "list"
    place.write_text("a")
    before = stamps([Location.of(place)])
    assert stamps([Location.of(place)]) == before
    os.utime(place, (1, 1))
    assert stamps([Location.of(place)]) != before


def test_a_shard_is_written_completely_or_not_at_all(tmp_path, small_data):
    whole = shard(tmp_path, small_data)

    def torn():
        yield small_data.pair(7)
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        write_shard(Location.of(tmp_path), 0, torn(), rows_per_group=1)
    with pytest.raises(RuntimeError):
        write_shard(Location.of(tmp_path), 1, torn(), rows_per_group=1)
    assert os.listdir(tmp_path) == [whole.file]
    assert (tmp_path / whole.file).stat().st_size == whole.bytes


def test_a_full_disk_is_named_wherever_it_is_noticed(tmp_path, small_data, monkeypatch):
    """Also where the last bytes are forced out; no right to mount a disk is needed for this one."""

    def full(file):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    pairs = [small_data.pair(i) for i in range(3)]
    with pytest.raises(CornerstoneError, match=r"No space is left for .*shard-00000.parquet: free some"):
        small_data.write(tmp_path / "out", pairs)
    with pytest.raises(CornerstoneError, match=r"No space is left for .*manifest.json"):
        Location.of(tmp_path / "out" / "manifest.json").write_text("{}")
    assert os.listdir(tmp_path / "out") == []


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 400 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("no right to mount a small disk, which a full one is made of")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_full_disk_is_named_and_leaves_no_half_file(small_disk, small_data):
    noise = (small_data.pair(i, image=os.urandom(20_000)) for i in range(100))
    with pytest.raises(CornerstoneError, match=r"No space is left for .*disk/out/shard-00001.parquet: free some"):
        small_data.write(small_disk / "out", noise, rows_per_shard=12)
    assert os.listdir(small_disk / "out") == ["shard-00000.parquet"]
    with pytest.raises(CornerstoneError):
        Manifest.read(str(small_disk / "out"))


def test_an_import_to_a_full_disk_goes_on_once_there_is_room(ray_cluster, small_disk, small_data, tmp_path):
    lines = []
    for n in range(40):
        stream = io.BytesIO()
        pixels = np.random.default_rng(n).integers(0, 255, (80, 80, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(stream, "PNG")
        (tmp_path / f"{n}.png").write_bytes(stream.getvalue())
        lines.append(f'{{"image": "{n}.png", "alt": "picture {n}"}}\n')
    (tmp_path / "captions.jsonl").write_text("".join(lines))

    def run(out):
        return import_pairs("pairs-jsonl", tmp_path, out, raw="alt", rows_per_shard=5, workers=1)

    with pytest.raises(CornerstoneError, match=r"The import stopped, .*disk/out is unfinished.*No space is left for"):
        run(small_disk / "out")
    records = sorted(path.name for path in (small_disk / "out").glob("*.done.json"))
    assert 0 < len(records) < 8
    subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True)
    report = run(small_disk / "out")
    assert report.kept >= len(records)
    assert report.manifest.content_hash == run(tmp_path / "elsewhere").manifest.content_hash
