"""A view of MLflow's page of runs that a link opens: a sweep's trials with the table's columns, and their comparison.

MLflow keeps a view that somebody shared as JSON in a tag of the experiment, `mlflow.sharedViewState.<key>`; the page reads
it if its address has `viewStateShareKey=<key>`. The keys are those of the page's own state (searchFilter, orderByKey,
selectedColumns, compareRunCharts, ..). A page whose runs are not ordered by their time lists them flat, without the parent.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from cornerstone.hashing import digest

TAG = "mlflow.sharedViewState."
PLACE = "cornerstone.place"
"""The tag that sorts a sweep's trials as the rows of its table are."""
LONGEST_TAG = 5000
"""Characters of an experiment's tag that older servers allow."""
DEFLATED = "deflate;"
"""What MLflow's page writes before a state that it compressed."""
CREATED, DURATION = "runDateAndNestInfo", "duration"
"""Columns that the page always has."""
SECTION = "Table"
LETTER, PADDING = 7, 36  # pixels of a column's header
MOST_BARS = 100  # runs of a bar chart


@dataclass(frozen=True)
class SweepView:
    """What the view shows. Names are those of MLflow's records (`translated`)."""

    sweep: str
    parent: str
    """The id of the sweep's own run."""
    params: Sequence[str]
    metrics: Sequence[str]
    """The table's columns, the primary one first."""

    @property
    def tag(self) -> str:
        """The experiment's tag that holds the view."""
        return f"{TAG}{self.sweep}"

    def text(self) -> str:
        """The tag's value: JSON, compressed if it is long. Of too many columns the last ones are left out."""
        text = json.dumps(self.state(), separators=(",", ":"))
        if len(text) > LONGEST_TAG:
            text = DEFLATED + base64.b64encode(zlib.compress(text.encode(), 9)).decode()
        if len(text) > LONGEST_TAG and len(self.metrics) > 1:
            return replace(self, metrics=self.metrics[: len(self.metrics) * 3 // 4]).text()
        return text

    def state(self) -> dict[str, Any]:
        """The page's state: its search, its columns and its charts."""
        columns = [_column("params", name) for name in self.params]
        columns += [_column("metrics", name) for name in self.metrics]
        return {
            "searchFilter": f"tags.`mlflow.parentRunId` = '{self.parent}'",
            "orderByKey": _column("tags", PLACE),
            "orderByAsc": True,
            "startTime": "ALL",
            "lifecycleFilter": "Active",
            "datasetsFilter": [],
            "modelVersionFilter": "All Runs",
            "selectedColumns": columns,
            "columnOrder": [_column("attributes", "Run Name"), CREATED, *columns, DURATION],
            "columnWidths": {column: PADDING + LETTER * (len(column.partition("`")[2]) - 1) for column in columns},
            "runsHiddenMode": "SHOW_ALL",
            "compareRunSections": [
                {
                    "uuid": _id(SECTION),
                    "name": SECTION,
                    "display": True,
                    "isReordered": True,
                    "deleted": False,
                    "isGenerated": False,
                }
            ],
            "compareRunCharts": self._charts(),
            "isAccordionReordered": True,  # otherwise the page sorts its sections by name
        }

    def _charts(self) -> list[dict[str, Any]]:
        """The primary metric of each trial, params and metrics that differ, all in one plot, then the other metrics."""
        if not self.metrics:
            return []
        primary, *others = self.metrics
        settings = list(self.params[1:]) or list(self.params)  # the row's name is on no axis if there is a setting
        return [
            _bars(primary),
            _chart(
                "DIFFERENCE",
                "differences",
                compareGroups=["Parameters", "Model metrics"],
                chartName="Runs difference view",
                showChangeFromBaseline=True,
                showDifferencesOnly=True,
                baselineColumnUuid="",
            ),
            _chart("PARALLEL", "parallel", selectedParams=settings, selectedMetrics=[primary], showAllRuns=True),
            *map(_bars, others),
        ]


def _bars(metric: str) -> dict[str, Any]:
    return _chart("BAR", metric, metricKey=metric, displayName=metric.removeprefix("final/"))


def _chart(kind: str, name: str, **settings: Any) -> dict[str, Any]:
    common = {"uuid": _id(name), "type": kind, "runsCountToCompare": MOST_BARS, "metricSectionId": _id(SECTION)}
    return {**common, "deleted": False, "isGenerated": False, **settings}


def _id(name: str) -> str:
    """A chart's id: any text that no other chart of the page has."""
    return digest(name)[:8]


def _column(kind: str, name: str) -> str:
    return f"{kind}.`{name}`"
