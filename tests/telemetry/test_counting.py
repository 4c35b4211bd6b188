"""What a finished request is counted as."""

import gc

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram

from sgl_router.core.dispatch import Dispatcher
from sgl_router.core.policy import Outcome
from sgl_router.core.request import ENDPOINTS, RequestView
from sgl_router.core.worker import Health, Worker
from sgl_router.errors import DecisionError, FailureKind
from sgl_router.telemetry import catalogue
from sgl_router.telemetry.accumulators import MAX_VALUES
from tests.telemetry.bench import CHAT, Bench, Named


def test_a_stream() -> None:
    bench = Bench()
    bench.finish()
    assert bench.value("requests_total", path=CHAT, status="2xx", outcome="complete") == 1
    url = bench.workers[0].url
    assert bench.value("worker_requests_total", worker=url, status="2xx", outcome="complete") == 1
    assert bench.value("request_duration_seconds_sum", path=CHAT, outcome="complete") == 0.48
    assert bench.value("ttft_seconds_sum", path=CHAT) == 0.08
    assert bench.value("inter_chunk_seconds_sum", path=CHAT) == 0.1
    assert bench.value("output_chunks_total", path=CHAT) == 5
    assert bench.value("decision_seconds_sum", policy="first") == pytest.approx(2.3e-6)
    for name in ("request_duration", "ttft", "inter_chunk", "decision"):
        assert len(bench.samples(f"{name}_seconds_count")) == 1
        assert bench.samples(f"{name}_seconds_count")[0].value == 1
    assert not bench.samples("policy_failures_total")


@pytest.mark.parametrize(
    ("status", "label"),
    [
        *((None, "none"), (0, "other"), (99, "other"), (600, "other"), (999, "other")),
        *((100, "1xx"), (200, "2xx"), (299, "2xx"), (302, "3xx"), (429, "4xx"), (599, "5xx")),
    ],
)
def test_statuses(status: int | None, label: str) -> None:
    bench = Bench()
    bench.finish(status=status)
    assert bench.values("requests_total", "status") == {label: 1}
    assert bench.values("worker_requests_total", "status") == {label: 1}


@pytest.mark.parametrize(
    ("error", "engine_ok", "label"),
    [
        (None, True, "complete"),
        (None, False, "complete"),
        (None, None, "complete"),
        ("it broke off", False, "failed"),
        ("it broke off", True, "failed"),
        ("the client left", None, "stopped"),
    ],
)
def test_outcomes(error: str | None, engine_ok: bool | None, label: str) -> None:
    bench = Bench()
    bench.finish(error=error, engine_ok=engine_ok)
    assert bench.values("requests_total", "outcome") == {label: 1}
    assert bench.values("worker_requests_total", "outcome") == {label: 1}
    assert bench.values("request_duration_seconds_count", "outcome") == {label: 1}


def test_only_successful_answers_tell_of_tokens() -> None:
    """The body of an error is no token, and would make the engine look quick."""
    bench = Bench()
    for status in (None, 302, 404, 429, 500):
        bench.finish(status=status)
    bench.finish(ttft_ms=None, chunks=0)
    bench.finish(ttft_ms=60.0, chunks=1)
    assert bench.values("ttft_seconds_count", "path") == {CHAT: 1}
    assert bench.values("ttft_seconds_sum", "path") == {CHAT: 0.06}
    assert bench.values("output_chunks_total", "path") == {CHAT: 1}
    assert bench.values("inter_chunk_seconds_count", "path") == {CHAT: 0}
    assert bench.values("request_duration_seconds_count", "outcome") == {"complete": 7}


def test_a_stream_that_breaks_off_has_had_a_first_token() -> None:
    bench = Bench()
    bench.finish(error="it broke off", engine_ok=False)
    assert bench.values("ttft_seconds_count", "path") == {CHAT: 1}
    assert bench.values("inter_chunk_seconds_count", "path") == {CHAT: 1}


def test_a_policy_that_fails() -> None:
    """Its own time and its fallback's are one decision of its own."""
    bench = Bench()
    failure = DecisionError("mine", "timeout", "stopped after 100 ms")
    for _ in range(2):
        bench.finish(policy="power_of_two", failure=failure, elapsed_ns=100_000_000)
    bench.finish(policy="mine", failure=None, elapsed_ns=5_000)
    assert bench.value("policy_failures_total", policy="mine", kind="timeout") == 2
    assert bench.values("decision_seconds_count", "policy") == {"mine": 3}
    assert bench.values("decision_seconds_sum", "policy")["mine"] == pytest.approx(0.200005)


def test_a_plugin_that_is_not_asked() -> None:
    """Its quarantine is a failure of its own kind: the fallback decided."""
    bench = Bench()
    kinds: tuple[FailureKind, ...] = ("trap", "quarantined", "quarantined")
    for kind in kinds:
        bench.finish(policy="power_of_two", failure=DecisionError("mine", kind, "too often"))
    assert bench.values("policy_failures_total", "kind") == {"trap": 1, "quarantined": 2}
    assert bench.values("decision_seconds_count", "policy") == {"mine": 3}


def test_what_the_gateway_tells() -> None:
    bench = Bench()
    for reason in ("connection", "status_503", "connection"):
        bench.telemetry.count_retry(reason)
    bench.telemetry.count_error("no_available_workers")
    bench.telemetry.count_aborted()
    assert bench.values("retries_total", "reason") == {"connection": 2, "status_503": 1}
    assert bench.values("errors_total", "code") == {"no_available_workers": 1}
    assert bench.value("aborted_requests_total") == 1


# ---- against the client library

QUARTERS = st.integers(0, 8_000_000).map(lambda quarters: quarters / 4)
"""Milliseconds; quarters, because both sides then round alike."""

TIMES = st.lists(
    st.tuples(QUARTERS, QUARTERS, st.integers(0, 40), st.integers(0, 2_000_000_000)), max_size=40
)


def library_buckets(bounds: tuple[float, ...], seconds: list[float]) -> dict[str, float]:
    registry = CollectorRegistry()
    histogram = Histogram("h", "Its own.", registry=registry, buckets=bounds)
    for value in seconds:
        histogram.observe(value)
    (family,) = registry.collect()
    return {s.labels["le"]: s.value for s in family.samples if s.name == "h_bucket"}


@given(TIMES)
def test_histograms_are_the_librarys(times: list[tuple[float, float, int, int]]) -> None:
    bench = Bench()
    for ttft, rest, chunks, elapsed in times:
        bench.finish(
            ttft_ms=ttft, duration_ms=ttft + rest * (chunks - 1 or 1), chunks=chunks,
            elapsed_ns=elapsed,
        )  # fmt: skip
    expected = {
        catalogue.DURATION: [(t + rest * (n - 1 or 1)) / 1000 for t, rest, n, _ in times],
        catalogue.TTFT: [ttft / 1000 for ttft, *_ in times],
        catalogue.GAP: [rest / 1000 for _, rest, chunks, _ in times if chunks > 1],
        catalogue.DECISION: [elapsed / 1e9 for *_, elapsed in times],
    }
    families = bench.families()
    for described, seconds in expected.items():
        samples = families[described.name].samples
        buckets = {s.labels["le"]: s.value for s in samples if s.name.endswith("_bucket")}
        total = sum(s.value for s in samples if s.name.endswith("_sum"))
        assert buckets == (library_buckets(described.bounds, seconds) if times else {})
        assert total == pytest.approx(sum(seconds))


@pytest.mark.parametrize(
    "described", [catalogue.DURATION, catalogue.TTFT, catalogue.GAP, catalogue.DECISION]
)
def test_a_value_on_a_bound_is_not_above_it(described: catalogue.Described) -> None:
    name = described.name.removeprefix("sgl_router_")
    for i, bound in enumerate(described.bounds):
        ms = round(bound * 1_000, 6)
        for above in (0, 1e-3):
            bench = Bench()
            bench.finish(
                ttft_ms=0.0 if described is catalogue.GAP else ms + above,
                duration_ms=ms + above, chunks=2, elapsed_ns=round((ms + above) * 1_000_000),
            )  # fmt: skip
            if described is catalogue.DECISION and above:
                continue
            cumulative = [sample.value for sample in bench.samples(f"{name}_bucket")]
            assert cumulative.index(1) == i + (above > 0)


# ---- bounds


def test_clients_cannot_make_up_paths() -> None:
    bench = Bench()
    for i in range(10_000):
        bench.finish(path=f"/v1/{i}")
    bench.finish(path="/v1/messages")
    assert bench.values("requests_total", "path") == {"other": 10_000, "/v1/messages": 1}
    # Nor is what they made up remembered.
    held = [item for item in gc.get_objects() if type(item) is tuple]
    assert not [item for item in held if any(type(x) is str and x == "/v1/77" for x in item)]


def test_the_number_of_series_is_bounded() -> None:
    """It grows with workers and paths by sums, not by products."""
    bench = Bench(workers=20)
    for worker in bench.workers:
        for path in ENDPOINTS | {"/v1/unknown"}:
            for status in (None, 200, 302, 404, 500, 999):
                for error, engine_ok in ((None, True), ("left", None), ("broke", False)):
                    bench.finish(worker, path=path, status=status, error=error, engine_ok=engine_ok)
    paths, endings = len(ENDPOINTS) + 1, 6 * 3
    assert len(bench.samples("requests_total")) == paths * endings
    assert len(bench.samples("worker_requests_total")) == 20 * endings
    assert len(bench.samples("request_duration_seconds_count")) == paths * 3


@pytest.mark.parametrize(
    ("metric", "label"),
    [
        ("retries_total", "reason"),
        ("errors_total", "code"),
        ("decision_seconds_count", "policy"),
        ("policy_failures_total", "policy"),
    ],
)
def test_labels_of_unknown_values_are_bounded(metric: str, label: str) -> None:
    bench = Bench()
    for i in range(3 * MAX_VALUES):
        bench.telemetry.count_retry(f"reason-{i}")
        bench.telemetry.count_error(f"code-{i}")
        bench.finish(failure=DecisionError(f"plugin-{i}", "trap", "unreachable"))
    values = bench.values(metric, label)
    assert len(values) == MAX_VALUES + 1
    assert values.pop("other") == 2 * MAX_VALUES
    assert set(values.values()) == {1}


def test_policies_are_bounded_though_plugins_come_and_go() -> None:
    bench = Bench()
    for i in range(3 * MAX_VALUES):
        bench.finish(policy=f"plugin-{i}")
    counts = bench.values("decision_seconds_count", "policy")
    assert len(counts) == MAX_VALUES + 1
    assert counts["other"] == 2 * MAX_VALUES


# ---- workers that leave


def test_a_worker_that_leaves_takes_its_labels_along() -> None:
    bench = Bench(workers=2)
    gone, stays = bench.workers
    for worker in bench.workers:
        bench.finish(worker)
    bench.registry.remove(gone)
    page, _ = bench.page("")
    assert gone.url not in page.decode()
    assert stays.url in page.decode()
    assert bench.values("requests_total", "path") == {CHAT: 2}, "what it did stays done"


def test_requests_that_outlive_their_worker() -> None:
    bench = Bench(workers=2)
    gone = bench.workers[0]
    bench.finish(gone)
    bench.registry.remove(gone)
    for _ in range(3):
        bench.finish(gone)
    assert bench.values("worker_requests_total", "worker") == {"removed": 3}
    again = Worker(gone.url, Health.UP)
    bench.registry.add(again)
    bench.finish(gone)
    bench.finish(again)
    assert bench.values("worker_requests_total", "worker") == {"removed": 4, again.url: 1}


def test_a_worker_that_left_is_not_kept() -> None:
    bench = Bench()
    gone = Worker("http://gone:1", Health.UP)
    bench.registry.add(gone)
    bench.finish(gone)
    bench.registry.remove(gone)
    bench.finish(gone)
    del gone
    gc.collect()
    left = [o for o in gc.get_objects() if isinstance(o, Worker) and o.url == "http://gone:1"]
    assert not left


def test_with_a_dispatcher() -> None:
    """The last request of a worker that is drained is counted for it, and goes with it."""
    bench = Bench(workers=2)
    dispatcher = Dispatcher(
        bench.registry,
        Named(),
        Named("fallback"),
        entropy=lambda: 1,
        now_ms=lambda: 2,
        clock_ns=iter(range(0, 10**6, 1000)).__next__,
        on_complete=bench.telemetry.observe,
    )
    drained = bench.workers[0]
    decisions = [dispatcher.dispatch(RequestView("id", CHAT)) for _ in range(3)]
    bench.registry.set_health(drained, Health.DRAINING)
    for decision in decisions:
        dispatcher.complete(decision, Outcome(drained.url, True, 200, 5.0, 9.0, 3, None))
    assert list(bench.registry) == bench.workers[1:]
    assert bench.values("worker_requests_total", "worker") == {}
    assert bench.values("requests_total", "path") == {CHAT: 3}
    assert bench.values("decision_seconds_count", "policy") == {"first": 3}
