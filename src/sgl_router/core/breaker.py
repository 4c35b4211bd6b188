"""A breaker for each worker: one that fails too often is left alone for a while.

    CLOSED ── failures in the window ─▶ OPEN ── open_secs ─▶ HALF_OPEN ── good probes ─▶ CLOSED
                                          ▲                      │
                                          └───── a bad probe ────┘

A half-open worker is given one request at a time, its probe: the dispatcher marks it (`probing`)
and the registry's views hold the worker back until the probe has ended. Only the probe's own
result counts then: requests that were placed before the breaker opened end late, and what they say
is of the time before.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto

from sgl_router.core.registry import WorkerRegistry
from sgl_router.core.worker import Circuit, Worker


@dataclass(frozen=True, slots=True)
class BreakerSettings:
    """When a breaker opens and closes (defaults: sglang-router's).

    Attributes:
        failures: within `window_secs` open it, where they are at least half of what ended since
            the first of them.
        successes: good probes in a row close it.
        open_secs: how long it is open before the first probe.
        window_secs: how old a failure may be to count.
    """

    failures: int = 10
    successes: int = 3
    open_secs: float = 60.0
    window_secs: float = 120.0


class _Event(Enum):
    FAILURE = auto()
    TIME_OVER = auto()
    GOOD_PROBE = auto()
    BAD_PROBE = auto()


class _Record:
    """What is remembered of a worker that fails.

    Attributes:
        since: when its breaker came into the state that it is in.
        marks: the events that count towards leaving that state, fewer than it takes: when each was,
            and how many requests had ended on the worker by then.
    """

    __slots__ = ("marks", "since")

    def __init__(self, since: float) -> None:
        self.since = since
        self.marks: list[tuple[float, int]] = []


class BreakerTable:
    """The breakers of one registry's workers; forgets those that are removed from it.

    All times are seconds of one monotonic clock, the one that the dispatcher was given.

    Attributes:
        on_change: told of each worker whose breaker has opened, half-opened or closed.
    """

    def __init__(self, registry: WorkerRegistry, settings: BreakerSettings) -> None:
        self.on_change: Callable[[Worker], None] | None = None
        self._registry = registry
        self._settings = settings
        self._records: dict[Worker, _Record] = {}  # of failing workers only
        # (state, event) -> (such events needed, state that follows); others change nothing
        self._transitions = {
            (Circuit.CLOSED, _Event.FAILURE): (settings.failures, Circuit.OPEN),
            (Circuit.OPEN, _Event.TIME_OVER): (1, Circuit.HALF_OPEN),
            (Circuit.HALF_OPEN, _Event.GOOD_PROBE): (settings.successes, Circuit.CLOSED),
            (Circuit.HALF_OPEN, _Event.BAD_PROBE): (1, Circuit.OPEN),
        }
        registry.on_remove.append(self.forget)

    def settle(self, worker: Worker, ok: bool | None, now: float, *, probe: bool = False) -> None:
        """A placement has ended.

        Args:
            worker: the worker that had it.
            ok: True, it answered; False, it failed; None, nothing was learnt.
            now: seconds.
            probe: whether the request was placed on the worker while its breaker was half-open.
        """
        if not probe:
            if ok is False:
                self._count(worker, _Event.FAILURE, now)
        elif worker.circuit is Circuit.HALF_OPEN:
            self._registry.set_circuit(worker, Circuit.HALF_OPEN)  # the next probe may come
            if ok is not None:
                self._count(worker, _Event.GOOD_PROBE if ok else _Event.BAD_PROBE, now)

    def expire(self, now: float) -> None:
        """Half-open the breakers that have been open long enough, and forget old failures."""
        for worker, record in list(self._records.items()):
            if worker.circuit is Circuit.OPEN:
                if now - record.since >= self._settings.open_secs:
                    self._count(worker, _Event.TIME_OVER, now)
            elif worker.circuit is Circuit.CLOSED:
                self._drop_old(record, now)
                if not record.marks:
                    self.forget(worker)

    def forget(self, worker: Worker) -> None:
        """The worker is gone, or nothing is left to remember of it."""
        self._records.pop(worker, None)

    def _count(self, worker: Worker, event: _Event, now: float) -> None:
        transition = self._transitions.get((worker.circuit, event))
        if transition is None:
            return
        record = self._records.get(worker)
        if record is None:
            if self._registry.get(worker.url) is not worker:
                return  # removed while it had the request: nobody would forget it again
            record = self._records[worker] = _Record(now)
        if event is _Event.FAILURE:
            self._drop_old(record, now)
        record.marks.append((now, worker.ended))
        needed, following = transition
        if len(record.marks) < needed:
            return
        if event is _Event.FAILURE and not self._prevail(record.marks):
            del record.marks[0]
        else:
            self._change(worker, following, now)

    def _prevail(self, marks: list[tuple[float, int]]) -> bool:
        """Whether the failures are at least half of what ended since the first of them.

        A busy worker of which one request in ten thousand fails must not be taken out.
        """
        return 2 * len(marks) >= marks[-1][1] - marks[0][1] + 1

    def _change(self, worker: Worker, circuit: Circuit, now: float) -> None:
        self._registry.set_circuit(worker, circuit)
        if circuit is Circuit.CLOSED:
            self.forget(worker)
        else:
            self._records[worker] = _Record(now)
        if self.on_change is not None:
            self.on_change(worker)

    def _drop_old(self, record: _Record, now: float) -> None:
        oldest = now - self._settings.window_secs
        record.marks = [mark for mark in record.marks if mark[0] >= oldest]
