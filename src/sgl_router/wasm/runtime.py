"""The wasmtime engine and the clock that bounds what runs in it."""

import threading
import time

import wasmtime
from wasmtime import _ffi

MAX_WASM_STACK_BYTES = 128 * 1024
TICK_SECS = 0.001
MOST_TICKS = 100
"""At once: after the process was stopped for a while, a call under way is given some more time."""

# Longer than the longest call that is allowed, so that a ticker never parks during one.
_PARK_AFTER_SECS = 35.0


def make_engine() -> wasmtime.Engine:
    """An engine with everything off that a policy does not need."""
    config = wasmtime.Config()
    config.epoch_interruption = True
    config.max_wasm_stack = MAX_WASM_STACK_BYTES
    config.wasm_threads = False
    config.wasm_memory64 = False
    config.wasm_multi_memory = False
    config.wasm_tail_call = False
    config.wasm_relaxed_simd = False
    config.wasm_exceptions = False
    config.wasm_function_references = False
    config.wasm_gc = False
    # With signals a guest's fault is told from a crash by handlers of the process, and whoever
    # installs his own after them (faulthandler does) turns the fault into the process's death.
    # The setting is in the C API but not in wasmtime's Python classes.
    _ffi.dll.wasmtime_config_signals_based_traps_set(config.ptr(), False)
    return wasmtime.Engine(config)


class WasmRuntime:
    """An engine, and a thread that advances its epoch every millisecond.

    The thread parks when no plugin has been called for a while, so that an idle router sleeps.

    Attributes:
        engine: for everything that is compiled and run.
        linking: held while host functions are defined; wasmtime-py hands out their indexes
            without a lock of its own.
    """

    def __init__(self) -> None:
        self.engine = make_engine()
        self.linking = threading.Lock()
        self._used = True
        self._parked = False
        self._wake = threading.Event()
        self._closed = False
        self._ticked_at = time.monotonic()
        self._ticker = threading.Thread(target=self._tick, name="wasm-epochs", daemon=True)
        self._ticker.start()

    def ticks(self, limit_ms: int) -> int:
        """The epoch deadline of a call that may take `limit_ms`; to be asked before every call."""
        self._used = True
        if self._parked:
            self._wake.set()
            return limit_ms + 1  # the tick under way may end at once
        # Ticks that are due already are not this call's.
        late = int((time.monotonic() - self._ticked_at) / TICK_SECS)
        return limit_ms + 1 + min(late, MOST_TICKS)

    def close(self) -> None:
        """Stop the clock; nothing may be called any more."""
        self._closed = True
        self._wake.set()
        self._ticker.join()

    def _elapsed_ticks(self) -> int:
        """Ticks since the last time: a sleep takes longer than asked, under load much longer."""
        now = time.monotonic()
        elapsed = int((now - self._ticked_at) / TICK_SECS)
        self._ticked_at += elapsed * TICK_SECS
        return min(elapsed, MOST_TICKS)

    def _tick(self) -> None:
        park_after = round(_PARK_AFTER_SECS / TICK_SECS)
        ticks = 0
        while not self._closed:
            time.sleep(TICK_SECS)
            for _ in range(self._elapsed_ticks()):
                self.engine.increment_epoch()
            ticks += 1
            if ticks < park_after:
                continue
            ticks = 0
            if self._used:
                self._used = False
                continue
            self._wake.clear()
            self._parked = True
            if not self._used and not self._closed:  # a call may have begun meanwhile
                self._wake.wait()
                self._ticked_at = time.monotonic()
            self._parked = False
