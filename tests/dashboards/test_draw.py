"""`dashboards/draw.py` on a Prometheus of the test's own: every panel is drawn, with what its queries gave."""

from __future__ import annotations

import http.server
import json
import threading
import urllib.parse
from types import SimpleNamespace

import pytest
from boards import DASHBOARDS, draw
from PIL import Image


@pytest.fixture
def prometheus():
    """Answers every query of a metric that it has with two series; keeps what it was asked."""
    asked: list[dict[str, str]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            given = dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(self.path).query))
            asked.append(given)
            start, values = float(given["start"]), ("0.25", "0.5")
            labels = [{"run": run, "point": "2", "rank": "0", "phase": run} for run in ("a", "b")]
            series = [{"metric": each, "values": [[start + i, v] for i, v in enumerate(values)]} for each in labels]
            found = [] if "gpu" in given["query"] else series
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"data": {"result": found}}).encode())

        def log_message(self, *given):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield SimpleNamespace(url=f"http://127.0.0.1:{server.server_port}", asked=asked)
    server.shutdown()


@pytest.mark.parametrize("name", ["data_plane", "run", "sweep"])
def test_a_board_becomes_a_picture(prometheus, tmp_path, monkeypatch, name):
    board, out = DASHBOARDS / "boards" / f"{name}.json", tmp_path / "board.png"
    command = ["draw.py", str(board), "--out", str(out), "--url", prometheus.url, "--set", "run=a1b2c3d4"]
    monkeypatch.setattr("sys.argv", command)
    draw.main()
    with Image.open(out) as picture:
        assert picture.width == 1200
        assert len(set(picture.convert("L").getdata())) > 10
    wanted = [query for _, query, _ in draw.queries(json.loads(board.read_text()))]
    assert len(prometheus.asked) == len(wanted)
    assert not [given["query"] for given in prometheus.asked if "$" in given["query"].replace('"$1"', "")]
    if name == "run":
        assert all('"a1b2c3d4' in given["query"] for given in prometheus.asked)


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.256, "percentunit", "25.6%"),
        (85.0, "percent", "85 %"),
        (1.5 * 2**20, "Bps", "1.5 MiB/s"),
        (0.0, "bytes", "0 B"),
        (0.25, "s", "0.25 s"),
        (1234.6, "short", "1235"),
    ],
)
def test_values_have_their_units(value, unit, text):
    assert draw.shown(value, unit) == text


def test_variables_that_are_not_chosen_stand_for_all():
    query = 'rate(x{run="$run", y=~"$y", z=~"$run.*", kind="data"}[$__rate_interval])'
    assert draw.filled(query, "40s") == 'rate(x{run=~".*", y=~".*", z=~".*.*", kind="data"}[40s])'
    assert draw.filled(query, "40s", {"run": "a"}) == 'rate(x{run=~"a", y=~".*", z=~"a.*", kind="data"}[40s])'
