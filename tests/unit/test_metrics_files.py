# SPDX-License-Identifier: BSD-3-Clause
"""Alert rules, dashboard and documents use the metrics that exist, and each other's names."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator

import pytest
import yaml
from doctools import DOC, codetext

from ppdaemon.bridge.metrics import BRIDGE_METRICS
from ppdaemon.node.control.metrics import NODE_METRICS
from ppdaemon.relay.metrics import RELAY_METRICS

ETC = DOC.parent / "etc"
RULES = ETC / "prometheus" / "ppdaemon-rules.yaml"
DASHBOARD = json.loads((ETC / "grafana" / "ppdaemon.json").read_text())
METRICS = {metric.name: metric for metric in (*NODE_METRICS, *RELAY_METRICS, *BRIDGE_METRICS)}
SERIES = METRICS | {
    f"{name}_{part}": metric
    for name, metric in METRICS.items()
    if metric.kind == "histogram"
    for part in ("bucket", "count", "sum")
}
TARGET_LABELS = {"job", "instance"}
PAGE = (DOC / "operators" / "metrics.rst").read_text()
promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is missing (Debian: apt install prometheus)"
)


def rules() -> list[dict]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def panels() -> list[dict]:
    return DASHBOARD["panels"]


def expressions() -> Iterator[str]:
    yield from (rule["expr"] for rule in rules())
    yield from (target["expr"] for panel in panels() for target in panel.get("targets", ()))


def labels_in(expression: str) -> Iterator[tuple[str, set[str]]]:
    """Yield the name of each series with the labels that select from it."""
    for name, selector in re.findall(r"\b(ppdaemon_\w+)(?:\{([^}]*)\})?", expression):
        yield name, set(re.findall(r"(\w+)\s*[=!]~?", re.sub(r'"[^"]*"', "", selector)))


def of(rule: dict) -> str:
    return rule["alert"]


@pytest.mark.parametrize("expression", [*expressions()])
def test_expressions_use_metrics_and_labels_that_exist(expression: str) -> None:
    found = list(labels_in(expression))
    assert found or re.search(r"\bup\{", expression)
    for name, labels in found:
        assert labels <= {*SERIES[name].labels, *TARGET_LABELS}, name
    known = {label for name, _ in found for label in SERIES[name].labels} | TARGET_LABELS
    known |= {"le"} if any(name.endswith("_bucket") for name, _ in found) else set()
    grouped = {
        label for each in re.findall(r"\b(?:by|on) \(([^)]*)\)", expression) for label in each.split(", ")
    }
    assert grouped <= known


def test_every_metric_is_on_the_dashboard_or_in_a_rule() -> None:
    used = {name for expression in expressions() for name, _ in labels_in(expression)}
    elsewhere = {
        "ppdaemon_bridge_build_info": "its version is that of the nodes",
        "ppdaemon_bridge_start_time_seconds": "the manager of the service shows it",
        "ppdaemon_relay_build_info": "its version is that of the nodes",
        "ppdaemon_relay_start_time_seconds": "the manager of the service shows it",
        "ppdaemon_template_seconds": "for comparisons by hand",
        "ppdaemon_late_raws_unused": "ppctl late lists them",
        "ppdaemon_published_total": "only sites that publish have it, on their own dashboards",
        "ppdaemon_publish_waiting": "only sites that publish have it, on their own dashboards",
        "ppdaemon_config_generation": "for comparisons by hand",
        "ppdaemon_redis_entries": "only sites with streams have it, on their own dashboards",
        "ppdaemon_redis_last_entry_time_seconds": "only sites with streams have it, on their own dashboards",
    }
    assert METRICS.keys() - {SERIES[name].name for name in used} == elsewhere.keys()


@pytest.mark.parametrize("rule", rules(), ids=of)
def test_an_alert_has_what_an_operator_needs(rule: dict) -> None:
    assert rule["labels"].keys() == {"severity"}
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert rule["annotations"].keys() == {"summary", "description", "runbook_url"}
    assert rule["annotations"]["runbook_url"] == f"operators/metrics.html#{rule['alert'].lower()}"


def test_every_alert_has_its_heading_and_no_other() -> None:
    sections = re.findall(r"^(PP\w+)\n~+\n\n((?:.+\n)+)", PAGE, re.MULTILINE)
    assert sorted(name for name, _ in sections) == sorted(map(of, rules()))
    for name, text in sections:
        assert re.findall(r"^:(\w+):", text, re.MULTILINE) == ["Meaning", "Cause", "Action"], name


def test_every_alert_fires_in_a_scene_and_a_good_night_has_none() -> None:
    scenes = yaml.safe_load(RULES.with_name("ppdaemon-rules-test.yaml").read_text())["tests"]
    expected = [test.get("exp_samples", ()) for scene in scenes for test in scene["promql_expr_test"]]
    fired = {re.search(r'"(\w+)"', sample["labels"])[1] for samples in expected for sample in samples}
    assert fired == set(map(of, rules()))
    good = {series["series"].partition("{")[0] for series in scenes[0]["input_series"]}
    assert not expected[0]
    in_rules = {name for rule in rules() for name, _ in labels_in(rule["expr"])}
    # Both exist only if something is wrong.
    assert in_rules - good == {"ppdaemon_problems", "ppdaemon_relay_unserved_detectors"}


def test_every_metric_is_documented() -> None:
    shown = re.findall(r"^\.\. metrics-table:: \S+\.(\w+)$", PAGE, re.MULTILINE)
    assert shown == ["NODE_METRICS", "RELAY_METRICS", "BRIDGE_METRICS"]
    text = codetext().metrics_table((*NODE_METRICS, *RELAY_METRICS, *BRIDGE_METRICS))
    assert re.findall(r"^   \* - ``(ppdaemon\w+)``$", text, re.MULTILINE) == list(METRICS)
    assert "     - Visit-detectors by outcome; labels: ``instrument``, ``outcome``\n" in text


def test_panels_do_not_overlap_and_have_a_source() -> None:
    assert len({panel["id"] for panel in panels()}) == len(panels())
    cells = [
        (panel["gridPos"]["x"] + x, panel["gridPos"]["y"] + y)
        for panel in panels()
        for x in range(panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) == 23
    for panel in panels():
        if panel["type"] != "row":
            assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
            assert panel["targets"]


@promtool
@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "config", "scrape.yaml"),
        ("check", "rules", "ppdaemon-rules.yaml"),
        ("test", "rules", "ppdaemon-rules-test.yaml"),
    ],
)
def test_prometheus_accepts_the_files(arguments: tuple[str, ...]) -> None:
    done = subprocess.run(["promtool", *arguments], cwd=RULES.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
