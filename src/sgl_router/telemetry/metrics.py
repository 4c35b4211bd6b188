"""`Telemetry`: counts what the router does, and shows it to Prometheus.

A finished request costs one look-up and one tuple here; they are counted many at a time. What can
be read when the metrics are asked for is read then (`gauges.py`, `plugins.py`).
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial

from prometheus_client import CollectorRegistry, Metric, ProcessCollector
from prometheus_client.registry import Collector

from sgl_router.core.decision import Decision
from sgl_router.core.policy import Outcome
from sgl_router.core.registry import WorkerRegistry
from sgl_router.core.request import ENDPOINTS
from sgl_router.core.worker import Worker
from sgl_router.errors import DecisionError
from sgl_router.telemetry import catalogue as of
from sgl_router.telemetry.accumulators import MAX_VALUES, Count, Histogram, Tally, scaled
from sgl_router.telemetry.exposition import Labels, counter, encode, histogram
from sgl_router.telemetry.gauges import Gauges, Sources
from sgl_router.telemetry.plugins import Plugins

_MS, _NS = 1_000, 1_000_000_000
"""To a second."""

_DURATION_MS = scaled(of.DURATION.bounds, _MS)
_TTFT_MS = scaled(of.TTFT.bounds, _MS)
_GAP_MS = scaled(of.GAP.bounds, _MS)
_DECISION_NS = scaled(of.DECISION.bounds, _NS)

_Counts = defaultdict[Labels, Count]
_Histograms = defaultdict[Labels, Histogram]


FOLDED_AT_ONCE = 256
"""Requests that are kept before they are counted: together that costs a fraction of one by one."""

_Sample = tuple[float, int, float | None, int]
"""Duration in ms, decision in ns, time to the first byte in ms, pieces of the answer."""


@dataclass(slots=True)
class _Series:
    """What requests that are alike are added to; `samples` are those that are not counted yet."""

    requests: Count
    worker_requests: Count
    duration: Histogram
    decision: Histogram
    ttft: Histogram
    gap: Histogram
    chunks: Count
    successful: bool
    samples: list[_Sample] = field(default_factory=list)

    def fold(self) -> None:
        """Count the samples."""
        samples, self.samples = self.samples, []
        if not samples:
            return
        durations, decisions, _, _ = zip(*samples, strict=True)
        self.requests.value += len(samples)
        self.worker_requests.value += len(samples)
        self.duration.add(durations, _DURATION_MS)
        self.decision.add(decisions, _DECISION_NS)
        if not self.successful:
            return
        begun = [sample for sample in samples if sample[2] is not None]
        self.chunks.value += sum([chunks for _, _, _, chunks in begun])
        self.ttft.add([ttft for _, _, ttft, _ in begun if ttft is not None], _TTFT_MS)
        gaps = [
            (duration - ttft) / (chunks - 1)
            for duration, _, ttft, chunks in begun
            if chunks > 1 and ttft is not None
        ]
        self.gap.add(gaps, _GAP_MS)


_Key = tuple[str, Worker | None, str, int | None, bool, bool | None]
"""Path, worker, policy, hundreds of the status, whether there was no error, `engine_ok`."""


class Telemetry(Collector):
    """The metrics of one router.

    Args:
        registry: the workers; what was counted for one goes with it.
        sources: what is neither of workers nor counted here.
    """

    def __init__(self, registry: WorkerRegistry, sources: Sources) -> None:
        self._workers = registry
        self._series: dict[_Key, _Series] = {}
        self._requests: _Counts = defaultdict(Count)
        self._worker_requests: defaultdict[Worker | None, _Counts] = defaultdict(
            partial(defaultdict, Count)
        )
        self._durations = _histograms(of.DURATION)
        self._ttfts = _histograms(of.TTFT)
        self._gaps = _histograms(of.GAP)
        self._chunks: _Counts = defaultdict(Count)
        self._decisions = _histograms(of.DECISION)
        self._policies: set[str] = set()
        self._failures: _Counts = defaultdict(Count)
        self._retries = Tally()
        self._errors = Tally()
        self._aborted = Count()
        self._collectors = CollectorRegistry(auto_describe=True)
        self._collectors.register(self)
        self._collectors.register(Gauges(registry, sources))
        self._collectors.register(Plugins(sources.plugins, sources.shadow))
        ProcessCollector(registry=self._collectors)
        registry.on_remove.append(self._forget)

    # ---- counting

    def observe(self, decision: Decision, outcome: Outcome) -> None:
        """Count one placement that has ended; made for `Dispatcher.on_complete`."""
        failure = decision.failure
        status = outcome.status
        key = (
            decision.path,
            decision.worker,
            decision.policy.name if failure is None else self._count_failure(failure),
            status and status // 100,
            outcome.error is None,
            outcome.engine_ok,
        )
        series = self._series.get(key) or self._resolve(key)
        samples = series.samples
        samples.append(
            (outcome.duration_ms, decision.elapsed_ns, outcome.ttft_ms, outcome.output_chunks)
        )
        if len(samples) >= FOLDED_AT_ONCE:
            series.fold()

    def count_retry(self, reason: str) -> None:
        """A request is tried again; `reason` is one of a few words."""
        self._retries.add(reason)

    def count_error(self, code: str) -> None:
        """The router has answered an error itself; `code` is `RequestError.code`."""
        self._errors.add(code)

    def count_aborted(self) -> None:
        """A client has left before its answer was complete."""
        self._aborted.value += 1

    def _count_failure(self, failure: DecisionError) -> str:
        """Count a policy's failure; returns its name, under which its decision is counted too."""
        policy = self._known_policy(failure.policy)
        self._failures[policy, failure.kind].value += 1
        return policy

    def _resolve(self, key: _Key) -> _Series:
        """The series of requests that are not known yet, or not by this key."""
        path, worker, policy, hundreds, without_error, engine_ok = key
        if path not in ENDPOINTS:  # clients must not be able to make up values of a label
            path = of.OTHER
        if worker is not None and self._workers.get(worker.url) is not worker:
            worker = None  # it has left: its label must not come back
        policy = self._known_policy(policy)
        known = (path, worker, policy, hundreds, without_error, engine_ok)
        series = self._series.get(known)
        if series is None:
            status, outcome = _status(hundreds), _outcome(without_error, engine_ok)
            series = self._series[known] = _Series(
                requests=self._requests[path, status, outcome],
                worker_requests=self._worker_requests[worker][status, outcome],
                duration=self._durations[path, outcome],
                decision=self._decisions[(policy,)],
                ttft=self._ttfts[(path,)],
                gap=self._gaps[(path,)],
                chunks=self._chunks[(path,)],
                successful=hundreds == 2,
            )
        return series

    def _known_policy(self, policy: str) -> str:
        if policy not in self._policies:
            if len(self._policies) >= MAX_VALUES:
                return of.OTHER
            self._policies.add(policy)
        return policy

    def _forget(self, worker: Worker) -> None:
        self._fold()
        self._worker_requests.pop(worker, None)
        self._series = {key: series for key, series in self._series.items() if key[1] is not worker}

    # ---- showing

    def pieces(self, accept: str) -> tuple[Iterator[bytes], str]:
        """The page in pieces and its content type, by the request's `Accept`, which may be empty.

        With a thousand workers the page takes tens of milliseconds; between two pieces an event
        loop can do other work.
        """
        return encode(self._collectors, accept)

    def _fold(self) -> None:
        for series in self._series.values():
            series.fold()

    def collect(self) -> Iterator[Metric]:
        """What has been counted; of the client library's interface."""
        self._fold()
        yield from counter(of.REQUESTS, _values(self._requests))
        yield from counter(
            of.WORKER_REQUESTS,
            (
                ((of.REMOVED if worker is None else worker.url, *labels), value)
                for worker, counts in self._worker_requests.items()
                for labels, value in _values(counts)
            ),
        )
        yield from histogram(of.DURATION, self._durations.items(), _MS)
        yield from histogram(of.TTFT, self._ttfts.items(), _MS)
        yield from histogram(of.GAP, self._gaps.items(), _MS)
        yield from counter(of.CHUNKS, _values(self._chunks))
        yield from counter(of.RETRIES, _tallied(self._retries))
        yield from counter(of.ERRORS, _tallied(self._errors))
        yield from counter(of.ABORTED, [((), self._aborted.value)])
        yield from histogram(of.DECISION, self._decisions.items(), _NS)
        yield from counter(of.POLICY_FAILURES, _values(self._failures))


def _status(hundreds: int | None) -> str:
    if hundreds is None:
        return "none"
    return f"{hundreds}xx" if 1 <= hundreds <= 5 else of.OTHER


def _outcome(without_error: bool, engine_ok: bool | None) -> str:
    if without_error:
        return "complete"
    return "stopped" if engine_ok is None else "failed"


def _histograms(described: of.Described) -> _Histograms:
    return defaultdict(partial(Histogram, len(described.bounds)))


def _values(counts: _Counts) -> Iterator[tuple[Labels, int]]:
    return ((labels, count.value) for labels, count in counts.items())


def _tallied(tally: Tally) -> Iterator[tuple[Labels, int]]:
    return (((value,), count) for value, count in tally.counts.items())
