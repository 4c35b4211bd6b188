"""Calls into a guest through wasmtime's C API.

wasmtime's Python classes look up a function's type and wrap each value anew for every call, which
costs more than the decision itself. Here everything that does not change is prepared once, down to
the arguments as ctypes passes them; a call writes its parameters into a buffer of its own and makes
one foreign call. That call releases the GIL, so that other threads go on while a guest runs; calls
that only read or set a number keep it, since each release is a chance to lose it to another thread
for much longer than they take.

The functions and their argument layouts are those of wasmtime's `func.h`, `memory.h` and
`store.h`; values of type i32 stand in the low four bytes of the 16-byte `wasmtime_val_raw_t`.
"""

import ctypes
from collections.abc import Callable, Mapping
from functools import partial

import wasmtime
from wasmtime import _ffi

_WORDS_PER_VALUE = 4  # of 32 bits, in one wasmtime_val_raw_t
_WRITABLE = ctypes.c_int.from_param(0x200)  # PyBUF_WRITE

releasing = _ffi.dll
keeping = ctypes.PyDLL(_ffi.dll._name, handle=_ffi.dll._handle)
"""wasmtime's library, whose functions release the GIL or keep it while they are called."""

_POINTER = ctypes.c_void_p


def c_function(library: ctypes.CDLL, name: str, result: type | None) -> "ctypes._NamedFuncPointer":
    """A function of wasmtime's library with a result type of our own.

    The library decides on the GIL. It is called with prepared arguments only: without declared
    types ctypes takes them as they are, and would cut a plain number to 32 bits.
    """
    function = library[name]  # a new object, so that its result type is not wasmtime's own
    function.restype = result
    return function


_call = c_function(releasing, "wasmtime_func_call_unchecked", _POINTER)
advance_epoch = c_function(keeping, "wasmtime_engine_increment_epoch", None)
"""Of an engine, by its pointer; it keeps the GIL, as it is one atomic addition."""

_memory_view = c_function(ctypes.pythonapi, "PyMemoryView_FromMemory", ctypes.py_object)


def pointer(address: int) -> object:
    """An address as a prepared argument."""
    return _POINTER.from_param(address)


def context_of(store: wasmtime.Store) -> object:
    return pointer(ctypes.addressof(store._context().contents))


class GuestFunction:
    """An exported function of at most one parameter and one result, both i32."""

    __slots__ = ("_arguments", "_keep", "_trap", "_value")

    def __init__(self, store: wasmtime.Store, function: wasmtime.Func) -> None:
        self._keep = (store, function)
        value = (ctypes.c_uint32 * _WORDS_PER_VALUE)()
        self._value = memoryview(value).cast("B").cast("I")  # quicker to set than the array
        self._trap = _POINTER()
        self._arguments = (
            context_of(store),
            pointer(ctypes.addressof(function._func)),
            pointer(ctypes.addressof(value)),
            ctypes.c_size_t.from_param(1),
            pointer(ctypes.addressof(self._trap)),
        )

    def call(self, parameter: int = 0) -> int:
        """The result, unsigned; meaningless where the function has none.

        Raises wasmtime.Trap or wasmtime.WasmtimeError.
        """
        value = self._value
        value[0] = parameter
        error = _call(*self._arguments)
        if error is not None or self._trap:
            self._raise(error)
        return value[0]

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
    """An exported memory that grows only when the host makes it.

    Attributes:
        memory: wasmtime's object.
        bytes: all of it, as it was at the last look; not to be used without this object.
    """

    __slots__ = ("_store", "bytes", "memory")

    def __init__(self, store: wasmtime.Store, memory: wasmtime.Memory) -> None:
        self._store = store
        self.memory = memory
        self.bytes = self.look()

    def look(self) -> memoryview:
        """All of it as it is now: it can have moved when it has grown."""
        address = ctypes.addressof(self.memory.data_ptr(self._store).contents)
        size = ctypes.c_ssize_t.from_param(self.memory.data_len(self._store))
        self.bytes = _memory_view(pointer(address), size, _WRITABLE)
        return self.bytes


class Calls:
    """How guests are called: through wasmtime's C API.

    Attributes:
        public: whether it is through what is public of wasmtime's Python classes instead.
    """

    public: bool = False

    def function(
        self, store: wasmtime.Store, exports: Mapping[str, object], name: str
    ) -> Callable[..., int]:
        """The exported function of that name: `GuestFunction.call`."""
        function = exports[name]
        assert isinstance(function, wasmtime.Func), "checked when the module was read"
        return GuestFunction(store, function).call

    def memory(
        self, store: wasmtime.Store, exports: Mapping[str, object], name: str
    ) -> GuestMemory:
        """The exported memory of that name."""
        memory = exports[name]
        assert isinstance(memory, wasmtime.Memory), "checked when the module was read"
        return GuestMemory(store, memory)


class PublicCalls(Calls):
    """The same through wasmtime's Python classes.

    It takes some 30 µs more a call, and needs nothing of wasmtime-py that is not public: what the
    C API is used for here must come to the same.
    """

    public = True

    def function(
        self, store: wasmtime.Store, exports: Mapping[str, object], name: str
    ) -> Callable[..., int]:
        function = exports[name]
        assert isinstance(function, wasmtime.Func), "checked when the module was read"
        return partial(_call_publicly, store, function, len(function.type(store).params))


def _call_publicly(
    store: wasmtime.Store, function: wasmtime.Func, parameters: int, parameter: int = 0
) -> int:
    """Parameters and results of type i32 are signed there."""
    given = (parameter - (1 << 32) if parameter >> 31 else parameter,)[:parameters]
    result = function(store, *given)
    return result & 0xFFFFFFFF if isinstance(result, int) else 0
