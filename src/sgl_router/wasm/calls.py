"""Calls into a guest through wasmtime's C API.

wasmtime's Python classes look up a function's type and wrap each value anew for every call, which
costs more than the decision itself. Here everything that does not change is prepared once; a call
writes its arguments into a buffer of its own and makes one foreign call. That call releases the
GIL, so that the clock goes on ticking while a guest runs; calls that only read or set a number
keep it, since each release is a chance to lose it to another thread for much longer than they take.

The functions and their argument layouts are those of wasmtime's `func.h`, `memory.h` and
`store.h`; values of type i32 stand in the low four bytes of the 16-byte `wasmtime_val_raw_t`.
"""

import ctypes
from collections.abc import Mapping

import wasmtime
from wasmtime import _ffi

_WORDS_PER_VALUE = 4  # of 32 bits, in one wasmtime_val_raw_t
_MAX_VALUES = 2  # no function of the contract has more parameters, or more results


_releasing = _ffi.dll
_keeping = ctypes.PyDLL(_ffi.dll._name, handle=_ffi.dll._handle)
_POINTER = ctypes.c_void_p


def _c_function(
    library: ctypes.CDLL, name: str, result: type | None, *arguments: type
) -> "ctypes._NamedFuncPointer":
    """A function of wasmtime's library with types of our own; the library decides on the GIL."""
    function = library[name]  # a new object, so that these types are not wasmtime's own
    function.restype = result
    function.argtypes = arguments
    return function


_call = _c_function(
    _releasing,
    "wasmtime_func_call_unchecked",
    *(_POINTER, _POINTER, _POINTER, _POINTER, ctypes.c_size_t, _POINTER),
)
_set_deadline = _c_function(
    _keeping, "wasmtime_context_set_epoch_deadline", None, _POINTER, ctypes.c_uint64
)
_memory_data = _c_function(_keeping, "wasmtime_memory_data", _POINTER, _POINTER, _POINTER)
_memory_size = _c_function(
    _keeping, "wasmtime_memory_data_size", ctypes.c_size_t, _POINTER, _POINTER
)


def _context_of(store: wasmtime.Store) -> int:
    address = ctypes.cast(store._context(), _POINTER).value
    assert address is not None, "an open store has a context"
    return address


class GuestFunction:
    """An exported function whose parameters and results are all i32, at most two of each."""

    def __init__(self, store: wasmtime.Store, function: wasmtime.Func) -> None:
        self._keep = (store, function)
        self._context = _context_of(store)
        self._function = ctypes.addressof(function._func)
        self._values = (ctypes.c_uint32 * (_WORDS_PER_VALUE * _MAX_VALUES))()
        self._values_at = ctypes.addressof(self._values)
        self._trap = _POINTER()
        self._trap_at = ctypes.addressof(self._trap)

    def __call__(self, first: int = 0, second: int = 0) -> int:
        """The first result, unsigned; meaningless where the function has none.

        Raises wasmtime.Trap or wasmtime.WasmtimeError.
        """
        values = self._values
        values[0] = first
        values[_WORDS_PER_VALUE] = second
        error = _call(self._context, self._function, self._values_at, _MAX_VALUES, self._trap_at)
        if error is not None or self._trap.value is not None:
            self._raise(error)
        return values[0]

    def _raise(self, error: int | None) -> None:
        """Take over what came back, so that it is freed with the exception."""
        trap, self._trap.value = self._trap.value, None
        if error is not None:
            raise wasmtime.WasmtimeError._from_ptr(
                ctypes.cast(error, ctypes.POINTER(_ffi.wasmtime_error_t))
            )
        assert trap is not None, "one of the two came back"
        raise wasmtime.Trap._from_ptr(ctypes.cast(trap, ctypes.POINTER(_ffi.wasm_trap_t)))


class GuestMemory:
    """An exported memory. Its address changes when it grows: ask anew after each call."""

    def __init__(self, store: wasmtime.Store, memory: wasmtime.Memory) -> None:
        self._keep = (store, memory)
        self._context = _context_of(store)
        self._memory = ctypes.addressof(memory._memory)

    def size(self) -> int:
        """Its bytes."""
        size: int = _memory_size(self._context, self._memory)
        return size

    def write(self, at: int, data: bytes) -> None:
        """Copy `data` to offset `at`; the caller has checked that it fits."""
        ctypes.memmove(_memory_data(self._context, self._memory) + at, data, len(data))

    def read(self, at: int, size: int) -> bytes:
        """Copy `size` bytes from offset `at`; the caller has checked that they are there."""
        return ctypes.string_at(_memory_data(self._context, self._memory) + at, size)


class GuestDeadline:
    """Sets when a store's calls are stopped."""

    def __init__(self, store: wasmtime.Store) -> None:
        self._keep = store
        self._context = _context_of(store)

    def set(self, ticks: int) -> None:
        """Stop what runs after `ticks` of the engine's epoch from now; 0 stops it at once."""
        _set_deadline(self._context, ticks)


def guest_function(
    store: wasmtime.Store, exports: Mapping[str, object], name: str
) -> GuestFunction:
    """The exported function of that name."""
    function = exports[name]
    assert isinstance(function, wasmtime.Func), "checked when the module was read"
    return GuestFunction(store, function)


def guest_memory(store: wasmtime.Store, exports: Mapping[str, object]) -> GuestMemory:
    """The exported memory."""
    memory = exports["memory"]
    assert isinstance(memory, wasmtime.Memory), "checked when the module was read"
    return GuestMemory(store, memory)
