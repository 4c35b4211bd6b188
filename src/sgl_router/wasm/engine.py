"""The settings of the wasmtime engine; with nothing else, for the process that compiles."""

import wasmtime
from wasmtime import _ffi

MAX_WASM_STACK_BYTES = 128 * 1024


def make_engine() -> wasmtime.Engine:
    """An engine with everything off that a policy does not need."""
    config = wasmtime.Config()
    config.epoch_interruption = True
    config.max_wasm_stack = MAX_WASM_STACK_BYTES
    config.wasm_threads = False
    config.wasm_memory64 = False
    config.wasm_multi_memory = True  # for the driver; a plugin that has two is refused before
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
