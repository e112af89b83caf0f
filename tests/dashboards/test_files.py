"""The files of `dashboards/`: strict schemas, and a typo planted at every key; boards name only metrics that are exported."""

from __future__ import annotations

import copy
import importlib.util
import json
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

import board_schemas
import pytest
import yaml
from boards import DASHBOARDS, draw
from jsonschema import Draft202012Validator

from cornerstone.commands.dashboards import BOARDS, QUERIES
from cornerstone.training.live_metrics import LABELS, PHASES, gauge_names

CONFIGURATION = {
    "prometheus/one_machine.yml": board_schemas.PROMETHEUS,
    "prometheus/cluster.yml": board_schemas.PROMETHEUS,
    "grafana/provisioning/datasources/prometheus.yml": board_schemas.DATA_SOURCES,
    "grafana/provisioning/dashboards/boards.yml": board_schemas.PROVIDERS,
}
BOARD_FILES = ("boards/data_plane.json", "boards/run.json", "boards/sweep.json")
SCHEMAS = {**CONFIGURATION, **dict.fromkeys(BOARD_FILES, board_schemas.BOARD)}
TYPO = "x"


@cache
def content(name: str):
    text = (DASHBOARDS / name).read_text()
    return json.loads(text) if name.endswith(".json") else yaml.safe_load(text)


def problems(name: str, given=None) -> list[str]:
    found = Draft202012Validator(SCHEMAS[name]).iter_errors(content(name) if given is None else given)
    return [f"{error.json_path}: {error.message}"[:300] for error in found]


def keys(given, at=()):
    """The way to every key, in objects in lists too."""
    items = given.items() if isinstance(given, dict) else enumerate(given) if isinstance(given, list) else ()
    for key, value in items:
        if isinstance(given, dict):
            yield (*at, key)
        yield from keys(value, (*at, key))


def misspelt(given, way):
    """A copy with a typo in the key at the end of the way."""
    given = copy.deepcopy(given)
    place = given
    for step in way[:-1]:
        place = place[step]
    place[way[-1] + TYPO] = place.pop(way[-1])
    return given


def test_every_file_has_a_schema():
    found = {str(path.relative_to(DASHBOARDS)) for path in DASHBOARDS.rglob("*") if path.suffix in (".json", ".yml")}
    assert found == set(SCHEMAS)


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_file_is_what_its_program_reads(name):
    assert not problems(name)


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_typo_in_any_key_is_found(name):
    """Of a board's panels one of each kind is tried: the schema is the kind's."""
    given = dict(content(name))
    if "panels" in given:
        given["panels"] = list({panel["type"]: panel for panel in given["panels"]}.values())
    validator, ways = Draft202012Validator(SCHEMAS[name]), list(keys(given))
    assert validator.is_valid(given)
    assert len(ways) > 5
    assert not [way for way in ways if validator.is_valid(misspelt(given, way))]


@pytest.mark.parametrize(
    ("name", "way", "value"),
    [
        ("prometheus/one_machine.yml", ("global", "scrape_interval"), "10 s"),
        ("prometheus/one_machine.yml", ("scrape_configs", 0, "file_sd_configs", 0, "files", 0), "tmp/ray.json"),
        ("prometheus/cluster.yml", ("scrape_configs", 0, "http_sd_configs", 0, "authorization", "type"), "Baerer"),
        ("prometheus/cluster.yml", ("scrape_configs", 0, "http_sd_configs", 0, "url"), "http://head/api/prometheus"),
        ("grafana/provisioning/datasources/prometheus.yml", ("datasources", 0, "type"), "promtheus"),
        ("grafana/provisioning/dashboards/boards.yml", ("providers", 0, "options", "path"), "$BOARDS"),
        ("boards/run.json", ("panels", 0, "type"), "guage"),
        ("boards/run.json", ("panels", 0, "datasource", "uid"), "prometheus"),
        ("boards/run.json", ("panels", 0, "fieldConfig", "defaults", "unit"), "percentage"),
    ],
)
def test_a_typo_in_a_value_is_found(name, way, value):
    given = copy.deepcopy(content(name))
    place = given
    for step in way[:-1]:
        place = place[step]
    place[way[-1]] = value
    assert problems(name, given)


@pytest.mark.parametrize("name", ["one_machine", "cluster"])
def test_prometheus_reads_its_configuration(name, tmp_path):
    if (promtool := shutil.which("promtool")) is None:
        pytest.skip("promtool is not installed (Debian: apt-get install prometheus); the strict schema was checked")
    path = DASHBOARDS / "prometheus" / f"{name}.yml"

    def check(file: Path) -> int:
        command = [promtool, "check", "config", "--syntax-only", str(file)]
        return subprocess.run(command, capture_output=True, timeout=30, check=False).returncode

    assert check(path) == 0
    given = yaml.safe_load(path.read_text())
    for way in keys(given):  # the same typos as above, to show that the schema is not stricter by mistake
        (tmp_path / "typo.yml").write_text(yaml.safe_dump(misspelt(given, way)))
        assert check(tmp_path / "typo.yml") != 0, way


# --- boards


def queries():
    return [(name, *query) for name in BOARD_FILES for query in draw.queries(content(name))]


def variable_queries():
    variables = [(name, v) for name in BOARD_FILES for v in content(name)["templating"]["list"][1:]]
    return [(name, f"variable {v['name']}", v["query"]["query"], "") for name, v in variables]


def metrics(query: str) -> set[str]:
    return set(re.findall(r"\bray_\w+(?=[{[])|(?<=label_values\()ray_\w+", re.sub(r'"[^"]*"', '""', query)))


@cache
def metrics_of_ray() -> frozenset[str]:
    """What the installed Ray exports: its own boards name most of it, and the source of Ray Data the rest."""
    from ray.dashboard.modules.metrics import grafana_dashboard_factory as factory

    named = set[str]()
    for generate in ("default", "data", "train"):
        text, _ = getattr(factory, f"generate_{generate}_grafana_dashboard")()
        named |= set(re.findall(r"\bray_\w+", text))
    of_data = ("ray.data._internal.stats", "ray.data._internal.execution.interfaces.op_runtime_metrics")
    for module in of_data:
        text = Path(importlib.util.find_spec(module).origin).read_text()
        named |= {f"ray_{name}" for name in re.findall(r'"(data_\w+)"', text)}
        named |= {
            f"ray_data_{name}" for name in re.findall(r"^    (?:def )?(\w+)(?:: int|: float|\(self\))", text, re.M)
        }
    return frozenset(named)


def known(metric: str) -> bool:
    return metric.removeprefix("ray_") in gauge_names() or metric in metrics_of_ray()


@pytest.mark.parametrize(("name", "title", "query", "legend"), [*queries(), *variable_queries()])
def test_every_metric_of_a_query_is_exported(name, title, query, legend):
    assert metrics(query), query
    for metric in metrics(query):
        assert known(metric), metric
        assert not known(metric[:-1] + TYPO + metric[-1]), "a typo would not be found"


@pytest.mark.parametrize("query", QUERIES)
def test_the_command_names_metrics_that_are_exported(query):
    assert query.removeprefix("ray_") in gauge_names()


def test_every_gauge_of_ours_is_on_a_board():
    shown = {metric for _, _, query, _ in queries() for metric in metrics(query)}
    assert {f"ray_{name}" for name in gauge_names()} <= shown


@pytest.mark.parametrize(("name", "title", "query", "legend"), queries())
def test_queries_name_variables_and_labels_that_exist(name, title, query, legend):
    defined = {variable["name"] for variable in content(name)["templating"]["list"]}
    assert set(re.findall(r"\$([a-z]\w*)", query)) <= defined
    grouped = re.findall(r"\bby \(([\w, ]+)\)", query)
    aggregated = re.match(r"(sum|avg|max|count)\b", query)
    labels = set(re.findall(r"{{(\w+)}}", legend))
    if aggregated:
        assert labels <= set(", ".join(grouped).split(", ")), "the query drops a label that the legend shows"
    for metric, inside in re.findall(r"\b(ray_\w+){([^}]*)}", query):
        if metric.removeprefix("ray_") in gauge_names():
            assert set(re.findall(r"(\w+)=", inside)) <= {*LABELS, "phase"}, metric
            assert set(re.findall(r'phase="(\w+)"', inside)) <= set(PHASES)


@pytest.mark.parametrize("name", BOARD_FILES)
def test_panels_have_their_own_ids_and_places(name):
    panels = content(name)["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken = set[tuple[int, int]]()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(at["x"] + i, at["y"] + j) for i in range(at["w"]) for j in range(at["h"])}
        assert max(x for x, _ in cells) < draw.COLUMNS
        assert not cells & taken, panel["title"]
        taken |= cells
        ids = [target["refId"] for target in panel.get("targets", ())]
        assert len(set(ids)) == len(ids)


def test_boards_have_the_uids_that_the_command_links_to():
    assert {content(name)["uid"] for name in BOARD_FILES} == set(BOARDS)


def test_the_readme_names_every_file_and_gauge():
    text = (DASHBOARDS / "README.md").read_text()
    for name in (*SCHEMAS, "draw.py", *(f"ray_{gauge}" for gauge in gauge_names())):
        assert name in text, name
