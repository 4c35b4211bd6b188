"""The clock that bounds guests: a timer of the system's for each thread that calls any.

wasmtime ends a call by an epoch: a number of the engine's that compiled code compares, now and
then, with the deadline of its store. The obvious way to advance it is a Python thread that does so
every millisecond; but each time it wakes it needs the GIL, and while it waits for it, every foreign
call that the event loop makes hands the GIL over and takes it back through the kernel. So the timer
calls wasmtime itself (POSIX `timer_create` with SIGEV_THREAD), and it does so once, when a call
should have ended: calls that end before cost a few comparisons.

There is one epoch for all calls of an engine, and timers do not know of each other. So an epoch
that has passed is only a reason to look: wasmtime then asks the thread whose call it is (`_look`),
which goes on unless the time of that very call is up. A tick that comes too early, for another
call, or for one that is over, does nothing.

The C library makes a short-lived thread for each tick, and says nothing where it cannot (a limit on
processes). A Python thread that looks once a second is the net below it. A forked child has no
such timers.
"""

import ctypes
import os
import threading
import weakref
from collections.abc import Callable
from time import monotonic, sleep

import wasmtime
from wasmtime import _ffi

from sgl_router.wasm.calls import advance_epoch

LOOK_SECS = 1.0
"""How often the watching thread looks, and how late a call must be for it: together twice that."""

END_SECS = 5.0
"""How long `EpochClock.close` waits for calls under way: a guest ends when its thread gets a CPU, a
system call that hangs with its disk does not."""

NEVER = float("inf")

_CLOCK_MONOTONIC = 1
_SIGEV_THREAD = 2
_GO_ON, _END = 0, "its time is up".encode("ascii")

_libc = ctypes.CDLL(None, use_errno=True)
_timers = ctypes.PyDLL(None, use_errno=True)  # it keeps the GIL: that takes less than giving it up
_settime = _timers["timer_settime"]
_settime.restype = ctypes.c_int
_new_error = _ffi.dll["wasmtime_error_new"]
_new_error.restype = ctypes.c_size_t
_set_callback = _ffi.dll["wasmtime_store_epoch_deadline_callback"]
_set_callback.restype = None

_Callback = ctypes.CFUNCTYPE(
    ctypes.c_size_t,  # an error, which ends the call, or 0
    ctypes.c_void_p,  # wasmtime_context_t *
    ctypes.c_void_p,  # what was given with the callback
    ctypes.POINTER(ctypes.c_uint64),  # ticks to the next deadline
    ctypes.POINTER(ctypes.c_uint8),  # how to go on: 0 is at once
)


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


class CallTimer:
    """Ends the calls that one thread makes into guests, one after the other.

    Attributes:
        ends_at: when the call under way should end, by `time.monotonic`; `NEVER` between calls.
        expired: whether the last call was ended, for its time or by `end_now`.
    """

    __slots__ = ("__weakref__", "_arguments", "_engine", "_fires_at", "_spec", "ends_at", "expired")

    def __init__(self, engine: wasmtime.Engine) -> None:
        """Raises OSError where the system has no timer left."""
        self._engine = engine
        self._fires_at = 0.0
        self.ends_at = NEVER
        self.expired = False
        timer = ctypes.c_void_p()
        event = _SigEvent(
            value=ctypes.cast(engine.ptr(), ctypes.c_void_p).value,
            notify=_SIGEV_THREAD,
            function=ctypes.cast(_ffi.dll.wasmtime_engine_increment_epoch, ctypes.c_void_p).value,
        )
        _check(_libc.timer_create(_CLOCK_MONOTONIC, ctypes.byref(event), ctypes.byref(timer)))
        weakref.finalize(self, _libc.timer_delete, timer).atexit = False
        self._spec = _TimerSpec()
        self._arguments = (
            ctypes.c_void_p.from_param(timer.value),
            ctypes.c_int.from_param(0),
            ctypes.c_void_p.from_param(ctypes.addressof(self._spec)),
            ctypes.c_void_p.from_param(None),
        )

    def begin(self, limit_secs: float) -> None:
        """A call is about to begin; `ends_at` is to be `NEVER` again when it is over.

        Its store's deadline is an epoch that has come or is the next: a timer that fires between
        this and the call is not lost. Where it is going to fire before the call should end, but not
        soon, it is left alone: setting it is the larger part of what this costs.
        """
        now = monotonic()
        self.expired = False
        self.ends_at = ends_at = now + limit_secs
        if not now + limit_secs / 2 < self._fires_at <= ends_at:
            self._fire_after(limit_secs, ends_at)

    def end_now(self) -> None:
        """End the call under way; from any thread, also from within the call."""
        self.ends_at = 0.0
        advance_epoch(self._engine.ptr())

    def time_is_up(self) -> bool:
        """Whether the call under way should end; it will be asked again when that may be so."""
        now = monotonic()
        ends_at = self.ends_at
        if now >= ends_at:
            self.expired = True
            return True
        if ends_at != NEVER:
            self._fire_after(ends_at - now, ends_at)
        return False

    def _fire_after(self, secs: float, at: float) -> None:
        self._fires_at = at
        spec = self._spec
        spec.value_secs, spec.value_ns = divmod(max(1, int(secs * 1e9)), 1_000_000_000)
        _check(_settime(*self._arguments))


class _Here(threading.local):
    """What each thread has of its own."""

    def __init__(self, new_timer: Callable[[], CallTimer]) -> None:
        self.timer = new_timer()


class EpochClock:
    """Bounds the calls of one engine.

    Args:
        engine: whose epoch is advanced.

    Attributes:
        closed: whether it bounds nothing any more, so that nothing may be called.
        here: its `timer` is of this thread's calls, made when first asked for, which raises OSError
            where the system has none left.
    """

    def __init__(self, engine: wasmtime.Engine) -> None:
        # A tick may be on its way when the last timer is gone: the engine stays, all ten kilobytes.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(engine))
        self._engine = engine
        self._callback = _Callback(self._look)
        self.closed = False
        self._timers: weakref.WeakSet[CallTimer] = weakref.WeakSet()
        self._lock = threading.Lock()
        self.here = _Here(self._new_timer)
        self._stop = threading.Event()
        self._watch = threading.Thread(target=self._run, name="wasm-clock", daemon=True)
        self._watch.start()

    def guard(self, store: wasmtime.Store) -> None:
        """Have the store's calls ask, at each epoch, whether they may go on.

        The clock must outlive the store.
        """
        pointer = ctypes.cast(store.ptr(), ctypes.c_void_p)
        _set_callback(pointer, self._callback, None, None)
        store.set_epoch_deadline(1)

    def _new_timer(self) -> CallTimer:
        timer = CallTimer(self._engine)
        with self._lock:
            self._timers.add(timer)
        return timer

    def late(self, now: float) -> list[CallTimer]:
        """Whose calls should have been ended by their timers by now."""
        with self._lock:
            return [timer for timer in self._timers if now > timer.ends_at + LOOK_SECS]

    def close(self) -> None:
        """End what is under way, wait for its end, and stop. A second time it does nothing.

        A guest that still ran while the interpreter goes would ask, at the next epoch, one that is
        gone, and the process would die of SIGSEGV.
        """
        if self.closed:
            return
        self.closed = True
        self._stop.set()
        self._watch.join()
        give_up_at = monotonic() + END_SECS
        while self._busy() and monotonic() < give_up_at:
            advance_epoch(self._engine.ptr())
            sleep(0.001)

    def _busy(self) -> bool:
        """Whether any call is under way."""
        with self._lock:
            return any(timer.ends_at != NEVER for timer in self._timers)

    def _look(
        self,
        _context: int,
        _data: int,
        ticks: "ctypes._Pointer[ctypes.c_uint64]",
        how: "ctypes._Pointer[ctypes.c_uint8]",
    ) -> int:
        """wasmtime asks whether a call of this thread may go on. Must not raise."""
        timer = self.here.timer
        if self.closed:
            timer.ends_at = 0.0
        if timer.time_is_up():
            error: int = _new_error(_END)
            return error
        ticks[0] = 1
        how[0] = _GO_ON
        return 0

    def _run(self) -> None:
        while not self._stop.wait(LOOK_SECS):
            if self.late(monotonic()):
                advance_epoch(self._engine.ptr())


def _check(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"the timer for plugins' limits: {os.strerror(number)}")
