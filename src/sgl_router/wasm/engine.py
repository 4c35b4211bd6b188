"""The settings of the wasmtime engine; with nothing else, for the process that compiles."""

import ctypes

import wasmtime
from wasmtime import _ffi

MAX_WASM_STACK_BYTES = 128 * 1024
MAX_COMPONENT_STACK_BYTES = 1024 * 1024
"""Components hold interpreters, whose own recursion takes several frames for one of a plugin's."""


def make_engine() -> wasmtime.Engine:
    """The engine for core modules, with everything off that a policy does not need."""
    config = _sparse_config()
    config.max_wasm_stack = MAX_WASM_STACK_BYTES
    config.wasm_multi_memory = True  # for the driver; a plugin that has two is refused before
    config.wasm_component_model = False
    return wasmtime.Engine(config)


def make_component_engine() -> wasmtime.Engine:
    """The engine for components, likewise."""
    config = _sparse_config()
    config.max_wasm_stack = MAX_COMPONENT_STACK_BYTES
    config.wasm_multi_memory = False
    config.wasm_component_model = True
    config.wasm_component_model_map = False
    for feature in ("async", "async_stackful", "more_async_builtins"):
        _set(config, f"wasm_component_model_{feature}", False)
    _set(config, "concurrency_support", False)
    return wasmtime.Engine(config)


def _sparse_config() -> wasmtime.Config:
    config = wasmtime.Config()
    config.epoch_interruption = True
    config.wasm_threads = False
    config.wasm_memory64 = False
    config.wasm_tail_call = False
    config.wasm_relaxed_simd = False
    config.wasm_exceptions = False
    config.wasm_function_references = False
    config.wasm_gc = False
    # With signals a guest's fault is told from a crash by handlers of the process, and whoever
    # installs his own after them (faulthandler does) turns the fault into the process's death.
    _set(config, "signals_based_traps", False)
    return config


def _set(config: wasmtime.Config, setting: str, on: bool) -> None:
    """For settings that are in the C API but not in all of wasmtime's Python classes."""
    _ffi.dll[f"wasmtime_config_{setting}_set"](config.ptr(), ctypes.c_bool(on))
