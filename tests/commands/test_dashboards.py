"""`cornerstone dashboards`: servers for this machine alone, their links and their end, and exported boards."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import psutil
import pytest
import yaml

from cornerstone.cli import main
from cornerstone.commands.dashboards import BOARDS
from cornerstone.runtime import monitoring

REPOSITORY = Path(__file__).resolve().parents[2]
SERVER = """#!{python}
import http.server, json, os, sys
if "broken" in sys.argv[0]:
    sys.exit("unknown field in the configuration")
address = next((a.partition("=")[2] for a in sys.argv if a.startswith("--web.listen-address=")), "")
host, _, port = address.rpartition(":")
host, port = host or os.environ["GF_SERVER_HTTP_ADDR"], port or os.environ["GF_SERVER_HTTP_PORT"]
with open(sys.argv[0] + ".started", "w") as file:
    json.dump({{"arguments": sys.argv[1:], "environment": dict(os.environ), "pid": os.getpid()}}, file)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path in ("/-/ready", "/api/health") else 404)
        self.end_headers()
    def log_message(self, *given): pass
http.server.HTTPServer((host, int(port)), Handler).serve_forever()
"""
"""Stands for Prometheus and Grafana: it listens where it is told to, and notes what it was given."""


@pytest.fixture(autouse=True)
def in_the_root(monkeypatch):
    monkeypatch.chdir(REPOSITORY)


@pytest.fixture
def program(tmp_path):
    def make(name: str) -> Path:
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(SERVER.format(python=sys.executable))
        path.chmod(0o755)
        return path

    return make


@pytest.fixture
def sessions(tmp_path) -> Path:
    """What Ray leaves in its folder of sessions."""
    folder = tmp_path / "ray"
    boards = folder / monitoring.RAY_BOARDS
    boards.mkdir(parents=True)
    for name in ("default", "train"):
        (boards / f"{name}_grafana_dashboard.json").write_text(f'{{"title": "{name}"}}')
    (folder / monitoring.DISCOVERY).write_text("[]")
    return folder


def said(capsys) -> str:
    return capsys.readouterr().out


def fails(capsys, *arguments) -> str:
    with pytest.raises(SystemExit) as exit:
        main(["dashboards", *map(str, arguments)])
    assert exit.value.code == 1
    return " ".join(said(capsys).split())


class Running:
    """The command as a process, up to its last line."""

    def __init__(self, *arguments):
        command = [sys.executable, "-m", "cornerstone.cli", "dashboards", *map(str, arguments)]
        self.process = subprocess.Popen(
            command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.lines: list[str] = []
        for line in self.process.stdout:
            self.lines.append(line.strip())
            if line.startswith("Ctrl-C"):
                break
        self.text = "\n".join(self.lines)

    def stop(self, number: int = signal.SIGINT) -> tuple[int, str]:
        self.process.send_signal(number)
        rest, _ = self.process.communicate(timeout=30)
        # Python may write its last line once more if the signal comes while it empties its buffer.
        return self.process.returncode, rest.removeprefix(f"{self.lines[-1]}\n")


@pytest.fixture
def started():
    running: list[Running] = []

    def start(*arguments) -> Running:
        running.append(Running(*arguments))
        return running[-1]

    yield start
    for one in running:
        if one.process.poll() is None:
            one.stop()


def note(path: Path) -> dict:
    return yaml.safe_load(Path(f"{path}.started").read_text())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_it_serves_for_this_machine_until_it_is_stopped(program, sessions, started, tmp_path, number):
    prometheus, grafana, folder = program("prometheus"), program("grafana"), tmp_path / "kept"
    served = started(
        *("--prometheus", prometheus, "--grafana", grafana, "--ray", sessions, "--folder", folder),
        *("--prometheus-port", "0", "--grafana-port", "0"),
    )
    urls = re.findall(r"^(?:Prometheus|Grafana): (http://127\.0\.0\.1:\d+)", served.text, re.MULTILINE)
    assert len(urls) == 1 + len(BOARDS)
    assert [line for line in served.lines if line.startswith("Grafana:")] == [
        f"Grafana: {urls[1]}/d/{b}" for b in BOARDS
    ]
    assert f"RAY_PROMETHEUS_HOST={urls[0]} RAY_GRAFANA_HOST={urls[1]}" in served.text
    assert "answer without a token, on all interfaces" in served.text
    assert "Both listen on 127.0.0.1 only" in served.text

    environment = note(grafana)["environment"]
    assert note(grafana)["arguments"][:2] == ["server", "--homepath"]
    assert environment["CORNERSTONE_PROMETHEUS"] == urls[0]
    assert Path(environment["GF_PATHS_PROVISIONING"]) == REPOSITORY / "dashboards/grafana/provisioning"
    assert len(list(Path(environment["CORNERSTONE_BOARDS"]).glob("*.json"))) == len(BOARDS)
    assert len(list(Path(environment["RAY_BOARDS"]).glob("*.json"))) == 2
    named = re.findall(r"\$(\w+)", "".join(p.read_text() for p in (REPOSITORY / "dashboards/grafana").rglob("*.yml")))
    assert set(named) <= set(environment)
    config = yaml.safe_load((folder / "prometheus.yml").read_text())
    assert config["scrape_configs"][0]["file_sd_configs"][0]["files"] == [str(sessions / monitoring.DISCOVERY)]

    code, rest = served.stop(number)
    assert (code, rest.strip()) == (0, "Stopped.")
    assert not any(psutil.pid_exists(note(each)["pid"]) for each in (prometheus, grafana))


def test_rays_boards_are_copied_when_ray_starts_later(program, started, tmp_path):
    folder, sessions = tmp_path / "kept", tmp_path / "ray"
    served = started(
        *("--prometheus", program("prometheus"), "--ray", sessions, "--folder", folder, "--prometheus-port", "0"),
        *("--grafana", "no-such-grafana"),
    )
    assert f"No Ray has started here yet; it will be found through {sessions / monitoring.DISCOVERY}" in served.text
    assert "Grafana is not installed" in served.text
    assert "Prometheus listens on 127.0.0.1 only" in served.text
    (sessions / monitoring.RAY_BOARDS).mkdir(parents=True)
    (sessions / monitoring.RAY_BOARDS / "train.json").write_text("{}")
    patience = time.monotonic() + 30
    while not (folder / "ray" / "train.json").exists():
        assert time.monotonic() < patience
        time.sleep(0.1)


def test_a_port_that_is_taken_is_left_alone(program, sessions, started, tmp_path):
    one = ("--prometheus", program("prometheus"), "--grafana", "no-such-grafana", "--ray", sessions)
    first = started(*one, "--folder", tmp_path / "a", "--prometheus-port", "0")
    port = re.search(r"Prometheus: http://127.0.0.1:(\d+)", first.text)[1]
    second = started(*one, "--folder", tmp_path / "b", "--prometheus-port", port)
    other = re.search(r"Prometheus: http://127.0.0.1:(\d+)", second.text)[1]
    assert other != port


def test_a_server_that_ends_is_reported_with_its_log(capsys, program, sessions, tmp_path):
    folder = tmp_path / "kept"
    text = fails(capsys, "--prometheus", program("broken"), "--ray", sessions, "--folder", folder)
    (log,) = folder.glob("prometheus-*.log")
    assert f"Prometheus ended with status 1 ({log}): unknown field in the configuration" in text


def test_what_is_no_port_is_refused(capsys, program, sessions, tmp_path):
    given = ("--prometheus", program("prometheus"), "--ray", sessions, "--folder", tmp_path)
    text = fails(capsys, *given, "--prometheus-port", "70000")
    assert "70000 is no port: expected a number from 0 to 65535" in text


def test_without_prometheus_it_says_how_to_get_it(capsys, sessions, tmp_path):
    text = fails(capsys, "--prometheus", "no-such-prometheus", "--ray", sessions, "--folder", tmp_path)
    assert "apt-get install prometheus" in text
    assert "--prometheus PATH" in text


def test_outside_the_projects_root_it_says_so(capsys, sessions, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = fails(capsys, "--export", tmp_path / "out", "--ray", sessions)
    assert "There is no dashboards/boards here" in text


def test_boards_are_exported(capsys, sessions, tmp_path):
    out = tmp_path / "out"
    main(["dashboards", "--export", str(out), "--ray", str(sessions)])
    ours = {path.name: path.read_bytes() for path in (REPOSITORY / "dashboards/boards").glob("*.json")}
    assert {path.name: path.read_bytes() for path in (out / "cornerstone").iterdir()} == ours
    assert {path.name for path in (out / "ray").iterdir()} == {
        "default_grafana_dashboard.json",
        "train_grafana_dashboard.json",
    }
    assert f"Ray's own 2: {out / 'ray'}" in said(capsys)
    main(["dashboards", "--export", str(tmp_path / "none"), "--ray", str(tmp_path / "nothing")])
    assert "none of Ray's own" in said(capsys)


def test_prometheus_itself_starts_and_stops(sessions, started, tmp_path):
    if shutil.which("prometheus") is None:
        pytest.skip("Prometheus is not installed (Debian: apt-get install prometheus)")
    served = started("--ray", sessions, "--folder", tmp_path, "--prometheus-port", "0", "--grafana", "no-such-grafana")
    url = re.search(r"Prometheus: (http://127.0.0.1:\d+)", served.text)[1]
    with urllib.request.urlopen(f"{url}/api/v1/status/config", timeout=10) as response:
        assert str(sessions / monitoring.DISCOVERY) in response.read().decode()
    (server,) = psutil.Process(served.process.pid).children()
    listening = {(each.laddr.ip, each.status) for each in server.net_connections("tcp") if each.status == "LISTEN"}
    assert listening == {("127.0.0.1", "LISTEN")}
    assert served.stop()[0] == 0
    assert not server.is_running()
    assert os.listdir(tmp_path / "prometheus")  # its data stay
