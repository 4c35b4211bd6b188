"""`Manual`: a key stays with the worker that it was first given."""

import hashlib
from collections import OrderedDict

from sgl_router.core.policy import Policy
from sgl_router.core.registry import WorkerView
from sgl_router.core.request import RequestView
from sgl_router.core.worker import Worker
from sgl_router.policies.pools import PerPool, Roster, less_loaded_of_two

MAX_KEYS = 100_000
"""Pinned at a time, about 220 bytes each: the least recently used gives way."""

_EXPIRED_AT_ONCE = 2


class Manual(Policy):
    """The worker that the request's routing key, else its session, is pinned to.

    A key that is not pinned is pinned to the less loaded of two random workers; so is one whose
    worker is not eligible (it is down, draining, gone, or was tried for this request already), and
    it does not go back when that worker returns. A key that was not used for `max_idle_secs` is
    forgotten. A request without a key goes to the less loaded of two, and is not remembered.

    Args:
        max_idle_secs: sglang-router's default is four hours.
    """

    name = "manual"
    needs = frozenset({"body"})

    def __init__(self, max_idle_secs: float = 14_400.0, max_keys: int = MAX_KEYS) -> None:
        self._max_idle_ms = max_idle_secs * 1000
        self._max_keys = max_keys
        self._rosters = PerPool(Roster)
        # key -> its worker, and when it was last used; the least recently used first
        self._pins: OrderedDict[bytes, tuple[Worker, int]] = OrderedDict()

    def select_worker(self, workers: WorkerView, request: RequestView) -> int:
        session = request.session
        if not session:
            return less_loaded_of_two(workers, request.entropy)
        now_ms = request.now_ms
        self._expire(now_ms)
        key = _key(session, workers)
        roster = self._rosters.of(workers)
        roster.update(workers)
        pin = self._pins.pop(key, None)
        place = None
        if pin is not None and now_ms - pin[1] <= self._max_idle_ms:
            place = roster.places.get(pin[0])
        if place is None or not workers.healthy[place]:
            place = less_loaded_of_two(workers, request.entropy)
        self._pins[key] = workers[place], now_ms
        if len(self._pins) > self._max_keys:
            self._pins.popitem(last=False)
        return place

    def _expire(self, now_ms: int) -> None:
        """Forget some of what is too old; two for each that may come, so that it gets less."""
        for _ in range(_EXPIRED_AT_ONCE):
            oldest = next(iter(self._pins.values()), None)
            if oldest is None or now_ms - oldest[1] <= self._max_idle_ms:
                return
            self._pins.popitem(last=False)


def _key(session: str, workers: WorkerView) -> bytes:
    """What stands for a session in one pool, of one size however long the session's name is."""
    pool = f"{workers.pool}\0"
    text = (pool + session).encode("utf-8", "surrogatepass")
    return hashlib.blake2b(text, digest_size=16).digest()
