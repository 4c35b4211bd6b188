"""`RoundRobin`: each in turn."""

from bisect import bisect_right

from sgl_router.core.policy import Policy
from sgl_router.core.registry import WorkerView
from sgl_router.core.request import RequestView
from sgl_router.core.worker import Worker
from sgl_router.policies.pools import PerPool


class _Turn:
    """Whose turn it was in one pool.

    Attributes:
        view: what the last decision saw of the pool.
        last: the place in it of the worker chosen; -1 before the first.
    """

    __slots__ = ("last", "view")

    def __init__(self) -> None:
        self.view: WorkerView | None = None
        self.last = -1


class RoundRobin(Policy):
    """The next eligible worker in the pool's order; each pool has its own turn.

    It remembers the worker, not a count, so that a worker that goes or returns makes nobody's
    turn come twice, and nobody's left out.
    """

    name = "round_robin"

    def __init__(self) -> None:
        self._pools = PerPool(_Turn)

    def select_worker(self, workers: WorkerView, request: RequestView) -> int:
        turn = self._pools.of(workers)
        if workers is not turn.view:
            if turn.view is not None:
                turn.last = _carried_over(tuple(turn.view), turn.last, tuple(workers))
            turn.view = workers
        eligible = workers.eligible
        turn.last = last = eligible[bisect_right(eligible, turn.last) % len(eligible)]
        return last


def _carried_over(before: tuple[Worker, ...], last: int, members: tuple[Worker, ...]) -> int:
    """The place among `members` after which it goes on; -1: at the first.

    That of the last worker chosen, or where it is gone, of the nearest one before it that is not.
    """
    if before == members:
        return last
    places = {worker: place for place, worker in enumerate(members)}
    return next((places[w] for w in reversed(before[: last + 1]) if w in places), -1)
