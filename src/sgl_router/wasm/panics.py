"""What a guest's panic hook has written down for the host.

A module may export `sgl_panic_message`: a global, i32, with the address of 1,024 bytes in its
memory, into which its panic hook writes NUL-terminated UTF-8. It is read after a trap, and no part
of it is trusted.
"""

import ctypes
from collections.abc import Mapping

import wasmtime
from wasmtime import _ffi

from sgl_router.wasm.printable import printable

EXPORT = "sgl_panic_message"
MAX_PANIC_BYTES = 1023
"""Its buffer has room for a NUL besides."""


def panic_text(store: wasmtime.Store, exports: Mapping[str, object]) -> str | None:
    """The text in one line, cut and escaped; None where there is none.

    Args:
        store: the guest's, in which no call is under way.
        exports: the guest's, by their names.
    """
    address, memory = exports.get(EXPORT), exports.get("memory")
    if not isinstance(address, wasmtime.Global) or not isinstance(memory, wasmtime.Memory):
        return None
    at = _i32_in(store, address)
    if at is None:
        return None
    end = min(at + MAX_PANIC_BYTES, memory.data_len(store))
    if at >= end:
        return None
    text = bytes(memory.read(store, at, end)).partition(b"\0")[0]
    return printable(text.decode("utf-8", "replace").strip(), MAX_PANIC_BYTES) or None


def _i32_in(store: wasmtime.Store, found: wasmtime.Global) -> int | None:
    """A global's value, unsigned; None where it is of another type.

    Its type is not asked for: the C API ends the process over that of some references.
    """
    value = _ffi.wasmtime_val_t()
    context = store._context()
    _ffi.wasmtime_global_get(context, ctypes.byref(found._global), ctypes.byref(value))
    kind: object = value.kind
    if kind == _ffi.WASMTIME_I32.value:
        return int(value.of.i32) & 0xFFFFFFFF
    _ffi.wasmtime_val_unroot(ctypes.byref(value))
    return None
