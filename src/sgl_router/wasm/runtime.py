"""The wasmtime engine, and what all plugins that run in it share."""

import threading

import wasmtime
from wasmtime import _ffi

from sgl_router.wasm.clock import EpochClock

MAX_WASM_STACK_BYTES = 128 * 1024


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
    """Attributes:
    engine: for everything that is compiled and run.
    clock: advances the engine's epoch.
    linking: held while host functions are defined; wasmtime-py hands out their indexes without a
        lock of its own.
    """

    def __init__(self) -> None:
        self.engine = make_engine()
        self.clock = EpochClock(self.engine)
        self.linking = threading.Lock()

    @property
    def closed(self) -> bool:
        """Whether nothing would bound a call any more."""
        return self.clock.closed

    def ticks(self, limit_ms: int) -> int:
        """The epoch deadline of a call that may take `limit_ms`; to be asked before every call."""
        self.clock.announce(limit_ms)
        return limit_ms + 1  # the tick under way may end at once

    def close(self) -> None:
        """Stop the clock; nothing may be called any more."""
        self.clock.close()
