"""A router's metrics without the router, read back as Prometheus would read them."""

from dataclasses import dataclass, field

from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from sgl_router.core.decision import Decision
from sgl_router.core.policy import Outcome, Policy
from sgl_router.core.registry import WorkerRegistry, WorkerView
from sgl_router.core.request import RequestView
from sgl_router.core.shadow import ShadowReport
from sgl_router.core.worker import Health, Worker
from sgl_router.errors import DecisionError
from sgl_router.telemetry import Sources, Telemetry
from sgl_router.wasm.status import PluginStatus

CHAT = "/v1/chat/completions"


class Named(Policy):
    """The first worker, under any name."""

    def __init__(self, name: str = "first") -> None:
        self.name = name

    def select_worker(self, workers: WorkerView, request: RequestView) -> int:
        return workers.eligible[0]


@dataclass
class Readings:
    """What the sources say."""

    running: int = 0
    waiting: int = 0
    client_connections: int = 0
    kept_connections: int = 0
    plugins: list[PluginStatus] = field(default_factory=list)
    shadow: ShadowReport | None = None


class Bench:
    """The metrics of a router with some workers."""

    def __init__(self, workers: int = 1) -> None:
        self.registry = WorkerRegistry()
        self.workers = [Worker(f"http://engine-{i}:8000", Health.UP) for i in range(workers)]
        for worker in self.workers:
            self.registry.add(worker)
        self.readings = Readings()
        self.telemetry = Telemetry(
            self.registry,
            Sources(
                running=lambda: self.readings.running,
                waiting=lambda: self.readings.waiting,
                client_connections=lambda: self.readings.client_connections,
                kept_connections=lambda: self.readings.kept_connections,
                plugins=lambda: self.readings.plugins,
                shadow=lambda: self.readings.shadow,
            ),
        )

    def finish(
        self,
        worker: Worker | None = None,
        *,
        path: str = CHAT,
        policy: str = "first",
        failure: DecisionError | None = None,
        elapsed_ns: int = 2_300,
        status: int | None = 200,
        ttft_ms: float | None = 80.0,
        duration_ms: float = 480.0,
        chunks: int = 5,
        error: str | None = None,
        engine_ok: bool | None = True,
    ) -> None:
        """A request has ended."""
        worker = worker or self.workers[0]
        success = error is None and status is not None and status < 500
        self.telemetry.observe(
            Decision(worker, Named(policy), None, failure, 1, 2, elapsed_ns, path),
            Outcome(worker.url, success, status, ttft_ms, duration_ms, chunks, error, engine_ok),
        )

    def page(self, accept: str) -> tuple[bytes, str]:
        """The whole page and its content type."""
        pieces, content_type = self.telemetry.pieces(accept)
        return b"".join(pieces), content_type

    def families(self) -> dict[str, Metric]:
        """All families by name, as the library's parser names them: counters without `_total`."""
        page, content_type = self.page("")
        assert content_type == "text/plain; version=0.0.4; charset=utf-8"
        return {family.name: family for family in text_string_to_metric_families(page.decode())}

    def samples(self, name: str) -> list[Sample]:
        """Those of one name, such as `sgl_router_ttft_seconds_sum`."""
        found = [s for family in self.families().values() for s in family.samples]
        return [sample for sample in found if sample.name == f"sgl_router_{name}"]

    def values(self, name: str, label: str) -> dict[str, float]:
        """Samples of one name by one of their labels, added up over the others."""
        values: dict[str, float] = {}
        for sample in self.samples(name):
            key = sample.labels[label]
            values[key] = values.get(key, 0) + sample.value
        return values

    def value(self, name: str, **labels: str) -> float:
        """The one sample with these labels and no others."""
        (value,) = [s.value for s in self.samples(name) if s.labels == labels]
        return value
