"""Makes modules and components of compiled code, while other threads run.

wasmtime's Python classes copy an artifact first, with the GIL: for the 52 MB of a usual Python
plugin that takes 27 ms, in which the event loop stands still. Here wasmtime reads it where it is,
and the calls release the GIL.

The functions are those of wasmtime's `module.h` and `component/component.h`.
"""

import ctypes

import wasmtime
from wasmtime import _ffi
from wasmtime.component import Component

from sgl_router.wasm.calls import c_function, pointer, releasing

_module = c_function(releasing, "wasmtime_module_deserialize", ctypes.c_void_p)
_component = c_function(releasing, "wasmtime_component_deserialize", ctypes.c_void_p)


def load_module(engine: wasmtime.Engine, artifact: bytearray | memoryview) -> wasmtime.Module:
    """The module that was serialized; raises wasmtime.WasmtimeError.

    An artifact is native code and is believed. It has to be writable, and is not written to; it
    cannot be resized while this runs.
    """
    made = ctypes.POINTER(_ffi.wasmtime_module_t)()
    _deserialize(_module, engine, artifact, ctypes.addressof(made))
    return wasmtime.Module._from_ptr(made)


def load_component(engine: wasmtime.Engine, artifact: bytearray | memoryview) -> Component:
    """The component that was serialized; as `load_module`."""
    made = ctypes.POINTER(_ffi.wasmtime_component_t)()
    _deserialize(_component, engine, artifact, ctypes.addressof(made))
    return Component._from_ptr(made)


def _deserialize(
    function: "ctypes._NamedFuncPointer",
    engine: wasmtime.Engine,
    artifact: bytearray | memoryview,
    made: int,
) -> None:
    """Write the pointer to what was made to the address `made`."""
    size = len(artifact)
    there = (ctypes.c_char * size).from_buffer(artifact)
    error = function(
        engine.ptr(), pointer(ctypes.addressof(there)), ctypes.c_size_t(size), pointer(made)
    )
    if error is not None:
        raise wasmtime.WasmtimeError._from_ptr(
            ctypes.cast(error, ctypes.POINTER(_ffi.wasmtime_error_t))
        )
