"""What is read off the router when its metrics are asked for."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from prometheus_client import Metric
from prometheus_client.registry import Collector

from sgl_router.core.registry import WorkerRegistry
from sgl_router.core.shadow import ShadowReport
from sgl_router.core.worker import Circuit, EngineMetrics, Health, Worker
from sgl_router.telemetry import catalogue as of
from sgl_router.telemetry.exposition import gauge
from sgl_router.wasm.status import PluginStatus


@dataclass(frozen=True, slots=True)
class Sources:
    """Where all that is not of workers, and not counted here, is read each time anew.

    Attributes:
        running: requests that were admitted and have not ended.
        waiting: requests in the queue for admission.
        client_connections: open connections from clients.
        kept_connections: idle connections to engines.
        plugins: those that are loaded.
        shadow: what the shadow run has counted; None where there is none.
    """

    running: Callable[[], int]
    waiting: Callable[[], int]
    client_connections: Callable[[], int]
    kept_connections: Callable[[], int]
    plugins: Callable[[], Iterable[PluginStatus]] = tuple
    shadow: Callable[[], ShadowReport | None] = lambda: None


_CIRCUIT_NUMBERS = {Circuit.CLOSED: 0, Circuit.OPEN: 1, Circuit.HALF_OPEN: 2}
"""sglang-router's."""


def _ttft_secs(worker: Worker) -> float | None:
    return None if worker.ttft_ms is None else worker.ttft_ms / 1_000


def _said(read: Callable[[EngineMetrics], float | None]) -> Callable[[Worker], float | None]:
    """Reads what a worker's engine last said, where it has said anything."""
    return lambda worker: None if worker.metrics is None else read(worker.metrics)


_OF_WORKERS: tuple[tuple[of.Described, Callable[[Worker], float | None]], ...] = (
    (of.WORKER_HEALTHY, lambda worker: worker.healthy),
    (of.WORKER_CIRCUIT, lambda worker: _CIRCUIT_NUMBERS[worker.circuit]),
    (of.WORKER_RUNNING, lambda worker: worker.load),
    (of.WORKER_PENDING_TOKENS, lambda worker: worker.pending_tokens),
    (of.WORKER_TTFT, _ttft_secs),
    (of.ENGINE_QUEUED, _said(lambda report: report.queued)),
    (of.ENGINE_RUNNING, _said(lambda report: report.running)),
    (of.ENGINE_KV_USAGE, _said(lambda report: report.kv_usage)),
    (of.ENGINE_REPORT_TIME, _said(lambda report: report.at_ms / 1_000)),
)
"""The gauges of each worker; None: it has none."""


class Gauges(Collector):
    """The state of the router, of its workers and of what their engines last said."""

    def __init__(self, registry: WorkerRegistry, sources: Sources) -> None:
        self._workers = registry
        self._sources = sources

    def collect(self) -> Iterator[Metric]:
        sources = self._sources
        yield from gauge(of.RUNNING, [((), sources.running())])
        yield from gauge(of.WAITING, [((), sources.waiting())])
        yield from gauge(of.CLIENT_CONNECTIONS, [((), sources.client_connections())])
        yield from gauge(of.KEPT_CONNECTIONS, [((), sources.kept_connections())])
        healths = [worker.health for worker in self._workers]
        yield from gauge(
            of.WORKERS, [((health.value,), healths.count(health)) for health in Health]
        )
        for described, read in _OF_WORKERS:
            readings = ((worker.url, read(worker)) for worker in self._workers)
            yield from gauge(
                described, (((url,), value) for url, value in readings if value is not None)
            )
