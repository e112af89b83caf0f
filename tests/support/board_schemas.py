"""Strict JSON schemas of the files in `dashboards/`: a key that is not listed, or a value of another kind, is refused.

They allow what these files use of Prometheus's configuration, Grafana's provisioning and Grafana's boards, and no more: the
programs themselves, Grafana above all, ignore a key that they do not know.
"""

from __future__ import annotations

from typing import Any

TEXT, WHOLE, TRUTH = {"type": "string", "minLength": 1}, {"type": "integer", "minimum": 0}, {"type": "boolean"}
DURATION = {"type": "string", "pattern": r"^\d+(s|m|h)$"}


def exact(*optional: str, **fields: Any) -> dict[str, Any]:
    """An object with these fields and no others; all but the optional ones must be there."""
    required = [name for name in fields if name not in optional]
    return {"type": "object", "additionalProperties": False, "properties": fields, "required": required}


def rows(of: Any) -> dict[str, Any]:
    return {"type": "array", "items": of, "minItems": 1}


PROMETHEUS = exact(
    **{"global": exact(scrape_interval=DURATION)},
    scrape_configs=rows(
        exact(
            "file_sd_configs",
            "http_sd_configs",
            job_name=TEXT,
            file_sd_configs=rows(
                exact(files=rows({"type": "string", "pattern": r"^/.*\.json$"}), refresh_interval=DURATION)
            ),
            http_sd_configs=rows(
                exact(
                    url={"type": "string", "pattern": r"^https?://[\w.-]+:\d+/api/prometheus/sd$"},
                    refresh_interval=DURATION,
                    authorization=exact(
                        type={"const": "Bearer"}, credentials_file={"type": "string", "pattern": r"^/[\w./-]+$"}
                    ),
                )
            ),
        )
        | {"oneOf": [{"required": ["file_sd_configs"]}, {"required": ["http_sd_configs"]}]}
    ),
)
DATA_SOURCES = exact(
    apiVersion={"const": 1},
    datasources=rows(
        exact(
            name=TEXT,
            uid=TEXT,
            type={"const": "prometheus"},
            access={"const": "proxy"},
            url={"const": "$CORNERSTONE_PROMETHEUS"},
            isDefault=TRUTH,
            jsonData=exact(timeInterval=DURATION),
        )
    ),
)
PROVIDERS = exact(
    apiVersion={"const": 1},
    providers=rows(
        exact(
            name=TEXT,
            folder=TEXT,
            type={"const": "file"},
            options=exact(path={"enum": ["$CORNERSTONE_BOARDS", "$RAY_BOARDS"]}),
        )
    ),
)

DATA_SOURCE = exact(type={"const": "prometheus"}, uid={"const": "${datasource}"})
UNITS = {"enum": ["short", "percent", "percentunit", "s", "bytes", "Bps"]}
CALCULATIONS = {"type": "array", "items": {"const": "lastNotNull"}}
VARIABLE = exact(
    "allValue",
    "current",
    name=TEXT,
    label=TEXT,
    type={"const": "query"},
    datasource=DATA_SOURCE,
    query=exact(query={"type": "string", "pattern": r"^label_values\(.+, \w+\)$"}, refId=TEXT),
    refresh={"const": 2},
    sort={"const": 2},
    multi=TRUTH,
    includeAll=TRUTH,
    allValue={"const": ".*"},
    current=exact(text={"const": "All"}, value={"const": "$__all"}),
)
SOURCE_VARIABLE = exact(
    name={"const": "datasource"}, label=TEXT, type={"const": "datasource"}, query={"const": "prometheus"}
)
PLACE = exact(
    x=WHOLE | {"maximum": 23}, y=WHOLE, w=WHOLE | {"minimum": 1, "maximum": 24}, h=WHOLE | {"minimum": 3, "maximum": 12}
)
TARGET = exact(refId={"type": "string", "pattern": "^[A-Z]$"}, datasource=DATA_SOURCE, expr=TEXT, legendFormat=TEXT)
CUSTOM = exact(
    lineWidth=WHOLE,
    fillOpacity=WHOLE,
    showPoints={"const": "never"},
    spanNulls=WHOLE,
    stacking=exact(mode={"enum": ["normal", "none"]}),
)


def _panel(kind: str, options: Any, *, custom: bool = False) -> dict[str, Any]:
    more = {"custom": CUSTOM} if custom else {}
    defaults = exact("min", "max", "decimals", unit=UNITS, min=WHOLE, max=WHOLE, decimals=WHOLE, **more)
    return exact(
        id=WHOLE | {"minimum": 1},
        type={"const": kind},
        title=TEXT,
        description=TEXT,
        gridPos=PLACE,
        datasource=DATA_SOURCE,
        targets=rows(TARGET),
        options=options,
        fieldConfig=exact(defaults=defaults, overrides={"type": "array", "maxItems": 0}),
    )


REDUCED = exact(calcs=CALCULATIONS)
PANELS = {
    "timeseries": _panel(
        "timeseries",
        exact(
            legend=exact(displayMode={"const": "table"}, placement={"const": "bottom"}, calcs=CALCULATIONS),
            tooltip=exact(mode={"const": "multi"}, sort={"const": "desc"}),
        ),
        custom=True,
    ),
    "stat": _panel(
        "stat", exact(reduceOptions=REDUCED, graphMode={"enum": ["area", "none"]}, colorMode={"const": "none"})
    ),
    "gauge": _panel("gauge", exact(reduceOptions=REDUCED)),
    "bargauge": _panel(
        "bargauge",
        exact(reduceOptions=REDUCED, orientation={"const": "horizontal"}, displayMode={"const": "basic"}),
    ),
    "text": exact(
        id=WHOLE | {"minimum": 1},
        type={"const": "text"},
        title=TEXT,
        gridPos=PLACE,
        options=exact(mode={"const": "markdown"}, content=TEXT),
    ),
}
BOARD = exact(
    uid={"type": "string", "pattern": r"^cornerstone-[a-z-]+$"},
    title=TEXT,
    description=TEXT,
    tags={"const": ["cornerstone"]},
    schemaVersion={"const": 39},
    editable=TRUTH,
    refresh=DURATION,
    time=exact(**{"from": {"type": "string", "pattern": r"^now-\d+m$"}, "to": {"const": "now"}}),
    links=rows(
        exact(
            type={"const": "dashboards"},
            title=TEXT,
            tags={"const": ["cornerstone"]},
            asDropdown=TRUTH,
            includeVars=TRUTH,
            keepTime=TRUTH,
        )
    ),
    templating=exact(list={"type": "array", "prefixItems": [SOURCE_VARIABLE], "items": VARIABLE}),
    panels=rows({"oneOf": list(PANELS.values())}),
)
