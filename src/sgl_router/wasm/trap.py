"""What is known of a guest whose call wasmtime has ended: the cause, and where that was.

wasmtime's text of an error has the name of each function in it, demangled, and the names are the
guest's own, each as long as a module may be. So the backtrace is not read out of it, nor is the
cause of a core module's trap. A component fails by an error without a code: the cause is the last
line of its text, which is wasmtime's own.
"""

import ctypes
import re
from collections.abc import Sequence

import wasmtime
from wasmtime import _ffi

from sgl_router.wasm.printable import printable

MAX_CAUSE_CHARACTERS = 300
MAX_FRAMES = 20
"""Innermost first; wasmtime by itself keeps no more."""

MAX_NAME_CHARACTERS = 200
MAX_NAMES_BYTES = 64 * 1024
"""Of a backtrace together, as they stand in the module: wasmtime copies each that it is asked for.
Once they are longer than this, the functions further out are shown by their numbers."""

OWN_MODULE = b"sgl_router_driver"
"""The name of the drivers (driver.wat, table_driver.wat), whose frames are left out."""

_STUBBED = re.compile(
    r"(?:wall_clock|monotonic_clock|filesystem|random|insecure|environment|exit|std(?:in|out|err)"
    r"|terminal|poll|streams|network|instance_network|tcp|udp|ip_name_lookup)_\w+"
)
"""A function that wit-bindgen makes for C of one of WASI 0.2 (`wasi:clocks/wall-clock`, `now`:
`wall_clock_now`), as a language's library calls it."""

_UNNAMED = re.compile(r"function \d+")

_HASH = re.compile(r"::h[0-9a-f]{16}(?= |$)")
_LEGACY = re.compile(r"_{0,2}ZN(.*?)E(?:\.llvm\.[0-9A-F]+)?")
_LENGTH = re.compile(r"\d{1,4}")
_ESCAPES = {
    "$SP$": "@",
    "$BP$": "*",
    "$RF$": "&",
    "$LT$": "<",
    "$GT$": ">",
    "$LP$": "(",
    "$RP$": ")",
    "$C$": ",",
    "..": "::",
}
_ESCAPE = re.compile("|".join(map(re.escape, _ESCAPES)))
_ESCAPED_CODE = re.compile(r"\$u([0-9a-f]{2})\$")

Ended = wasmtime.Trap | wasmtime.WasmtimeError


def cause_of(error: Ended) -> str:
    """The cause in wasmtime's words, one line, cut and escaped."""
    if isinstance(error, wasmtime.Trap):
        code = _ffi.wasmtime_trap_code_t()
        if _ffi.wasmtime_trap_code(error.ptr(), ctypes.byref(code)):
            # The same trap without frames; a code that the library does not know would abort it.
            error = wasmtime.Trap._from_ptr(_ffi.wasmtime_trap_new_code(code.value))
    lines = str(error).strip().splitlines()
    return printable(lines[-1].strip() if lines else type(error).__name__, MAX_CAUSE_CHARACTERS)


def backtrace_of(error: Ended) -> tuple[str, ...]:
    """The guest's functions that were under way, innermost first, with offsets in its module."""
    frames = _ffi.wasm_frame_vec_t(0, None)
    if isinstance(error, wasmtime.Trap):
        _ffi.wasm_trap_trace(error.ptr(), ctypes.byref(frames))
    else:
        _ffi.wasmtime_error_wasm_trace(error.ptr(), ctypes.byref(frames))
    try:
        count = min(frames.size, MAX_FRAMES)
        while count and _is_own(frames.data[count - 1]):
            count -= 1
        return _shown([frames.data[index] for index in range(count)])
    finally:
        _ffi.wasm_frame_vec_delete(ctypes.byref(frames))


def stubbed_call(backtrace: Sequence[str]) -> str | None:
    """The function of WASI that a component called which was built without it; else None.

    Such a build (`componentize-py componentize --stub-wasi`) puts functions without names, which
    trap, in the place of those of the system; they are the innermost.
    """
    names = [frame.rpartition(" at ")[0] for frame in backtrace]
    if not names or not _UNNAMED.fullmatch(names[0]):
        return None
    name = next((name for name in names if not _UNNAMED.fullmatch(name)), "")
    return name if _STUBBED.fullmatch(name) else None


def _shown(frames: "list[ctypes._Pointer[_ffi.wasm_frame_t]]") -> tuple[str, ...]:
    left = MAX_NAMES_BYTES
    shown = []
    for frame in frames:
        name, size = b"", 0
        if left > 0:
            name, size = _read(_ffi.wasmtime_frame_func_name(frame), 4 * MAX_NAME_CHARACTERS)
        left -= size
        function = readable_name(name.decode("utf-8", "replace"))
        if not function:
            function = f"function {_ffi.wasm_frame_func_index(frame)}"
        offset = _ffi.wasm_frame_module_offset(frame)
        shown.append(f"{printable(function, MAX_NAME_CHARACTERS)} at {offset:#x}")
    return tuple(shown)


def _is_own(frame: "ctypes._Pointer[_ffi.wasm_frame_t]") -> bool:
    name, size = _read(_ffi.wasmtime_frame_module_name(frame), len(OWN_MODULE))
    return size == len(OWN_MODULE) and name == OWN_MODULE


def _read(name: "ctypes._Pointer[_ffi.wasm_byte_vec_t]", most: int) -> tuple[bytes, int]:
    """The beginning of a name, which need not be there, and its size in bytes."""
    if not name:
        return b"", 0
    found = name.contents
    return ctypes.string_at(found.data, min(found.size, most)), found.size


def readable_name(name: str) -> str:
    """A function's name without what Rust's compiler adds to it.

    The hash goes, and where the linker has left the legacy mangling (`_ZN…E`), that. Names of the
    `v0` mangling (RFC 2603) stay as they are.
    """
    legacy = _LEGACY.fullmatch(name)
    if legacy is not None:
        name = _demangled(legacy[1]) or name
    return _HASH.sub("", name)


def _demangled(path: str) -> str | None:
    """Of `4core9panicking`: core::panicking; None where it is no such thing."""
    parts = []
    while path:
        length = _LENGTH.match(path)
        if length is None or len(path) < length.end() + int(length[0]):
            return None
        part, path = path[length.end() :][: int(length[0])], path[length.end() + int(length[0]) :]
        part = part.removeprefix("_") if part.startswith("_$") else part
        part = _ESCAPE.sub(lambda found: _ESCAPES[found[0]], part)
        parts.append(_ESCAPED_CODE.sub(lambda found: chr(int(found[1], 16)), part))
    return "::".join(parts)
