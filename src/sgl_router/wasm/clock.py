"""The clock that bounds guests: a timer of the system's, advancing an engine's epoch.

The obvious clock is a Python thread that sleeps and calls `increment_epoch`. But each time it
wakes it needs the GIL, and while it waits for it, every foreign call that the event loop makes
hands the GIL over and takes it back through the kernel: measured on the proxy's hot path, a
thread that woke every millisecond made a request with a plugin cost half as much again. So the
timer calls wasmtime itself (POSIX `timer_create` with SIGEV_THREAD): no Python runs for a tick, and
ticks are exact however busy the interpreter is. A forked child has no such timer.

The C library makes a short-lived thread for each tick. At a tick a millisecond that costs up to
five percent of a core, and it says nothing where a thread cannot be made (a limit on processes) or
comes late (a machine under load). A Python thread that looks once a second is the net below it: it
ends a call that the timer missed.
"""

import ctypes
import os
import threading
import time
import weakref

import wasmtime
from wasmtime import _ffi

from sgl_router.wasm.calls import advance_epoch

MAX_TICK_MS = 25
"""Each tick makes a thread: at one a millisecond that was a twentieth of what a busy router's CPU
did. So the epoch advances as slowly as the shortest limit in use allows."""

TICKS_PER_LIMIT = 4
"""A call may take a tick longer than its limit: a quarter of it, but for limits under 4 ms."""

PARK_AFTER_SECS = 35.0
"""Longer than the longest call that is allowed, so that the clock never parks during one."""

LOOK_SECS = 1.0
"""How often the watching thread looks, and how late it finds a call that should have ended."""

NEVER = float("inf")

_CLOCK_MONOTONIC = 1
_SIGEV_THREAD = 2


class _SigEvent(ctypes.Structure):
    """`struct sigevent` of Linux on 64 bits (sigevent(3type)); 64 bytes."""

    _fields_ = (
        ("value", ctypes.c_void_p),
        ("signo", ctypes.c_int),
        ("notify", ctypes.c_int),
        ("function", ctypes.c_void_p),
        ("attributes", ctypes.c_void_p),
        ("padding", ctypes.c_byte * 32),
    )


class _TimerSpec(ctypes.Structure):
    """`struct itimerspec`: interval, then time to the first expiry."""

    _fields_ = (
        ("interval_secs", ctypes.c_long),
        ("interval_ns", ctypes.c_long),
        ("value_secs", ctypes.c_long),
        ("value_ns", ctypes.c_long),
    )


class CallTime:
    """When the calls that one user of the clock makes, one after the other, should end.

    Attributes:
        limit_ms: how long each may take.
        ticks: the same in ticks of the epoch, and one more, since the one under way may end at
            once; the clock makes them more when it begins to tick faster.
        ends_at: the end of the one under way, by `time.monotonic`. The user sets it to `NEVER`
            when it is over; until then the watching thread takes it for a call to be ended.
    """

    __slots__ = ("__weakref__", "_clock", "_limit_secs", "ends_at", "limit_ms", "ticks")

    def __init__(self, clock: "EpochClock", limit_ms: int) -> None:
        self._clock = clock
        self._limit_secs = limit_ms / 1000
        self.limit_ms = limit_ms
        self.ticks = 0
        self.ends_at = NEVER

    def begin(self) -> bool:
        """A call is about to begin: from here on the epoch advances.

        False where the clock is closed, so that nothing would end the call.
        """
        clock = self._clock
        clock.used_at = now = time.monotonic()
        self.ends_at = now + self._limit_secs
        return clock.ticking or clock.wake()


class EpochClock:
    """Advances the epoch of `engine` while anybody asks.

    It parks when no call has begun for a while, so that an idle router sleeps.

    Attributes:
        ticking: whether it runs, or is parked or closed.
        tick_ms: how long a tick is.
        used_at: when a call began last, by `time.monotonic`.
    """

    def __init__(self, engine: wasmtime.Engine) -> None:
        """Raises OSError where the system has no timer left."""
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._timer = ctypes.c_void_p()
        address = ctypes.cast(engine.ptr(), ctypes.c_void_p).value
        advance = ctypes.cast(_ffi.dll.wasmtime_engine_increment_epoch, ctypes.c_void_p).value
        event = _SigEvent(value=address, notify=_SIGEV_THREAD, function=advance)
        self._check(
            self._libc.timer_create(
                _CLOCK_MONOTONIC, ctypes.byref(event), ctypes.byref(self._timer)
            )
        )
        # A tick may be on its way when the timer is deleted: the engine stays, all ten kilobytes.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(engine))
        self._engine = engine
        self._calls: weakref.WeakSet[CallTime] = weakref.WeakSet()
        self.used_at = time.monotonic()
        self.ticking = False
        self.tick_ms = MAX_TICK_MS
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._set(self.tick_ms)
        self._watch = threading.Thread(target=self._run, name="wasm-clock", daemon=True)
        self._watch.start()

    def call_time(self, limit_ms: int) -> CallTime:
        """For calls of at most `limit_ms`; the clock forgets it with its last user."""
        made = CallTime(self, limit_ms)
        with self._lock:
            self._calls.add(made)
            finest = max(1, limit_ms // TICKS_PER_LIMIT)
            if finest < self.tick_ms:
                # A call that is under way just now ends early by this: another plugin's, and only
                # if it takes milliseconds, while this one is being loaded.
                self.tick_ms = finest
                if self.ticking:
                    self._set(finest)
            for call in self._calls:
                call.ticks = -(-call.limit_ms // self.tick_ms) + 1
        return made

    def wake(self) -> bool:
        """Go on ticking after having parked; False where it is closed."""
        with self._lock:
            if self._closed.is_set():
                return False
            self._set(self.tick_ms)
            return True

    def late(self, now: float) -> list[int]:
        """The limits, in ticks, of the calls that the timer should have ended by now."""
        with self._lock:
            return [call.ticks for call in self._calls if now > call.ends_at + LOOK_SECS]

    def close(self) -> None:
        """Stop; nothing may be called any more. A second time it does nothing."""
        if self._closed.is_set():
            return
        self._closed.set()
        self._watch.join()
        with self._lock:
            self._set(0)
            self._check(self._libc.timer_delete(self._timer))

    def _run(self) -> None:
        while not self._closed.wait(LOOK_SECS):
            now = time.monotonic()
            for ticks in self.late(now):
                for _ in range(ticks):
                    advance_epoch(self._engine.ptr())
            if self.ticking and now - self.used_at > PARK_AFTER_SECS:
                self._park()

    def _park(self) -> None:
        """In this order: a call that begins meanwhile either is seen here, or sees this."""
        with self._lock:
            self.ticking = False
            if time.monotonic() - self.used_at > PARK_AFTER_SECS:
                self._set(0)
            else:
                self.ticking = True

    def _set(self, tick_ms: int) -> None:
        interval_ns = tick_ms * 1_000_000
        spec = _TimerSpec(interval_ns=interval_ns, value_ns=interval_ns)
        self._check(self._libc.timer_settime(self._timer, 0, ctypes.byref(spec), None))
        self.ticking = tick_ms > 0

    def _check(self, result: int) -> None:
        if result != 0:
            number = ctypes.get_errno()
            raise OSError(number, f"the timer for plugins' limits: {os.strerror(number)}")
