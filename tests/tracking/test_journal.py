from __future__ import annotations

import json
import threading
import time

import pytest

from cornerstone.tracking import journal as module
from cornerstone.tracking.journal import Journal, acknowledged_path, read_journal


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(module, "FIRST_RETRY", 0.01)
    monkeypatch.setattr(module, "LAST_RETRY", 0.02)


class Server:
    """Records the lines that it is sent; the first `refusals` calls fail."""

    def __init__(self, refusals=0):
        self.refusals, self.calls, self.received = refusals, 0, []
        self.answers, self.called = threading.Event(), threading.Event()
        self.answers.set()

    def connect(self):
        return self.send

    def send(self, lines):
        self.called.set()
        self.answers.wait()
        self.calls += 1
        if self.calls <= self.refusals:
            raise ConnectionError("connection refused")
        self.received += [(line.step, dict(line.metrics)) for line in lines]


def open_journal(path, connect=None, destination="run"):
    return Journal(path, connect, destination=destination, every=0.01)


def wait_until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "the condition was never met"
        time.sleep(0.005)


def life(path, server=None, steps=(), patience=15.0, destination="run"):
    """Open the journal, write a line for each step, close it; returns the number of lines that were not sent."""
    journal = open_journal(path, server.connect if server else None, destination)
    for step in steps:
        journal.write(step, {"loss": step / 2})
    return journal.close(patience)


def sent(steps):
    return [(step, {"loss": step / 2}) for step in steps]


def test_lines_are_in_the_file_at_once_even_if_the_server_hangs(tmp_path):
    server = Server()
    server.answers.clear()  # it hangs
    journal = open_journal(tmp_path / "run" / "journal.jsonl", server.connect)
    for step in range(3):
        journal.write(step, {"train/loss": step / 2})
        assert [line.step for line in read_journal(journal.path)] == list(range(step + 1))
        assert server.called.wait(20)
    server.answers.set()
    assert journal.close() == 0
    assert [step for step, _ in server.received] == [0, 1, 2]  # including those written while it hung
    lines = read_journal(journal.path)
    assert [(line.step, line.metrics) for line in lines] == [(s, {"train/loss": s / 2}) for s in range(3)]
    assert abs(lines[0].time_ms / 1000 - time.time()) < 60


def test_lines_are_sent_in_order_and_once(tmp_path):
    server = Server()
    journal = open_journal(tmp_path / "journal.jsonl", server.connect)
    for step in range(20):
        journal.write(step, {"a": 1.0})
        if step == 10:
            wait_until(lambda: server.received)
    assert journal.close() == 0
    assert server.received == [(step, {"a": 1.0}) for step in range(20)]


def test_a_failed_batch_is_sent_again(tmp_path):
    server = Server(refusals=3)
    journal = open_journal(tmp_path / "journal.jsonl", server.connect)
    journal.write(0, {"a": 1.0})
    wait_until(lambda: server.calls >= 2)
    journal.write(1, {"a": 2.0})
    wait_until(lambda: len(server.received) == 2)
    assert server.received == [(0, {"a": 1.0}), (1, {"a": 2.0})]
    wait_until(lambda: journal.problem == "")
    assert journal.close() == 0


def test_a_failed_connection_is_tried_again(tmp_path):
    server, attempts = Server(), []

    def connect():
        attempts.append(1)
        if len(attempts) < 3:
            raise OSError("no route")
        return server.send

    journal = open_journal(tmp_path / "journal.jsonl", connect)
    journal.write(0, {"a": 1.0})
    wait_until(lambda: server.received)
    assert len(attempts) == 3
    assert journal.close() == 0


def test_lines_that_were_never_sent_are_counted_and_kept(tmp_path):
    server = Server(refusals=10**9)
    journal = open_journal(tmp_path / "journal.jsonl", server.connect)
    for step in range(4):
        journal.write(step, {"a": 1.0})
    assert journal.close(patience=0.05) == 4
    assert journal.problem == "ConnectionError: connection refused"
    assert [line.step for line in read_journal(journal.path)] == [0, 1, 2, 3]


def test_closing_sends_the_last_lines(tmp_path):
    server = Server()
    journal = Journal(tmp_path / "journal.jsonl", server.connect, every=3600)
    journal.write(0, {"a": 1.0})
    assert journal.close() == 0
    assert server.received == [(0, {"a": 1.0})]


def test_a_journal_without_a_server_keeps_its_lines(tmp_path):
    journal = open_journal(tmp_path / "journal.jsonl")
    journal.write(0, {"a": 1.0})
    assert journal.close() == 1
    assert len(read_journal(journal.path)) == 1


def test_a_line_cut_short_by_a_crash_is_left_out_and_damages_no_other(tmp_path):
    path, server = tmp_path / "journal.jsonl", Server()
    life(path, steps=[0, 1])
    path.write_bytes(path.read_bytes()[:-10])
    assert [line.step for line in read_journal(path)] == [0]
    life(path, steps=[2])
    assert life(path, server, steps=[1, 3]) == 0  # step 1 is lost, so it is written when it is repeated
    assert [line.step for line in read_journal(path)] == [0, 2, 1, 3]
    assert server.received == sent([0, 2, 1, 3])


def test_a_journal_that_is_opened_again_sends_what_was_not_acknowledged(tmp_path):
    path, first, second = tmp_path / "journal.jsonl", Server(), Server()
    assert life(path, first, range(5)) == 0
    assert life(path, None, range(5, 8)) == 3  # without a server
    assert life(path, second, [8]) == 0
    assert first.received == sent(range(5))
    assert second.received == sent(range(5, 9))


def test_a_server_that_was_down_in_the_first_life_gets_everything_in_the_second(tmp_path):
    path, down, up = tmp_path / "journal.jsonl", Server(refusals=10**9), Server()
    assert life(path, down, range(4), patience=0.05) == 4
    assert life(path, up, range(2, 6)) == 0  # the second life goes on from a checkpoint at step 2
    assert up.received == sent(range(6))
    times = [line.time_ms for line in read_journal(path)]
    assert times == sorted(times)


def test_a_killed_life_leaves_its_lines_to_the_next(tmp_path):
    """The first life is not closed: its file is what a killed process leaves."""
    path, hung, server = tmp_path / "journal.jsonl", Server(), Server()
    hung.answers.clear()
    killed = open_journal(path, hung.connect)
    for step in range(3):
        killed.write(step, {"loss": step / 2})
    assert hung.called.wait(20)
    assert life(path, server, [3]) == 0
    assert server.received == sent(range(4))


def test_steps_that_are_repeated_are_written_and_sent_once(tmp_path):
    path, server = tmp_path / "journal.jsonl", Server()
    journal = open_journal(path, server.connect)
    journal.write(4, {"train/loss": 1.0})
    journal.write(4, {"train/loss": 1.5, "eval/dci/i2t_r1": 50.0})  # of these, the second is new
    journal.write(4, {"train/loss": 2.0})
    assert journal.close() == 0
    again = open_journal(path, server.connect)
    again.write(4, {"train/loss": 1.0, "eval/dci/i2t_r1": 50.0})
    again.write(8, {"train/loss": 0.5})
    assert again.close() == 0
    expected = [(4, {"train/loss": 1.0}), (4, {"eval/dci/i2t_r1": 50.0}), (8, {"train/loss": 0.5})]
    assert server.received == expected
    assert [(line.step, line.metrics) for line in read_journal(path)] == expected


def test_a_journal_that_is_opened_five_times_has_and_sends_every_line_once(tmp_path):
    path, server = tmp_path / "journal.jsonl", Server()
    for start in range(0, 50, 10):
        unreachable = Server(refusals=10**9) if start in (10, 20) else server
        life(path, unreachable, range(max(0, start - 3), start + 10), patience=0.05 if start in (10, 20) else 15.0)
    assert [line.step for line in read_journal(path)] == list(range(50))
    assert server.received == sent(range(50))


def test_if_the_acknowledged_file_is_lost_everything_is_sent_again(tmp_path):
    """MLflow ignores a metric that it has (see test_records.py), so that a repeat is harmless and a gap is not."""
    path, server = tmp_path / "journal.jsonl", Server()
    assert life(path, server, range(3)) == 0
    for damage in (acknowledged_path(path).unlink, lambda: acknowledged_path(path).write_text("{")):
        damage()
        server.received.clear()
        assert life(path, server) == 0
        assert server.received == sent(range(3))
    assert life(path, server) == 0
    assert server.received == sent(range(3))  # acknowledged again


def test_another_destination_gets_the_whole_file(tmp_path):
    path, server = tmp_path / "journal.jsonl", Server()
    assert life(path, server, range(3), destination="run-1") == 0
    assert life(path, server, [3], destination="run-2") == 0
    assert server.received == [*sent(range(3)), *sent(range(4))]


def test_lines_that_replace_a_lost_end_of_the_file_are_sent(tmp_path):
    path, server = tmp_path / "journal.jsonl", Server()
    assert life(path, server, range(4)) == 0
    whole = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(whole[:2]))  # the disk lost the last lines, which the server has
    assert life(path, server, [2, 3]) == 0
    assert server.received == [*sent(range(4)), *sent([2, 3])]


def test_if_nothing_can_be_acknowledged_lines_are_sent_all_the_same(tmp_path, monkeypatch):
    def full(location, content):
        raise OSError("No space left on device")

    path, server = tmp_path / "journal.jsonl", Server()
    monkeypatch.setattr(module.Location, "write_text", full)
    assert life(path, server, range(2)) == 0
    monkeypatch.undo()
    monkeypatch.setattr(module, "FIRST_RETRY", 0.01)
    assert life(path, server, [2]) == 0
    assert server.received == [*sent(range(2)), *sent(range(3))]


def test_many_lines_are_sent_in_batches(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BATCH", 4)
    path, server = tmp_path / "journal.jsonl", Server()
    life(path, None, range(10))
    assert life(path, server) == 0
    assert server.received == sent(range(10))
    assert server.calls == 3


def test_values_that_are_not_finite_are_kept(tmp_path):
    journal = open_journal(tmp_path / "journal.jsonl")
    journal.write(0, {"nan": float("nan"), "inf": float("inf")})
    journal.close()
    (line,) = read_journal(journal.path)
    assert str(line.metrics["nan"]) == "nan"
    assert line.metrics["inf"] == float("inf")
    assert set(json.loads(journal.path.read_text())) == {"time", "step", "metrics"}
