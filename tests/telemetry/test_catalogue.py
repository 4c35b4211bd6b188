"""`docs/metrics.md`, the catalogue and what is exported say the same."""

import re
from pathlib import Path

import pytest
from prometheus_client.utils import floatToGoString

from sgl_router.core.request import ENDPOINTS
from sgl_router.core.worker import Circuit, EngineMetrics, Health
from sgl_router.errors import DecisionError
from sgl_router.telemetry.catalogue import CATALOGUE, Described
from tests.admin.plugin_control import plugin, report
from tests.telemetry.bench import Bench

PAGE = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
HISTOGRAMS = [described for described in CATALOGUE if described.kind == "histogram"]

ids = pytest.mark.parametrize("described", CATALOGUE, ids=lambda described: described.name)


def test_the_document_has_every_metric_and_no_other() -> None:
    rows = re.findall(r"^\| `(sgl_router_\w+)` \| (\w+) \| (.*?) ?\| (.*) \|$", PAGE, re.MULTILINE)
    assert rows == [
        (
            described.name,
            described.kind,
            ", ".join(f"`{label}`" for label in described.labels),
            described.help,
        )
        for described in CATALOGUE
    ]


def test_the_document_has_the_buckets() -> None:
    rows = re.findall(r"^\| `(sgl_router_\w+)` \| ([-\d., e]+) \|$", PAGE, re.MULTILINE)
    assert {name: [float(bound) for bound in bounds.split(", ")] for name, bounds in rows} == {
        described.name: list(described.bounds) for described in HISTOGRAMS
    }


def test_the_document_has_the_values_of_labels() -> None:
    (paths,) = re.findall(r"^\| `path` \| (.*), and `other` \|$", PAGE, re.MULTILINE)
    assert sorted(paths.split(", ")) == sorted(f"`{path}`" for path in ENDPOINTS)
    (healths,) = re.findall(r"^\| `health` \| (.*) \|$", PAGE, re.MULTILINE)
    assert healths == ", ".join(f"`{health.value}`" for health in Health)
    (numbers,) = [described.help for described in CATALOGUE if "circuit" in described.name]
    assert all(circuit.value.replace("_", " ") in numbers for circuit in Circuit)


def test_the_document_names_all_of_the_process() -> None:
    exported = {name for name in Bench().families() if name.startswith("process_")}
    named = {name.removesuffix("_total") for name in re.findall(r"`(process_\w+)`", PAGE)}
    assert named == exported


def test_nothing_is_exported_that_is_not_in_the_catalogue() -> None:
    exported = {
        (f"{family.name}_total" if family.type == "counter" else family.name, family.type)
        for name, family in Bench().families().items()
        if not name.startswith("process_")
    }
    assert exported == {(described.name, described.kind) for described in CATALOGUE}


@ids
def test_what_is_exported_is_as_described(described: Described) -> None:
    bench = Bench()
    bench.workers[0].ttft_ms = 1.0
    bench.workers[0].metrics = EngineMetrics(1, 1, 0.5, 1)
    bench.finish(failure=DecisionError("mine", "trap", "unreachable"))
    bench.telemetry.count_retry("connection")
    bench.telemetry.count_error("unknown_url")
    bench.readings.plugins = [plugin("mine")]
    bench.readings.shadow = report("mine", 0.5, "regular")
    family = bench.families()[described.name.removesuffix("_total")]
    assert family.documentation == described.help
    assert family.samples
    for sample in family.samples:
        assert sample.labels.keys() - {"le"} == set(described.labels)
    bounds = [s.labels["le"] for s in family.samples if s.name.endswith("_bucket")]
    expected = [*map(floatToGoString, described.bounds), "+Inf"] if described.bounds else []
    assert bounds == expected


@ids
def test_names_and_texts_keep_prometheus_conventions(described: Described) -> None:
    assert re.fullmatch(r"sgl_router_[a-z_]+", described.name)
    assert described.name.endswith("_total") == (described.kind == "counter")
    assert bool(described.bounds) == (described.kind == "histogram")
    assert described.kind != "histogram" or described.name.endswith("_seconds")
    assert not re.search(r"_(ms|millis|percent|count|bucket|sum)\b", described.name)
    assert not described.name.endswith("_info") or described.kind == "gauge"
    assert re.fullmatch(r"[A-Z0-9].*\.", described.help)
    assert not {"path", "worker"} <= set(described.labels), "no products of the two"
    assert "model" not in described.labels


@pytest.mark.parametrize("described", HISTOGRAMS, ids=lambda described: described.name)
def test_bounds_ascend(described: Described) -> None:
    assert list(described.bounds) == sorted(set(described.bounds))
    assert described.bounds[0] > 0
