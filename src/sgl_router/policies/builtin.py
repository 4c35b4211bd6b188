"""The built-in policies.

Each is a function of the workers and of the decision's 53 bits of entropy; none draws randomness
of its own, so that a recorded decision can be replayed.
"""

from bisect import bisect_right

from sgl_router.core.policy import Policy
from sgl_router.core.registry import WorkerView
from sgl_router.core.request import RequestView


class Random(Policy):
    """Any eligible worker, all equally likely."""

    name = "random"

    def select_worker(self, workers: WorkerView, request: RequestView) -> int:
        return workers.eligible[request.entropy % len(workers.eligible)]


class RoundRobin(Policy):
    """The next eligible worker in the pool's order.

    It remembers the worker, not a count, so that a worker that goes or returns makes nobody's
    turn come twice.
    """

    name = "round_robin"

    def __init__(self) -> None:
        self._last = -1

    def select_worker(self, workers: WorkerView, request: RequestView) -> int:
        eligible = workers.eligible
        self._last = eligible[bisect_right(eligible, self._last) % len(eligible)]
        return self._last


class PowerOfTwo(Policy):
    """The less loaded of two different random workers (Mitzenmacher 2001); the first on a tie."""

    name = "power_of_two"

    def select_worker(self, workers: WorkerView, request: RequestView) -> int:
        eligible = workers.eligible
        count = len(eligible)
        rest, first = divmod(request.entropy, count)
        if count == 1:
            return eligible[0]
        second = rest % (count - 1)
        second += second >= first  # skips `first`, so that the two differ
        one, other = eligible[first], eligible[second]
        return other if workers[other].load < workers[one].load else one


class LeastLoad(Policy):
    """The worker with the fewest requests in flight, a random one among equals."""

    name = "least_load"

    def select_worker(self, workers: WorkerView, request: RequestView) -> int:
        loads = [workers[i].load for i in workers.eligible]
        least = min(loads)
        ties = loads.count(least)
        if ties == 1:
            return workers.eligible[loads.index(least)]
        at = -1
        for _ in range(request.entropy % ties + 1):
            at = loads.index(least, at + 1)
        return workers.eligible[at]


BUILTIN_POLICIES: tuple[type[Policy], ...] = (Random, RoundRobin, PowerOfTwo, LeastLoad)
