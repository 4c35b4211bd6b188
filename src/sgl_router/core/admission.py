"""How many requests are under way at a time, and who waits for a place.

A true cap: a request holds its place from `enter` until its `leave`, the last byte of its answer;
nothing is refilled by the clock.
"""

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, Literal, TypeVar

T = TypeVar("T", bound=Hashable)

Entry = Literal["admitted", "queued", "refused"]


class Admission(Generic[T]):
    """A cap with a bounded queue in the order of arrival.

    A ticket stands for a request; it may be anything that can be a dictionary's key, and is held
    while it waits, not once it is admitted. All times are seconds of one monotonic clock.

    Args:
        max_concurrent: places, at least one; where there is no limit, there is no Admission.
        queue_size: tickets that may wait; 0: none does.
        queue_timeout_secs: how long a ticket may wait.
    """

    def __init__(self, max_concurrent: int, queue_size: int, queue_timeout_secs: float) -> None:
        assert max_concurrent > 0, "a router that admits nobody is no router"
        self._max_concurrent = max_concurrent
        self._queue_size = queue_size
        self._queue_timeout_secs = queue_timeout_secs
        self._running = 0
        self._waiting: OrderedDict[T, float] = OrderedDict()  # until when each may wait

    @property
    def running(self) -> int:
        """Tickets that have a place."""
        return self._running

    @property
    def waiting(self) -> int:
        """Tickets in the queue."""
        return len(self._waiting)

    def enter(self, ticket: T, now: float) -> Entry:
        """Take a place, or else wait in the queue, or else be refused."""
        assert ticket not in self._waiting, "a ticket waits once"
        if self._running < self._max_concurrent:
            assert not self._waiting, "nobody waits while a place is free"
            self._running += 1
            return "admitted"
        if len(self._waiting) >= self._queue_size:
            return "refused"
        self._waiting[ticket] = now + self._queue_timeout_secs
        return "queued"

    def leave(self) -> T | None:
        """Give a place back, exactly once for each that was had.

        Returns the ticket that has it now, which is admitted by that, or None.
        """
        assert self._running > 0, "no more places are given back than were taken"
        if self._waiting:
            return self._waiting.popitem(last=False)[0]
        self._running -= 1
        return None

    def withdraw(self, ticket: T) -> bool:
        """Stop waiting; False where the ticket was not in the queue (any more)."""
        return self._waiting.pop(ticket, None) is not None

    def expired(self, now: float) -> list[T]:
        """Take those out of the queue who have waited too long; the first to come first."""
        tickets: list[T] = []
        while self._waiting and next(iter(self._waiting.values())) <= now:
            tickets.append(self._waiting.popitem(last=False)[0])
        return tickets
