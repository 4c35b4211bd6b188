"""What several policies need: a memory for each pool of workers, and the least of some figures."""

from collections.abc import Callable, Sequence
from itertools import compress
from typing import Generic, TypeVar

from sgl_router.core.registry import Pool, WorkerView
from sgl_router.core.worker import Worker

T = TypeVar("T")

_MAX_POOLS = 1_024
"""Pools remembered at a time; there is one for each role and model, and models come and go."""


class PerPool(Generic[T]):
    """Something for each pool: the workers of one role that serve one model.

    One policy may decide for several: for each model its own workers, and for the two halves of a
    request that is prefilled here and decoded there.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._made: dict[Pool, T] = {}

    def of(self, workers: WorkerView) -> T:
        """What is remembered of this pool; made when it is first asked for."""
        pool = workers.pool
        found = self._made.get(pool)
        if found is None:
            if len(self._made) >= _MAX_POOLS:
                del self._made[next(iter(self._made))]
            found = self._made[pool] = self._make()
        return found


class Roster:
    """The members of one pool, and where each stands in its views.

    Views are made anew whenever the state of a worker changes; who is in them, and in which order,
    changes only when workers come or go.
    """

    def __init__(self) -> None:
        self.members: tuple[Worker, ...] = ()
        self.places: dict[Worker, int] = {}
        self._view: WorkerView | None = None

    def update(self, workers: WorkerView) -> bool:
        """Look at a view; True where its members are not those of the one before."""
        if workers is self._view:
            return False
        self._view = workers
        members = tuple(workers)
        if members == self.members:
            return False
        self.members = members
        self.places = {worker: place for place, worker in enumerate(members)}
        return True


def eligible_loads(workers: WorkerView) -> list[int]:
    """The requests in flight on each eligible worker, in the order of `workers.eligible`."""
    return [worker.load for worker in compress(workers, workers.healthy)]


def least_loaded(workers: WorkerView, entropy: int) -> int:
    """The index of the worker with the fewest requests in flight; see `least` for equals."""
    loads = eligible_loads(workers)
    try:
        packed = bytearray(loads)  # is searched six times as fast as a list
    except ValueError:  # more than 255 on one of them
        return workers.eligible[least(loads, entropy)]
    lowest = next(load for load in range(256) if load in packed)
    return workers.eligible[_one_of(packed, lowest, entropy)]


def least(values: Sequence[float], entropy: int) -> int:
    """The position of the least value; any one of those that are equal, all equally likely."""
    return _one_of(values, min(values), entropy)


def _one_of(values: Sequence[float], value: float, entropy: int) -> int:
    """A position of this value, found by halving: to count is quick, to look at each is not."""
    ties = values.count(value)
    nth = entropy % ties
    low, high = 0, len(values)
    while ties < high - low:  # the one is between them, with `nth` others before it
        middle = (low + high) // 2
        before = values[low:middle].count(value)
        if nth < before:
            high, ties = middle, before
        else:
            low, ties, nth = middle, ties - before, nth - before
    return low + nth


def less_loaded_of_two(workers: WorkerView, entropy: int) -> int:
    """The less loaded of two different random workers (Mitzenmacher 2001); the first on a tie."""
    one, other = two_of(workers.eligible, entropy)
    return other if workers[other].load < workers[one].load else one


def two_of(indexes: Sequence[int], entropy: int) -> tuple[int, int]:
    """Two different ones of these, each ordered pair equally likely; the only one twice."""
    count = len(indexes)
    rest, first = divmod(entropy, count)
    if count == 1:
        return indexes[0], indexes[0]
    second = rest % (count - 1)
    second += second >= first  # skips `first`, so that the two differ
    return indexes[first], indexes[second]
