"""`ConsistentHashing` and `PrefixHash`: what belongs together goes to one worker.

Workers stand on a ring, each at 150 places that follow from its URL; a key belongs to the first
worker at or after the key's own place (Karger et al. 1997). A worker that comes or goes changes the
owners of its own share of the keys only, and routers side by side agree without a word. A worker
with too much to do is passed over (consistent hashing with bounded loads, Mirrokni et al. 2018).
"""

import hashlib
import struct
from abc import abstractmethod
from bisect import bisect_left
from collections.abc import Iterator

from sgl_router.core.policy import Policy
from sgl_router.core.registry import WorkerView
from sgl_router.core.request import RequestView
from sgl_router.core.worker import Worker
from sgl_router.policies.pools import PerPool, Roster, eligible_loads, less_loaded_of_two

VIRTUAL_NODES = 150
"""Places of a worker on the ring: shares differ by about a twelfth (1/√150)."""

PREFIX_CHARACTERS = 1_024
"""Of a prompt, what stands for it: most system prompts, and the first message after a short one."""

_LOAD_FACTOR = 1.25
_LOAD_SLACK = 10  # so that a pool with little to do is not reshuffled by chance

_POINTS = struct.Struct(f"<{VIRTUAL_NODES}Q")
_ARCS = 256
_ARC_BITS = 56


class Ring:
    """The places of some workers, cut into 256 arcs, so that a change touches short lists only.

    To sort the places of a thousand workers anew would take as long as a hundred requests.
    """

    def __init__(self) -> None:
        self._points: list[list[int]] = [[] for _ in range(_ARCS)]  # each ascending
        self._owners: list[list[Worker]] = [[] for _ in range(_ARCS)]  # of the same points

    def add(self, worker: Worker) -> None:
        for point in _points_of(worker):
            points, owners = self._points[point >> _ARC_BITS], self._owners[point >> _ARC_BITS]
            at = bisect_left(points, point)
            points.insert(at, point)
            owners.insert(at, worker)

    def remove(self, worker: Worker) -> None:
        for point in _points_of(worker):
            points, owners = self._points[point >> _ARC_BITS], self._owners[point >> _ARC_BITS]
            at = owners.index(worker, bisect_left(points, point))
            del points[at], owners[at]

    def walk(self, point: int) -> Iterator[Worker]:
        """The owners from this point on, once round; a worker comes as often as it stands there."""
        arc = point >> _ARC_BITS
        at = bisect_left(self._points[arc], point)
        yield from self._owners[arc][at:]
        for step in range(1, _ARCS):
            yield from self._owners[(arc + step) % _ARCS]
        yield from self._owners[arc][:at]


class _Pool:
    """The ring of one pool, and where its members stand in the views."""

    __slots__ = ("ring", "roster")

    def __init__(self) -> None:
        self.ring = Ring()
        self.roster = Roster()

    def update(self, workers: WorkerView) -> None:
        before = self.roster.places
        if self.roster.update(workers):
            places = self.roster.places
            for worker in before:
                if worker not in places:
                    self.ring.remove(worker)
            for worker in places:
                if worker not in before:
                    self.ring.add(worker)


class _Hashing(Policy):
    """The owner of a key on the ring; the less loaded of two at random where there is no key.

    Workers that are not eligible, or have more than 1.25 times the mean of requests in flight and
    10 more than it, are passed over for the next on the ring.
    """

    needs = frozenset({"body"})

    def __init__(self) -> None:
        self._pools = PerPool(_Pool)

    @abstractmethod
    def _key(self, request: RequestView) -> str | None: ...

    def select_worker(self, workers: WorkerView, request: RequestView) -> int:
        key = self._key(request)
        if not key:
            return less_loaded_of_two(workers, request.entropy)
        pool = self._pools.of(workers)
        pool.update(workers)
        places, healthy = pool.roster.places, workers.healthy
        limit: float = _LOAD_SLACK  # below any that follows from a mean
        bounded = False
        for worker in pool.ring.walk(_point_of(key)):
            if not healthy[places[worker]]:
                continue
            if worker.load > limit and not bounded:
                mean = sum(eligible_loads(workers)) / len(workers.eligible)
                limit, bounded = max(_LOAD_FACTOR * mean, mean + _LOAD_SLACK), True
            if worker.load <= limit:
                return places[worker]
        raise AssertionError("an eligible worker's load is not above the mean of them all")


class ConsistentHashing(_Hashing):
    """The worker that owns the request's routing key, else its session, else its prompt's head."""

    name = "consistent_hashing"

    def _key(self, request: RequestView) -> str | None:
        return request.session or _head(request)


class PrefixHash(_Hashing):
    """The worker that owns the head of the request's prompt."""

    name = "prefix_hash"

    def _key(self, request: RequestView) -> str | None:
        return _head(request)


def _head(request: RequestView) -> str | None:
    text = request.text
    return text[:PREFIX_CHARACTERS] if text else None


def _point_of(key: str) -> int:
    digest = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _points_of(worker: Worker) -> tuple[int, ...]:
    return _POINTS.unpack(hashlib.shake_128(worker.url.encode()).digest(_POINTS.size))
