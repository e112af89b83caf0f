from __future__ import annotations

import json
import threading
import time

import pytest

from cornerstone.tracking import journal as module
from cornerstone.tracking.journal import Journal, read_journal


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(module, "FIRST_RETRY", 0.01)
    monkeypatch.setattr(module, "LAST_RETRY", 0.02)


class Server:
    """Keeps what it is sent; the first `refusals` calls fail."""

    def __init__(self, refusals=0):
        self.refusals, self.calls, self.got = refusals, 0, []
        self.answers, self.asked = threading.Event(), threading.Event()
        self.answers.set()

    def connect(self):
        return self.send

    def send(self, lines):
        self.asked.set()
        self.answers.wait()
        self.calls += 1
        if self.calls <= self.refusals:
            raise ConnectionError("nobody answers")
        self.got += [(line.step, dict(line.metrics)) for line in lines]


def open_journal(path, connect=None):
    return Journal(path, connect, every=0.01)


def wait_until(true):
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.005)


def test_lines_are_in_the_file_at_once_whatever_the_server_does(tmp_path):
    server = Server()
    server.answers.clear()  # it hangs
    journal = open_journal(tmp_path / "run" / "journal.jsonl", server.connect)
    for step in range(3):
        journal.write(step, {"train/loss": step / 2})
        assert [line.step for line in read_journal(journal.path)] == list(range(step + 1))
        assert server.asked.wait(20)
    server.answers.set()
    assert journal.close() == 0
    assert [step for step, _ in server.got] == [0, 1, 2]  # those that came while it hung, too
    lines = read_journal(journal.path)
    assert [(line.step, line.metrics) for line in lines] == [(s, {"train/loss": s / 2}) for s in range(3)]
    assert abs(lines[0].time_ms / 1000 - time.time()) < 60


def test_lines_are_sent_in_order_and_once(tmp_path):
    server = Server()
    journal = open_journal(tmp_path / "journal.jsonl", server.connect)
    for step in range(20):
        journal.write(step, {"a": 1.0})
        if step == 10:
            wait_until(lambda: server.got)
    assert journal.close() == 0
    assert server.got == [(step, {"a": 1.0}) for step in range(20)]


def test_a_server_that_refuses_is_asked_again(tmp_path):
    server = Server(refusals=3)
    journal = open_journal(tmp_path / "journal.jsonl", server.connect)
    journal.write(0, {"a": 1.0})
    wait_until(lambda: server.calls >= 2)
    journal.write(1, {"a": 2.0})
    wait_until(lambda: len(server.got) == 2)
    assert server.got == [(0, {"a": 1.0}), (1, {"a": 2.0})]
    wait_until(lambda: journal.problem == "")
    assert journal.close() == 0


def test_a_server_that_cannot_be_connected_is_connected_later(tmp_path):
    server, attempts = Server(), []

    def connect():
        attempts.append(1)
        if len(attempts) < 3:
            raise OSError("no route")
        return server.send

    journal = open_journal(tmp_path / "journal.jsonl", connect)
    journal.write(0, {"a": 1.0})
    wait_until(lambda: server.got)
    assert len(attempts) == 3
    assert journal.close() == 0


def test_what_was_never_sent_is_counted_and_kept(tmp_path):
    server = Server(refusals=10**9)
    journal = open_journal(tmp_path / "journal.jsonl", server.connect)
    for step in range(4):
        journal.write(step, {"a": 1.0})
    assert journal.close(patience=0.05) == 4
    assert journal.problem == "ConnectionError: nobody answers"
    assert [line.step for line in read_journal(journal.path)] == [0, 1, 2, 3]


def test_closing_sends_the_last_lines(tmp_path):
    server = Server()
    journal = Journal(tmp_path / "journal.jsonl", server.connect, every=3600)
    journal.write(0, {"a": 1.0})
    assert journal.close() == 0
    assert server.got == [(0, {"a": 1.0})]


def test_a_journal_without_a_server_keeps_its_lines(tmp_path):
    journal = open_journal(tmp_path / "journal.jsonl")
    journal.write(0, {"a": 1.0})
    assert journal.close() == 1
    assert len(read_journal(journal.path)) == 1


def test_a_half_written_line_is_left_out_and_spoils_no_other(tmp_path):
    path = tmp_path / "journal.jsonl"
    first = open_journal(path)
    first.write(0, {"a": 1.0})
    first.write(1, {"a": 2.0})
    first.close()
    path.write_text(path.read_text()[:-10])  # a crash in the middle of a line
    assert [line.step for line in read_journal(path)] == [0]
    for step in (2, 3):
        resumed = open_journal(path)
        resumed.write(step, {"a": 3.0})
        resumed.close()
    assert [line.step for line in read_journal(path)] == [0, 2, 3]


def test_numbers_that_are_none_are_kept(tmp_path):
    journal = open_journal(tmp_path / "journal.jsonl")
    journal.write(0, {"nan": float("nan"), "inf": float("inf")})
    journal.close()
    (line,) = read_journal(journal.path)
    assert str(line.metrics["nan"]) == "nan"
    assert line.metrics["inf"] == float("inf")
    assert set(json.loads(journal.path.read_text())) == {"time", "step", "metrics"}
