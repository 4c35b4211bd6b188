"""`LeastLoad`: where a request waits least."""

from itertools import compress

from sgl_router.core.policy import Policy
from sgl_router.core.registry import WorkerView
from sgl_router.core.request import RequestView
from sgl_router.policies.pools import PerPool, least
from sgl_router.policies.waiting import FRESH_MS, REQUEST_TOKENS, is_fresh, kv_tokens

_SMALL_POOL = 128
_REFRESH_MS = 50
_NEWEST = 0.01


class _Waits:
    """What is remembered of one pool.

    Attributes:
        view: whose waits these are.
        at_ms: when they were computed.
        tokens: of each eligible worker, prompt tokens that it has before it.
        per_request: tokens of a request; a moving average over a hundred or so.
    """

    __slots__ = ("at_ms", "per_request", "tokens", "view")

    def __init__(self) -> None:
        self.view: WorkerView | None = None
        self.at_ms = 0
        self.tokens: list[float] = []
        self.per_request = float(REQUEST_TOKENS)

    def compute(self, workers: WorkerView, now_ms: int, fresh_ms: float) -> None:
        """Ask every eligible worker."""
        self.view, self.at_ms = workers, now_ms
        each = self.per_request
        self.tokens = [
            worker.load * each
            if (metrics := worker.metrics) is None or not is_fresh(metrics, now_ms, fresh_ms)
            else metrics.queued * each + worker.unreported_tokens + kv_tokens(metrics)
            for worker in compress(workers, workers.healthy)
        ]


class LeastLoad(Policy):
    """The worker with the lowest expected wait, a random one among equals.

    By its engine's metrics where they are fresh (`policies/waiting.py`): requests that it has
    queued, at what requests have been long of late, and the tokens that were sent to it since.
    Where an engine reports nothing, each request in flight counts as one queued; where none does,
    that is the least loaded worker.

    In a pool of more than 128, waits are computed every 50 ms; between, each request placed is
    added to its worker's. To ask a thousand workers takes longer than all else that is done for a
    request, and 50 ms are short beside the second at which engines report.

    Args:
        fresh_ms: how old metrics may be.
    """

    name = "least_load"
    needs = frozenset({"engine_metrics", "pending_tokens"})

    def __init__(self, fresh_ms: float = FRESH_MS) -> None:
        self._fresh_ms = fresh_ms
        self._pools = PerPool(_Waits)

    def select_worker(self, workers: WorkerView, request: RequestView) -> int:
        waits = self._pools.of(workers)
        tokens = max(request.prompt_tokens, 1)  # of what is no text, too, one waits for another
        waits.per_request += (tokens - waits.per_request) * _NEWEST
        now_ms = request.now_ms
        if (
            len(workers.eligible) <= _SMALL_POOL
            or workers is not waits.view
            or not 0 <= now_ms - waits.at_ms < _REFRESH_MS
        ):
            waits.compute(workers, now_ms, self._fresh_ms)
        place = least(waits.tokens, request.entropy)
        waits.tokens[place] += tokens
        return workers.eligible[place]
