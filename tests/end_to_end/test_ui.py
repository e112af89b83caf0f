"""`cornerstone ui` on a finished sweep, in a browser: what its links open is what they are named after."""

from __future__ import annotations

import html
import http.server
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

from cornerstone.tracking.address import tracking_address

from .conftest import Swept

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
LOADED = 30.0  # seconds for a page and its requests


@pytest.fixture(scope="module")
def browser():
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"no browser ({', '.join(BROWSERS)}) is installed")
    return found


@pytest.fixture(scope="module")
def links(browser, swept: Swept):
    """The links that the command prints, by name, while its server runs."""
    assert swept.status == 0, swept.output
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as free:
        port = free.server_port
    options = ["--port", str(port), "--sweep", swept.state.sweep, "--folder", str(swept.folder / "ui")]
    command = [sys.executable, "-m", "cornerstone.cli", "ui", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("Ctrl-C"):
            break
    try:
        yield dict(re.findall(r"^ *(the sweep|trials|comparison): (\S+)$", "".join(lines), re.MULTILINE))
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0


@pytest.fixture(scope="module")
def shown(browser, tmp_path_factory):
    """A function that opens a page and returns its text as soon as it has all of some words, or after `LOADED` seconds."""
    profile = tmp_path_factory.mktemp("browser")

    def open_page(link: str, *words: str) -> str:
        command = [browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        command += [f"--user-data-dir={profile}", "--window-size=4000,1600", "--virtual-time-budget=20000"]
        deadline, text = time.monotonic() + LOADED, ""
        while time.monotonic() < deadline:
            done = subprocess.run([*command, "--dump-dom", link], capture_output=True, text=True, timeout=60)
            text = html.unescape(re.sub(r"<(script|style)\b.*?</\1>", "", done.stdout, flags=re.DOTALL))
            if all(word in text for word in words):
                break
        return text

    return open_page


def in_order(text: str, *words: str) -> bool:
    """Whether the words stand in the page, each behind the one before it."""
    place = 0
    for word in words:
        place = text.find(word, place) + 1
        if not place:
            return False
    return True


def columns(text: str) -> list[str]:
    """The ids of a grid's columns as they are shown; the document has them in another order."""
    heads = re.findall(r'<div class="ag-header-cell [^>]*>', text)
    found = {
        int(re.search(r'aria-colindex="(\d+)"', head)[1]): re.search(r'col-id="([^"]*)"', head)[1] for head in heads
    }
    return [found[place] for place in sorted(found)]


def rows(text: str) -> list[str]:
    """The names of a grid's runs as they are shown."""
    parts = [re.match(r'(\d+)".*?>([^<>]*, seed \d+)<', part, re.DOTALL) for part in text.split('row-index="')[1:]]
    found = {int(part[1]): part[2] for part in parts if part}
    return [found[place] for place in sorted(found)]


@pytest.mark.timeout(300)
def test_the_trials_are_listed_as_the_rows_of_the_table_with_its_columns(links, shown, swept):
    page = shown(links["trials"], "2, seed 0", 'col-id="metrics.`final/class/top1`"')
    assert columns(page)[1:2] + columns(page)[3:7] == [
        "attributes.`Run Name`",
        "params.`point`",
        "params.`point.corner_tokens`",
        "metrics.`final/long-human/i2t_r1`",
        "metrics.`final/long-human/t2i_r1`",
    ]
    assert columns(page)[-1] == "duration"
    assert rows(page) == ["0, seed 0", "2, seed 0"]  # the parent is no row
    for point in ("0", "2"):
        value = swept.result(point).metrics["eval/long-human/i2t_r1"]
        cell = rf'col-id="metrics.`final/long-human/i2t_r1`"[^>]*>(<[^>]*>)*{value:g}<'
        assert re.search(cell, page), f"no cell with {value:g}"


@pytest.mark.timeout(120)
def test_the_comparison_begins_with_the_primary_metric(links, shown):
    page = shown(links["comparison"], "Parallel Coordinates", "point.corner_tokens")
    primary = ">final/long-human/i2t_r1<"
    assert in_order(
        page, ">Table<", primary, ">Runs difference view<", ">point.corner_tokens<", ">Parallel Coordinates"
    )
    assert re.search(r">((?:final|train|eval)/[^<]*)<", page)[0] == primary  # no chart is before it


@pytest.mark.timeout(120)
def test_the_sweeps_page_has_the_table_and_links(links, shown, swept):
    page = shown(links["the sweep"], "<th", "49.46")
    assert in_order(page, ">trials</a>", ">comparison</a>", ">plot.png</a>", ">best model</a>")
    assert re.search(r"<th[^>]*>\s*long-human i→t R@1", page)
    assert "49.46" in page  # the paper's
    plot = re.search(r'href="(#/experiments/[^"]*plot\.png[^"]*)"', page)[1]
    assert "plot.png" in shown(links["the sweep"].partition("#")[0] + plot, "<img")
    model = re.search(r'href="(#/models/[^"]*)"', page)[1]
    assert "cornerstone.load(" in shown(links["the sweep"].partition("#")[0] + model, "cornerstone.load(", "best")


def test_a_trials_duration_is_its_own(swept):
    from mlflow import MlflowClient

    client = MlflowClient(tracking_address().full)
    result = swept.result("0")
    experiment = client.get_experiment_by_name(swept.experiment).experiment_id
    (run,) = client.search_runs([experiment], f"tags.`cornerstone.run` = '{result.run}'")
    seconds = (run.info.end_time - run.info.start_time) / 1000
    assert seconds < result.seconds + 60
