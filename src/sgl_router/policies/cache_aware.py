"""`CacheAware`: where most of the prompt has been worked through before."""

from itertools import compress

from sgl_router.core.policy import Policy
from sgl_router.core.prefix_index import MAX_TEXT_CHARACTERS, PrefixMatch
from sgl_router.core.registry import WorkerView
from sgl_router.core.request import RequestView
from sgl_router.policies.pools import PerPool, Roster, eligible_loads, least, least_loaded

_CROWD = 32


class CacheAware(Policy):
    """The worker that was sent most of the request's text before, unless it is overloaded.

    Where more than `cache_threshold` of the text is known: the least loaded of the workers that
    hold most of it. Where less is, or that worker is overloaded: the least loaded one. A random one
    among equals each time. A worker is overloaded whose requests in flight are more than
    `balance_abs_threshold` above the mean and more than `balance_rel_threshold` times the mean: an
    imbalance between others does not cost its conversations their cache.

    Args:
        cache_threshold: share of the text, 0 to 1 (of long texts, of the part that is remembered).
        balance_abs_threshold: requests.
        balance_rel_threshold: a factor.
    """

    name = "cache_aware"
    needs = frozenset({"body", "prefix_match"})

    def __init__(
        self,
        cache_threshold: float = 0.3,
        balance_abs_threshold: float = 64,
        balance_rel_threshold: float = 1.5,
    ) -> None:
        self._cache_threshold = cache_threshold
        self._balance_abs_threshold = balance_abs_threshold
        self._balance_rel_threshold = balance_rel_threshold
        self._rosters = PerPool(Roster)

    def select_worker(self, workers: WorkerView, request: RequestView) -> int:
        match, text = request.prefix, request.text
        if match is not None and text is not None:
            least_known = self._cache_threshold * min(len(text), MAX_TEXT_CHARACTERS)
            if match.characters > least_known:
                holder = self._holder(workers, match, least_known, request.entropy)
                if holder is not None and not self._overloaded(workers, holder):
                    return holder
        return least_loaded(workers, request.entropy)

    def _holder(
        self, workers: WorkerView, match: PrefixMatch, least_known: float, entropy: int
    ) -> int | None:
        """The least loaded of the eligible workers that hold most, if more than `least_known`."""
        if match.holder_count > _CROWD:  # to look at all loads is quicker than to find the holders
            index = least_loaded(workers, entropy)
            if match.holds_most(workers[index]):
                return index
            entropy //= len(workers)  # the rest of it knows nothing of the index
        roster = self._rosters.of(workers)
        roster.update(workers)
        places, healthy = roster.places, workers.healthy
        held = [i for w in match.holders if (i := places.get(w)) is not None and healthy[i]]
        if not held:
            held = _next_holders(workers, match, least_known)
        if not held:
            return None
        held.sort()  # a set's order is another in each process
        return held[least([workers[i].load for i in held], entropy)]

    def _overloaded(self, workers: WorkerView, index: int) -> bool:
        load = workers[index].load
        if load <= self._balance_abs_threshold:
            return False  # as the mean is not below zero
        mean = sum(eligible_loads(workers)) / len(workers.eligible)
        return (
            load > mean + self._balance_abs_threshold and load > mean * self._balance_rel_threshold
        )


def _next_holders(workers: WorkerView, match: PrefixMatch, least_known: float) -> list[int]:
    """The eligible workers that hold most of the text where those that hold more are not eligible.

    It asks for each worker, which is slow for a thousand of them; but then the text is sent to one
    of them, which is the holder from then on.
    """
    depths = [match.of(worker) for worker in compress(workers, workers.healthy)]
    deepest = max(depths)
    if deepest <= least_known:
        return []
    return [i for i, depth in zip(workers.eligible, depths, strict=True) if depth == deepest]
