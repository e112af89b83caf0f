"""Servers beside a command: what counts as an answer, and that nothing of them outlives it."""

from __future__ import annotations

import http.server
import os
import signal
import socket
import sys
import threading
import time

import psutil
import pytest

from cornerstone.runtime import servers
from cornerstone.runtime.servers import Server, answers, interrupt_on_signals, running

STUBBORN = """
import http.server, os, pathlib, signal, subprocess, sys, time
port, folder, leader = int(sys.argv[1]), pathlib.Path(sys.argv[2]), sys.argv[3] == "leader"
if "child" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    (folder / "child").write_text(str(os.getpid()))
    time.sleep(600)
subprocess.Popen([*[sys.executable, "-c", sys.orig_argv[2]], *sys.argv[1:], "child"])
while not (folder / "child").exists() or not (folder / "child").read_text():
    time.sleep(0.01)
if leader:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""
"""A server with a child that SIGTERM does not end, and, as `leader`, a server that it does not end either."""


def stubborn(tmp_path, *which: str) -> Server:
    port = servers.free_port(0)
    return Server("Stubborn", [sys.executable, "-c", STUBBORN, str(port), str(tmp_path), *which], port, "/", {})


def ended(pid: int) -> bool:
    patience = time.monotonic() + 10
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > patience:
            os.kill(pid, signal.SIGKILL)
            return False
        time.sleep(0.05)
    return True


@pytest.mark.parametrize("which", ["child", "leader"])
def test_what_a_server_started_ends_with_it(which, tmp_path, monkeypatch):
    monkeypatch.setattr(servers, "STOPPED_WITHIN", 0.5)
    server = stubborn(tmp_path, "leader" if which == "leader" else "")
    with running([server], tmp_path) as (process,):
        child = int((tmp_path / "child").read_text())
    assert process.returncode == -(signal.SIGKILL if which == "leader" else signal.SIGTERM)
    assert ended(child)


def test_a_second_ctrl_c_ends_servers_at_once(tmp_path):
    begun = []

    def serve():
        with running([stubborn(tmp_path, "leader")], tmp_path):
            begun.append(time.monotonic())
            threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()

    with pytest.raises(KeyboardInterrupt):
        serve()
    assert time.monotonic() - begun[0] < servers.STOPPED_WITHIN / 2
    assert ended(int((tmp_path / "child").read_text()))


@pytest.fixture
def handlers():
    numbers = (signal.SIGHUP, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_closed_terminal_is_a_ctrl_c_unless_it_is_ignored(handlers):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    interrupt_on_signals()
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGHUP)
    signal.raise_signal(signal.SIGHUP)  # the second one does not disturb
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGTERM)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
    interrupt_on_signals()
    signal.raise_signal(signal.SIGHUP)


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()

    def log_message(self, *given):
        pass


def test_a_server_answers_whatever_the_proxy_is(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        assert answers(f"{url}/health")
        assert not answers(f"{url}/other")
        server.shutdown()
    assert not answers(f"{url}/health")


def test_a_program_that_does_not_speak_http_does_not_answer():
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def greet():
            connection, _ = listening.accept()
            with connection:
                connection.recv(1024)
                connection.sendall(b"220 mail.example.org ESMTP\r\n")

        threading.Thread(target=greet, daemon=True).start()
        assert not answers(f"http://127.0.0.1:{listening.getsockname()[1]}/")
