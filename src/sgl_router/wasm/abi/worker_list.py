"""The list of workers in a plugin's input: what changes is filled into what stays.

Of a worker's object only a few numbers change from one decision to the next. Everything else is
encoded once for each view of the pool, as pieces of bytes with a gap for each number; a decision
then encodes the numbers of all workers at once, and joins them with the pieces.
"""

from collections.abc import Collection, Sequence

import orjson

from sgl_router.core.registry import WorkerView
from sgl_router.core.request import CHARACTERS_PER_TOKEN, RequestView
from sgl_router.core.worker import Worker

MAX_KEPT_VIEWS = 64
"""A pool has a view for each role and model, made anew when a worker's state changes."""

_METRICS = ("queued", "running", "kv_usage", "metrics_age_ms")
_NO_METRICS = (None,) * len(_METRICS)

_Frame = tuple[tuple[Worker, ...], list[bytes]]
"""The workers of a view, and the pieces; at odd places stand the numbers of the last decision."""


class WorkerListEncoder:
    """Encodes the workers for one plugin; one thread's at a time.

    A view's workers are encoded as they are when it is seen first, but for the numbers: so what
    else changes of a worker has to come with a new view (`WorkerRegistry.changed`).

    Args:
        needs: what the plugin's manifest asks for, of which these are the workers':
            `pending_tokens`, `prefix_match`, `engine_metrics` and `worker_info`.
    """

    def __init__(self, needs: Collection[str]) -> None:
        self._pending_tokens = "pending_tokens" in needs
        self._prefix_match = "prefix_match" in needs
        self._engine_metrics = "engine_metrics" in needs
        self._worker_info = "worker_info" in needs
        self._gaps: list[str] = ["load"]
        if self._pending_tokens:
            self._gaps.append("pending_tokens")
        if self._prefix_match:
            self._gaps.append("prefix_match")
        if self._engine_metrics:
            self._gaps += _METRICS
        if self._worker_info:
            self._gaps.append("ttft_ms")
        self._loads_only = len(self._gaps) == 1
        self._frames: dict[WorkerView, _Frame] = {}

    def encode(self, workers: WorkerView, request: RequestView) -> bytes:
        """A JSON array of an object for each worker."""
        frame = self._frames.get(workers)
        if frame is None:
            frame = self._frame(workers)
            if not request.excluded:  # a view for a request that is tried again is not seen twice
                self._keep(workers, frame)
        pool, pieces = frame
        if not pool:
            return b"[]"
        if self._loads_only:
            numbers: list[float | None] = [worker.load for worker in pool]
        else:
            numbers = self._numbers(pool, request)
        pieces[1::2] = orjson.dumps(numbers)[1:-1].split(b",")
        return b"".join(pieces)

    def _numbers(self, pool: Sequence[Worker], request: RequestView) -> list[float | None]:
        """What stands in the gaps, worker after worker."""
        numbers: list[float | None] = []
        prefix = request.prefix
        for worker in pool:
            numbers.append(worker.load)
            if self._pending_tokens:
                numbers.append(worker.pending_tokens)
            if self._prefix_match:
                held = 0 if prefix is None else prefix.of(worker)
                numbers.append(held // CHARACTERS_PER_TOKEN)
            if self._engine_metrics:
                said = worker.metrics
                if said is None:
                    numbers += _NO_METRICS
                else:
                    age_ms = max(0, request.now_ms - said.at_ms)  # clocks are set back at times
                    numbers += (said.queued, said.running, said.kv_usage, age_ms)
            if self._worker_info:
                numbers.append(worker.ttft_ms)
        return numbers

    def _keep(self, workers: WorkerView, frame: _Frame) -> None:
        if len(self._frames) >= MAX_KEPT_VIEWS:
            self._frames.clear()  # most of them are of views that are gone
        self._frames[workers] = frame

    def _frame(self, workers: WorkerView) -> _Frame:
        pieces: list[bytes] = []
        between = b"["
        for worker, healthy in zip(workers, workers.healthy, strict=True):
            for key in self._gaps:
                if key == self._gaps[0]:
                    between += self._fixed(worker, healthy)
                pieces += (b'%b,"%b":' % (between, key.encode("ascii")), b"")
                between = b""
            between = b"},"
        pieces.append(b"}]")
        return tuple(workers), pieces

    def _fixed(self, worker: Worker, healthy: bool) -> bytes:
        """What does not change of a worker's object, without its closing brace."""
        fixed: dict[str, object] = {"url": worker.url, "healthy": healthy}
        if self._worker_info:
            fixed["id"] = worker.id
            fixed["weight"] = worker.weight
            fixed["labels"] = {_text(key): _text(label) for key, label in worker.labels.items()}
        return orjson.dumps(fixed)[:-1]


def _text(text: str) -> str:
    """The same without lone surrogates, which a settings file can spell and UTF-8 cannot."""
    return text.encode("utf-8", "replace").decode("utf-8")
