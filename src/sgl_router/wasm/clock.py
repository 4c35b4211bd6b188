"""The clock that bounds guests: a timer of the system's, advancing an engine's epoch.

The obvious clock is a Python thread that sleeps and calls `increment_epoch`. But each time it
wakes it needs the GIL, and while it waits for it, every foreign call that the event loop makes
hands the GIL over and takes it back through the kernel: measured on the proxy's hot path, a
thread that woke every millisecond made a request with a plugin cost half as much again. So the
timer calls wasmtime itself (POSIX `timer_create` with SIGEV_THREAD): no Python runs for a tick, and
ticks are exact however busy the interpreter is. A forked child has no such timer.

The C library makes a short-lived thread for each tick. That costs two to five percent of a core
while the clock runs, and it says nothing where a thread cannot be made (a limit on processes) or
comes late (a machine under load). A Python thread that looks once a second is the net below it: it
ends a call that the timer missed.
"""

import ctypes
import os
import threading
import time
from collections.abc import Callable

import wasmtime
from wasmtime import _ffi

TICK_NS = 1_000_000
"""One tick of the epoch, the unit of every limit: a millisecond."""

PARK_AFTER_SECS = 35.0
"""Longer than the longest call that is allowed, so that the clock never parks during one."""

LOOK_SECS = 1.0
"""How often the watching thread looks, and how late it finds a call that should have ended."""

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


class EpochClock:
    """Advances the epoch of `engine` by one tick for each millisecond, while anybody asks.

    It parks when no call has been announced for a while, so that an idle router sleeps.
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
        self._advance = _advance_function()
        self._engine = engine
        self._calls: dict[int, tuple[float, int]] = {}  # by thread: when it should end, its limit
        self._used_at = time.monotonic()
        self._ticking = False
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._set(TICK_NS)
        self._watch = threading.Thread(target=self._run, name="wasm-clock", daemon=True)
        self._watch.start()

    @property
    def ticking(self) -> bool:
        """Whether it runs, or is parked or closed."""
        return self._ticking

    @property
    def closed(self) -> bool:
        return self._closed.is_set()

    def announce(self, limit_ms: int) -> None:
        """A call that may take `limit_ms` is about to begin: from here on the epoch advances."""
        self._used_at = now = time.monotonic()
        self._calls[threading.get_ident()] = (now + limit_ms / 1000, limit_ms)
        if not self._ticking:
            with self._lock:
                self._set(TICK_NS)

    def finished(self) -> None:
        """The call that this thread announced last has ended."""
        self._calls.pop(threading.get_ident(), None)

    def close(self) -> None:
        """Stop; nothing may be called any more. A second time it does nothing."""
        if self.closed:
            return
        self._closed.set()
        self._watch.join()
        with self._lock:
            self._set(0)
            self._check(self._libc.timer_delete(self._timer))

    def _run(self) -> None:
        while not self._closed.wait(LOOK_SECS):
            now = time.monotonic()
            for ends_at, limit_ms in list(self._calls.values()):
                if now > ends_at + LOOK_SECS:
                    for _ in range(limit_ms + 1):
                        self._advance(self._engine.ptr())
            if self._ticking and now - self._used_at > PARK_AFTER_SECS:
                self._park()

    def _park(self) -> None:
        """In this order: a call that is announced meanwhile either is seen here, or sees this."""
        with self._lock:
            self._ticking = False
            if time.monotonic() - self._used_at > PARK_AFTER_SECS:
                self._set(0)
            else:
                self._ticking = True

    def _set(self, interval_ns: int) -> None:
        spec = _TimerSpec(interval_ns=interval_ns, value_ns=interval_ns)
        self._check(self._libc.timer_settime(self._timer, 0, ctypes.byref(spec), None))
        self._ticking = interval_ns > 0

    def _check(self, result: int) -> None:
        if result != 0:
            number = ctypes.get_errno()
            raise OSError(number, f"the timer for plugins' limits: {os.strerror(number)}")


def _advance_function() -> Callable[[object], None]:
    """`wasmtime_engine_increment_epoch`, keeping the GIL: it is one atomic addition."""
    library = ctypes.PyDLL(_ffi.dll._name, handle=_ffi.dll._handle)
    function = library["wasmtime_engine_increment_epoch"]
    function.restype = None
    return function
