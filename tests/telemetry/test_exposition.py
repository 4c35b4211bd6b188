"""The page that Prometheus gets."""

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as openmetrics_families,
)
from prometheus_client.parser import text_string_to_metric_families

from sgl_router.core.worker import Circuit, EngineMetrics, Health, Worker
from sgl_router.telemetry.exposition import PIECE_SAMPLES
from tests.admin.plugin_control import plugin, report
from tests.telemetry.bench import Bench

PROMETHEUS = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;q=0.4,"
    "text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)
"""What Prometheus 3 sends as `Accept`."""


TEXT = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"


def busy(workers: int = 3) -> Bench:
    """With something in every metric."""
    bench = Bench(workers)
    for worker in bench.workers:
        worker.ttft_ms = 12.5
        worker.metrics = EngineMetrics(3, 4, 0.25, 1_700_000_000_123)
        bench.finish(worker)
    bench.telemetry.count_retry("connection")
    bench.telemetry.count_error("unknown_url")
    bench.telemetry.count_aborted()
    bench.readings.plugins = [plugin("mine"), plugin("other")]
    bench.readings.shadow = report("other", 0.5, "regular")
    return bench


def read(page: str, content_type: str) -> dict[str, Metric]:
    families: Iterable[Metric]
    if content_type.startswith("application/openmetrics-text"):
        families = openmetrics_families(page)  # type: ignore[no-untyped-call] # the library's
    else:
        families = text_string_to_metric_families(page)
    return {family.name: family for family in families}


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("", TEXT),
        ("*/*", TEXT),
        ("text/html,application/xhtml+xml", TEXT),
        (PROMETHEUS, OPENMETRICS),
        ("Application/OpenMetrics-Text", OPENMETRICS),
        ("text/html, application/openmetrics-text", OPENMETRICS),
    ],
)
def test_the_format_that_is_asked_for(accept: str, content_type: str) -> None:
    page, given_type = busy().page(accept)
    assert given_type == content_type
    assert page.endswith(b"\n# EOF\n") == ("openmetrics" in content_type)
    assert page.count(b"# EOF") == ("openmetrics" in content_type)
    assert len(read(page.decode(), given_type)) > 20


def test_both_formats_say_the_same() -> None:
    def values(accept: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
        page, content_type = bench.page(accept)
        return {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in read(page.decode(), content_type).values()
            for sample in family.samples
            if not sample.name.startswith("process_")
        }

    bench = busy()
    assert values("") == values(PROMETHEUS)


@given(st.text(st.characters(codec="latin-1"), max_size=80) | st.sampled_from(
    ["application/openmetrics-text; version=x.y", "application/openmetrics-text;version=",
     "text/plain; version=two", "application/openmetrics-text; version=1.0.0; escaping=\r\nX: y"]
))  # fmt: skip
def test_no_accept_header_raises_or_comes_back(accept: str) -> None:
    page, content_type = Bench().page(accept)
    assert page
    assert content_type in (TEXT, OPENMETRICS)


URLS = st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="?#")).filter(
    lambda tail: not {".", ".."} & set(tail.split("/"))
)


@given(URLS)
def test_any_worker_url_is_written_so_that_it_reads_the_same(tail: str) -> None:
    bench = Bench(workers=0)
    worker = Worker(f"http://engine:1/{tail}", Health.UP)
    bench.registry.add(worker)
    for accept in ("", PROMETHEUS):
        page, content_type = bench.page(accept)
        (sample,) = read(page.decode(), content_type)["sgl_router_worker_healthy"].samples
        assert sample.labels == {"worker": worker.url}


# ---- pieces


@pytest.mark.parametrize("accept", ["", PROMETHEUS])
@pytest.mark.parametrize("workers", [0, 1, PIECE_SAMPLES, PIECE_SAMPLES + 1, 1000])
def test_pieces_are_small_and_make_up_the_page(accept: str, workers: int) -> None:
    bench = busy(workers) if workers else Bench(0)
    pieces = list(bench.telemetry.pieces(accept)[0])
    assert all(piece.count(b"\n") <= PIECE_SAMPLES + 2 for piece in pieces)
    page, content_type = bench.page(accept)

    def without_process(text: bytes) -> list[bytes]:
        return [line for line in text.splitlines() if b"process_" not in line]

    assert without_process(b"".join(pieces)) == without_process(page)
    names = [line.split()[2] for line in page.splitlines() if line.startswith(b"# TYPE")]
    assert len(names) == len(set(names)), "a family is described once"
    healthy = read(page.decode(), content_type)["sgl_router_worker_healthy"].samples
    assert [sample.labels["worker"] for sample in healthy] == [w.url for w in bench.workers]


def test_between_pieces_everything_may_change() -> None:
    bench = busy(PIECE_SAMPLES * 2)
    pieces, _ = bench.telemetry.pieces("")
    page = b""
    for i, piece in enumerate(pieces):
        page += piece
        bench.registry.remove(bench.workers.pop())
        added = Worker(f"http://added-{i}", Health.UP)
        bench.registry.add(added)
        bench.finish(added, path="/rerank", policy=f"policy-{i}", status=None)
    assert read(page.decode(), "text/plain")


# ---- gauges


def test_the_routers_gauges() -> None:
    bench = Bench(workers=5)
    bench.readings.running, bench.readings.waiting = 7, 2
    bench.readings.client_connections, bench.readings.kept_connections = 11, 13
    for worker, health in zip(bench.workers, [*Health, Health.DOWN], strict=True):
        bench.registry.set_health(worker, health)
    assert bench.value("running_requests") == 7
    assert bench.value("waiting_requests") == 2
    assert bench.value("client_connections") == 11
    assert bench.value("kept_connections") == 13
    expected = {"unknown": 1, "up": 1, "down": 2, "draining": 1}
    assert bench.values("workers", "health") == expected
    bench.readings.running = 0
    assert bench.value("running_requests") == 0, "read when it is asked for"


def test_a_workers_gauges() -> None:
    bench = Bench(workers=2)
    worker, other = bench.workers
    worker.load, worker.pending_tokens, worker.ttft_ms = 3, 500, 12.5
    worker.metrics = EngineMetrics(4, 5, 0.75, 1_700_000_000_123)
    other.metrics = EngineMetrics(0, 0, None, 1_700_000_000_124)
    bench.registry.set_circuit(other, Circuit.OPEN)
    expected: dict[str, dict[Worker, float]] = {
        "worker_healthy": {worker: 1, other: 1},
        "worker_circuit_state": {worker: 0, other: 1},
        "worker_running_requests": {worker: 3, other: 0},
        "worker_pending_tokens": {worker: 500, other: 0},
        "worker_ttft_seconds": {worker: 0.0125},
        "worker_engine_queued_requests": {worker: 4, other: 0},
        "worker_engine_running_requests": {worker: 5, other: 0},
        "worker_engine_kv_usage_ratio": {worker: 0.75},
        "worker_engine_report_timestamp_seconds": {
            worker: 1_700_000_000.123,
            other: 1_700_000_000.124,
        },
    }
    for name, values in expected.items():
        assert bench.values(name, "worker") == {w.url: value for w, value in values.items()}, name


@pytest.mark.parametrize(
    ("circuit", "number"), [(Circuit.CLOSED, 0), (Circuit.OPEN, 1), (Circuit.HALF_OPEN, 2)]
)
def test_circuits_have_the_peers_numbers(circuit: Circuit, number: int) -> None:
    bench = Bench()
    bench.registry.set_circuit(bench.workers[0], circuit)
    assert bench.values("worker_circuit_state", "worker") == {bench.workers[0].url: number}


@pytest.mark.parametrize("health", Health)
def test_only_a_worker_that_is_up_is_healthy(health: Health) -> None:
    bench = Bench()
    bench.registry.set_health(bench.workers[0], health)
    expected = {bench.workers[0].url: float(health is Health.UP)}
    assert bench.values("worker_healthy", "worker") == expected


def test_the_process_is_shown_too() -> None:
    families = Bench().families()
    for name in ("process_resident_memory_bytes", "process_open_fds"):
        assert families[name].samples[0].value > 0
