"""The alert rules in deploy/: each speaks of metrics and labels that exist, and of commands that exist."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

import click
import pytest
import yaml
from prometheus_client.metrics import MetricWrapperBase

from cli.main import root
from tokenfleet import telemetry

ROOT: Final = Path(__file__).resolve().parent.parent
FILE: Final = ROOT / "deploy" / "prometheus" / "tokenfleet.rules.yml"
RULES: Final[list[dict[str, Any]]] = [
    rule for group in yaml.safe_load(FILE.read_text(encoding="utf-8"))["groups"] for rule in group["rules"]
]
METRICS: Final = [each for each in vars(telemetry).values() if isinstance(each, MetricWrapperBase)]
SUFFIXES: Final = {"gauge": [""], "counter": ["_total"], "histogram": ["_bucket", "_count", "_sum"]}
SAMPLES: Final = {
    f"{family.name}{suffix}": set(metric._labelnames)
    for metric in METRICS
    for family in metric.describe()
    for suffix in SUFFIXES[family.type]
}
"""What can be asked for, with its labels."""


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: str(rule["alert"]))
def test_a_rule_asks_for_what_the_fleet_tells(rule: dict[str, Any]) -> None:
    asked = re.findall(r"tokenfleet_\w+", rule["expr"])
    assert asked
    assert set(asked) <= SAMPLES.keys()
    known = set().union(*(SAMPLES[name] for name in asked)) | {"le"}
    grouped = re.findall(r"by \(([^)]*)\)", rule["expr"])
    named = {label.strip() for labels in grouped for label in labels.split(",")}
    selected = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)\s*\"", rule["expr"]))
    assert named | selected <= known
    # What a sentence names must have survived the aggregation.
    told = set(re.findall(r"\$labels\.(\w+)", str(rule["annotations"])))
    assert told <= named


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: str(rule["alert"]))
def test_a_rule_says_what_is_wrong_and_how_urgent_it_is(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in {"page", "warn"}
    assert set(rule["annotations"]) == {"summary", "description"}
    assert re.fullmatch(r"\d+[mh]", rule.get("for", "1m"))
    for command in re.findall(r"`tokenfleet ([^`]*)`", rule["annotations"]["description"]):
        found: click.Command | None = root
        for word in command.split():
            assert isinstance(found, click.Group)
            found = found.get_command(click.Context(root), word)
            assert found is not None, command


def test_what_an_app_can_suffer_from_has_an_alert() -> None:
    told = " ".join(rule["expr"] for rule in RULES)
    for metric in (
        telemetry.INCIDENTS_OPEN,
        telemetry.APPS_HELD,
        telemetry.CIRCUITS_OPEN,
        telemetry.BUDGET_SLACK,
        telemetry.APPS_PAUSED,
    ):
        assert [family.name for family in metric.describe() if family.name in told]
