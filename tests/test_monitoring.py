"""The alert rules and the dashboard of deploy/ query only what exists."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from gateway.admin.metrics import FAMILIES, PREFIX
from gateway.errors import CODES
from gateway.supervisor.history import CallStats
from gateway.supervisor.lifecycle import State
from tests.support.gateway_process import ROOT, START_WITHIN

if TYPE_CHECKING:
    from pathlib import Path

RULES = ROOT / "deploy" / "prometheus" / "alerts.yml"
DASHBOARD: dict[str, Any] = json.loads((ROOT / "deploy" / "grafana" / "dashboard.json").read_text(encoding="utf-8"))
RUNBOOK = (ROOT / "docs" / "pages" / "how-to" / "observe.md").read_text(encoding="utf-8")
SUFFIXES = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
METRICS = {
    f"{PREFIX}{name}{suffix}": {*family.labels, *(("le",) if suffix == "_bucket" else ())}
    for name, family in FAMILIES.items()
    for suffix in SUFFIXES[family.kind]
} | {
    name: set[str]()
    for name in (
        "up",
        "process_cpu_seconds_total",
        "process_max_fds",
        "process_open_fds",
        "process_resident_memory_bytes",
    )
}
"""Every metric of a scrape with its labels; those of the process itself are made by `prometheus_client`."""
TARGET = {"job", "instance"}
"""Labels that Prometheus adds."""
VALUES = {
    "state": set(State),
    "reason": set(CODES),
    "outcome": {word for word, _ in CallStats().outcomes()} | {"applied", "refused"},
}
WORDS = {
    "and", "by", "histogram_quantile", "increase", "label_values", "max", "min_over_time", "or", "rate", "sum",
}  # fmt: skip
VARIABLES = {"$__rate_interval": "5m", "$job": "x", "$instance": "x", "$backend": "x"}


def queries() -> dict[str, str]:
    """The dashboard's expressions, with Grafana's variables replaced."""
    found = {
        f"{panel['title']} {target['refId']}": target["expr"]
        for panel in DASHBOARD["panels"]
        for target in panel["targets"]
    }
    for name, value in VARIABLES.items():
        found = {title: text.replace(name, value) for title, text in found.items()}
    return found


def alerts() -> list[dict[str, Any]]:
    yaml = pytest.importorskip("yaml")
    (group,) = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    return group["rules"]


def faults(query: str) -> list[str]:
    """What the gateway does not have of the names in a query."""
    found: list[str] = []
    known: set[str] = set(TARGET)
    for name, selector in re.findall(r"\b([a-z]\w*)\b(?:\{(.*?)\})?(?!\()", query):
        if name not in METRICS:
            continue
        known |= METRICS[name]
        for label, operator, text in re.findall(r'(\w+)(=~|!~|!=|=)"(.*?)"', selector):
            if label not in METRICS[name] | TARGET:
                found.append(f"{name} has no label {label!r}")
            if label in VALUES:
                found += [f"{label} is never {word!r}" for word in text.split("|") if word not in VALUES[label]]
            if operator in {"=", "!="} and "|" in text:
                found.append(f"{text!r} is not a pattern here")
    rest = re.sub(r'"[^"]*"|\{[^}]*\}|\[\w+\]', "", query)
    names = set(re.findall(r"\b[A-Za-z_]\w*", rest)) - WORDS - METRICS.keys()
    return found + [f"{name!r} does not exist" for name in sorted(names - known)]


@pytest.mark.parametrize(
    ("query", "fault"),
    [
        ("sum(mcp_gateway_call_total)", "'mcp_gateway_call_total' does not exist"),
        ("sum by (tool) (mcp_gateway_calls_total)", "'tool' does not exist"),
        ("mcp_gateway_sessions{backend='a'} > up{state=\"ready\"}", "up has no label 'state'"),
        ('mcp_gateway_calls_total{outcome="tool_error"}', "outcome is never 'tool_error'"),
        ('mcp_gateway_backend_state{state=~"ready|dead"}', "state is never 'dead'"),
        ('mcp_gateway_backend_state{state="ready|failed"}', "'ready|failed' is not a pattern here"),
        ("rate(mcp_gateway_call_duration_seconds[5m])", "'mcp_gateway_call_duration_seconds' does not exist"),
    ],
)
def test_a_wrong_query_is_found(query: str, fault: str) -> None:
    assert fault in faults(query)


def test_the_dashboard_queries_what_exists() -> None:
    assert {title: found for title, query in queries().items() if (found := faults(query))} == {}
    variables = {one["name"]: one["query"] for one in DASHBOARD["templating"]["list"]}
    asked = [re.fullmatch(r"label_values\((\w+)(?:\{.*\})?, (\w+)\)", query) for query in variables.values()]
    assert [one[0] for one in asked if one and one[2] not in METRICS[one[1]] | TARGET] == []
    used = set(re.findall(r"\$\{?([a-z]\w*)", json.dumps(DASHBOARD["panels"])))
    assert used == variables.keys()


def test_the_dashboard_shows_every_metric() -> None:
    shown = " ".join(queries().values())
    assert [name for name in FAMILIES if f"{PREFIX}{name}" not in shown] == []


def test_panels_do_not_overlap() -> None:
    cells = [
        (x, y)
        for panel in DASHBOARD["panels"]
        for place in [panel["gridPos"]]
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_alerts_query_what_exists_and_name_only_labels_that_remain() -> None:
    for rule in alerts():
        assert faults(rule["expr"]) == [], rule["alert"]
        grouped = re.search(r"by \((.*?)\)", rule["expr"])
        metric = next(name for name in METRICS if re.search(rf"\b{name}\b", rule["expr"]))
        remaining = set(grouped[1].split(", ")) if grouped else METRICS[metric] | TARGET
        used = set(re.findall(r"\$labels\.(\w+)", json.dumps(rule["annotations"])))
        assert used <= remaining, rule["alert"]


def test_every_alert_has_its_line_in_the_runbook() -> None:
    assert re.findall(r"^\| `(Mcp\w+)` \|", RUNBOOK, re.MULTILINE) == [rule["alert"] for rule in alerts()]


def promtool(*arguments: str) -> str:
    program = shutil.which("promtool") or pytest.skip("promtool is not installed (Debian: prometheus)")
    done = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=START_WITHIN, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.real("servers")
def test_promtool_accepts_alerts_and_queries(tmp_path: Path) -> None:
    assert f"{len(alerts())} rules found" in promtool("check", "rules", str(RULES))
    rules = [{"record": f"panel:{number}", "expr": query} for number, query in enumerate(queries().values())]
    path = tmp_path / "panels.json"
    path.write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}), encoding="utf-8")
    promtool("check", "rules", str(path))


def series(name: str, values: str, **labels: str) -> dict[str, str]:
    pairs = {"job": "mcp-gateway", "instance": "gw", **labels}
    selector = ",".join(f'{key}="{value}"' for key, value in pairs.items())
    return {"series": f"{name}{{{selector}}}", "values": values}


STATE = "mcp_gateway_backend_state"
CALLS = "mcp_gateway_calls_total"
BUCKET = "mcp_gateway_call_duration_seconds_bucket"
FIRING: dict[str, tuple[list[dict[str, str]], dict[str, str]]] = {
    "McpGatewayDown": ([series("up", "0x30")], {}),
    "McpBackendUnavailable": (
        [
            series(STATE, "1x10 0x20", backend="a", state="backoff"),
            series(STATE, "0x10 1x20", backend="a", state="failed"),
            series(STATE, "1x30", backend="b", state="ready"),
            series(STATE, "0x27 1 1 1", backend="b", state="failed"),
        ],
        {"backend": "a"},
    ),
    "McpBackendRestarts": (
        [
            series("mcp_gateway_backend_restarts_total", "0+1x30", backend="a"),
            series("mcp_gateway_backend_restarts_total", "0x28 1 2 2", backend="b"),
        ],
        {"backend": "a"},
    ),
    "McpCallsFail": (
        [
            series(CALLS, "0+8x30", backend="a", outcome="answered"),
            series(CALLS, "0+2x30", backend="a", outcome="failed"),
            series(CALLS, "0+99x30", backend="b", outcome="answered"),
            series(CALLS, "0+1x30", backend="b", outcome="error"),
            series(CALLS, "0x29 1", backend="c", outcome="failed"),
        ],
        {"backend": "a"},
    ),
    "McpCallsSlow": (
        [
            series(BUCKET, "0+9x30", backend="a", le="30.0"),
            series(BUCKET, "0+10x30", backend="a", le="60.0"),
            series(BUCKET, "0+10x30", backend="a", le="+Inf"),
            series("mcp_gateway_call_duration_seconds_count", "0+10x30", backend="a"),
            series(BUCKET, "0+10x30", backend="b", le="30.0"),
            series(BUCKET, "0+10x30", backend="b", le="+Inf"),
            series("mcp_gateway_call_duration_seconds_count", "0+10x30", backend="b"),
        ],
        {"backend": "a"},
    ),
    "McpQueueNotEmpty": (
        [
            series("mcp_gateway_backend_queued", "3x30", backend="a"),
            series("mcp_gateway_backend_queued", "9x28 0 9 9", backend="b"),
        ],
        {"backend": "a"},
    ),
    "McpCallsRefused": (
        [
            series("mcp_gateway_calls_refused_total", "0+2x30", backend="a", reason="busy"),
            series("mcp_gateway_calls_refused_total", "0+9x30", backend="", reason="unknown_name"),
        ],
        {"backend": "a", "reason": "busy"},
    ),
    "McpClientsDoNotRead": ([series("mcp_gateway_unsent_bytes", "200000000x30")], {}),
    "McpLinesDropped": (
        [series("mcp_gateway_audit_lines_dropped_total", "0x25 5x5"),
         series("mcp_gateway_log_lines_dropped_total", "7x30")],
        {},
    ),
    "McpReloadRefused": ([series("mcp_gateway_reloads_total", "0x25 1x5", outcome="refused")], {"outcome": "refused"}),
    "McpFileDescriptors": ([series("process_open_fds", "900x30"), series("process_max_fds", "1024x30")], {}),
}  # fmt: skip
"""For each alert, series on which it fires after half an hour, and labels of its only instance besides the target's."""


@pytest.mark.real("servers")
def test_each_alert_fires_for_its_backend_alone(tmp_path: Path) -> None:
    rules = {rule["alert"]: rule for rule in alerts()}
    assert FIRING.keys() == rules.keys()
    tests: list[dict[str, Any]] = []
    for name, (given, labels) in FIRING.items():
        expected = labels | {"instance": "gw", "severity": rules[name]["labels"]["severity"]}
        if " by (" not in rules[name]["expr"]:
            expected["job"] = "mcp-gateway"
        tests.append({
            "interval": "1m",
            "input_series": given,
            "alert_rule_test": [
                {"eval_time": "30m", "alertname": name, "exp_alerts": [{"exp_labels": expected}]},
            ],
        })  # fmt: skip
    for rule in rules.values():
        del rule["annotations"]
    (tmp_path / "rules.json").write_text(json.dumps({"groups": [{"name": "x", "rules": [*rules.values()]}]}))
    path = tmp_path / "tests.json"
    path.write_text(json.dumps({"rule_files": ["rules.json"], "tests": tests}), encoding="utf-8")
    promtool("test", "rules", str(path))
