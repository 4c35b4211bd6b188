"""The built-in policies.

Each is a function of the workers, the request, the time and the decision's 53 bits of entropy, and
of what it remembers of the decisions before; none has a clock or randomness of its own, so that
recorded decisions can be replayed.
"""

from sgl_router.core.policy import Policy
from sgl_router.core.registry import WorkerView
from sgl_router.core.request import RequestView
from sgl_router.core.worker import EngineMetrics, Worker
from sgl_router.policies.cache_aware import CacheAware
from sgl_router.policies.hashing import ConsistentHashing, PrefixHash
from sgl_router.policies.least_load import LeastLoad
from sgl_router.policies.manual import Manual
from sgl_router.policies.pools import two_of
from sgl_router.policies.round_robin import RoundRobin
from sgl_router.policies.waiting import FRESH_MS, REQUEST_TOKENS, is_fresh, kv_tokens


class Random(Policy):
    """Any eligible worker, all equally likely."""

    name = "random"

    def select_worker(self, workers: WorkerView, request: RequestView) -> int:
        return workers.eligible[request.entropy % len(workers.eligible)]


class PowerOfTwo(Policy):
    """The less loaded of two different random workers (Mitzenmacher 2001); the first on a tie.

    Where both have fresh metrics, because something else in the router had them polled, the one
    with the lower expected wait (`policies/waiting.py`). It asks for nothing itself, so that bodies
    are passed on as they arrive: the requests in flight stand for the tokens sent since.

    Args:
        fresh_ms: how old metrics may be.
    """

    name = "power_of_two"

    def __init__(self, fresh_ms: float = FRESH_MS) -> None:
        self._fresh_ms = fresh_ms

    def select_worker(self, workers: WorkerView, request: RequestView) -> int:
        first, second = two_of(workers.eligible, request.entropy)
        one, other = workers[first], workers[second]
        if (
            (metrics := one.metrics) is not None
            and (others := other.metrics) is not None
            and is_fresh(metrics, request.now_ms, self._fresh_ms)
            and is_fresh(others, request.now_ms, self._fresh_ms)
        ):
            return second if _wait(other, others) < _wait(one, metrics) else first
        return second if other.load < one.load else first


def _wait(worker: Worker, metrics: EngineMetrics) -> float:
    return (metrics.queued + worker.load) * REQUEST_TOKENS + kv_tokens(metrics)


BUILTIN_POLICIES: tuple[type[Policy], ...] = (
    Random,
    RoundRobin,
    PowerOfTwo,
    LeastLoad,
    CacheAware,
    ConsistentHashing,
    PrefixHash,
    Manual,
)
