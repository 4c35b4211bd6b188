"""The offload lane: a thread of a plugin's own, for calls that take too long for the event loop.

wasmtime releases the GIL while a guest runs, so that the event loop goes on meanwhile. What goes in
and what comes out is plain data: everything else of a decision is done on the event loop. Calls
wait there too, and each is prepared when the thread is free for it: a decision then knows where
those before it have gone. Prepared when their requests came, all of a burst would see the same
loads, and choose the same worker.
"""

import asyncio
import logging
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Generic, TypeVar

from sgl_router.errors import DecisionError

_R = TypeVar("_R")

_log = logging.getLogger(__name__)

MAX_WAITING = 256
"""Calls under way and waiting: what comes on top would wait for longer than its client."""

IDLE_SECS = 30.0
"""A thread that had nothing to do for so long ends."""

STACK_BYTES = 4 * 1024 * 1024
"""Of the thread: four times what a component may use, and 32 times what a core module may. The
system's own may be much smaller."""

NICENESS = 10
"""The thread's, on top of the process's: where CPUs are scarce, the event loop comes first."""

HANGS_AFTER = 3
HANGS_AFTER_SECS = 1.0
"""A call may wait for its limit, and the one before it and itself may each take as long: who waits
for three times the limit, and a second for a machine under load, waits for a thread that hangs."""

_creating = threading.Lock()


class Job(Generic[_R]):
    """One call.

    Attributes:
        dropped: whether nobody wants its result any more; it need not be begun.
    """

    __slots__ = ("_done", "_loop", "_name", "_prepare", "_run", "begin_by", "dropped")

    def __init__(
        self,
        name: str,
        prepare: Callable[[], Callable[[], _R]],
        done: Callable[[_R | DecisionError | None], None],
        wait_secs: float,
    ) -> None:
        """Made on the event loop.

        Args:
            name: the plugin's.
            prepare: returns, on the event loop, what makes the call on the lane's thread; that
                raises DecisionError.
            done: told on the event loop: of what was returned or raised, of None where the call was
                not made, for it was dropped or has waited too long.
            wait_secs: for how long it may wait.
        """
        self._name = name
        self._prepare = prepare
        self._run: Callable[[], _R] | None = None
        self._done = done
        self._loop = asyncio.get_running_loop()
        self.begin_by = time.monotonic() + wait_secs
        self.dropped = False

    def prepare(self) -> None:
        """On the event loop, when it is about to be made. Raises DecisionError."""
        if not self._is_wanted():
            return
        try:
            self._run = self._prepare()
        except Exception:  # noqa: BLE001 (logged; and what fails is this call only)
            _log.exception("a call of a plugin could not be prepared")
            raise _router_failed(self._name) from None

    def _is_wanted(self) -> bool:
        return not self.dropped and time.monotonic() <= self.begin_by

    def failed(self, error: DecisionError) -> None:
        """On the event loop: it cannot be made."""
        self._done(error.with_traceback(None))

    def make(self) -> None:
        """On the lane's thread."""
        result: _R | DecisionError | None = None
        if self._run is not None and self._is_wanted():
            try:
                result = self._run()
            except DecisionError as error:
                result = error.with_traceback(None)
                error.__context__ = None
            except Exception:  # noqa: BLE001 (the outermost callback of a thread)
                _log.exception("a plugin's thread failed")
                result = _router_failed(self._name)
        try:
            self._loop.call_soon_threadsafe(self._done, result)
        except RuntimeError:  # the loop is closed: nobody waits
            _log.debug("a decision came after the event loop was closed")


def _router_failed(plugin: str) -> DecisionError:
    return DecisionError(plugin, "trap", "the router failed; its log says why")


class _Waits(Generic[_R]):
    """Whoever waits for a job; on the event loop.

    A guest is ended at its limit, but a system call that it has made may hang with the disk that it
    is for. So the thread may be lost, and who waits for it must not be.
    """

    __slots__ = ("_done", "_job", "_lane", "_number", "_timer")

    def __init__(
        self,
        lane: "OffloadLane",
        number: int,
        done: Callable[[_R | DecisionError | None], None],
    ) -> None:
        self._lane = lane
        self._number = number
        self._done: Callable[[_R | DecisionError | None], None] | None = done
        self._job: Job[Any] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, job: Job[Any], secs: float) -> None:
        self._job = job
        self._timer = asyncio.get_running_loop().call_later(secs, self._give_up)

    def told(self, result: _R | DecisionError | None) -> None:
        """Once; what comes after that is not wanted, but the thread is free again."""
        done, self._done = self._done, None
        try:
            if done is not None:
                assert self._timer is not None, "it has begun"
                self._timer.cancel()
                self._timer = self._job = None
                self._lane.waiting -= 1
                done(result)
        finally:
            self._lane.ended(self._number)

    def _give_up(self) -> None:
        assert self._job is not None, "it has begun"
        self._job.dropped = True
        self.told(None)


class OffloadLane:
    """Makes calls one after the other. Used from the event loop; has a thread while it works.

    Attributes:
        waiting: calls that have been submitted and not been told of, the one under way included.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._waiting: deque[tuple[int, Job[Any]]] = deque()
        self._under_way: int | None = None
        self._submitted = 0
        self._closed = False
        # To the thread: None ends it.
        self._jobs: queue.SimpleQueue[Job[Any] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self.waiting = 0

    def submit(
        self,
        prepare: Callable[[], Callable[[], _R]],
        done: Callable[[_R | DecisionError | None], None],
        wait_secs: float,
        *,
        at_once: bool = False,
    ) -> Job[_R]:
        """See `Job`; `done` is told once, and after some time also of a call that never ends.

        `at_once`: it is prepared at this moment, and need not wait for the event loop's turn after
        the call before it.

        Raises DecisionError where too many calls wait, or no thread can be had.
        """
        if self.waiting >= MAX_WAITING:
            raise DecisionError(self._name, "timeout", f"{self.waiting} calls wait for its thread")
        self._submitted += 1
        waits = _Waits(self, self._submitted, done)
        job = Job(self._name, prepare, waits.told, wait_secs)
        self._closed = False
        if at_once:
            self._hand_over(job)
        elif self._under_way is None:
            self._hand_over(job)
            self._under_way = self._submitted
        else:
            self._waiting.append((self._submitted, job))
        self.waiting += 1
        waits.begin(job, HANGS_AFTER * wait_secs + HANGS_AFTER_SECS)
        return job

    def ended(self, number: int) -> None:
        """A call has been made, or nobody waits for it any more: the next one's turn."""
        if number != self._under_way:
            return
        self._under_way = None
        while self._waiting and self._under_way is None:
            number, job = self._waiting.popleft()
            try:
                self._hand_over(job)
            except DecisionError as error:
                job.failed(error)
            else:
                self._under_way = number
        if self._closed and self._under_way is None:
            self._end_thread()

    def close(self) -> None:
        """The thread ends after what has been submitted."""
        self._closed = True
        self._end_thread()

    def _hand_over(self, job: Job[Any]) -> None:
        job.prepare()
        with self._lock:
            if self._thread is None:
                self._thread = self._start()
            self._jobs.put(job)

    def _end_thread(self) -> None:
        with self._lock:
            if self._thread is not None:
                self._jobs.put(None)

    def _start(self) -> threading.Thread:
        thread = threading.Thread(target=self._work, name=f"plugin-{self._name}", daemon=True)
        with _creating:  # the size is the whole process's, for threads made from then on
            before = threading.stack_size(STACK_BYTES)
            try:
                thread.start()
            except RuntimeError as error:
                raise DecisionError(
                    self._name, "trap", f"its thread cannot be started: {error}"
                ) from None
            finally:
                threading.stack_size(before)
        return thread

    def _work(self) -> None:
        with suppress(OSError):  # what filters system calls may not let it; it only is kinder
            os.nice(NICENESS)  # of this thread only, on Linux
        while True:
            job = self._next()
            if job is None:
                return
            job.make()
            del job  # while it waits for the next, it keeps nothing alive

    def _next(self) -> "Job[Any] | None":
        """None where the thread should end."""
        while True:
            try:
                job = self._jobs.get(timeout=IDLE_SECS)
            except queue.Empty:
                job = None
            if job is not None:
                return job
            with self._lock:
                if self._jobs.empty():
                    self._thread = None
                    return None
