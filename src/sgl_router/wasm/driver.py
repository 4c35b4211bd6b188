"""The driver: a module of our own that makes the calls of one decision into a guest.

A decision is four calls into the guest, a copy in, a copy out, and a check of each pointer in
between. The driver is linked to the guest's exports and does all that on the guest's side of the
fence: for the host a decision is one foreign call, and no pointer of a guest's is ever used by the
host. The two meet in the driver's own memory, the exchange, which the guest cannot reach. A mistake
in the driver would be a trap like any guest's.
"""

from importlib.resources import files

import wasmtime

from sgl_router.errors import FailureKind
from sgl_router.wasm.abi.json_v1 import MAX_RESULT_BYTES
from sgl_router.wasm.calls import guest_function, guest_memory

_PAGE_BYTES = 65_536
_IMPORTS = ("memory", "alloc", "dealloc", "select_worker", "on_request_complete")
_NO_ROOM, _OUTSIDE, _ENDLESS = (2**32 - code for code in (1, 2, 3))  # -1, -2, -3 of an i32


class GuestError(Exception):
    """A guest that did not trap has broken the contract.

    Attributes:
        kind, detail: as in `DecisionError`.
    """

    def __init__(self, kind: FailureKind, detail: str) -> None:
        self.kind: FailureKind = kind
        self.detail = detail
        super().__init__(f"{kind}: {detail}")


def compile_driver(engine: wasmtime.Engine) -> wasmtime.Module:
    """The driver, for the guests that run in this engine."""
    text = files("sgl_router.wasm").joinpath("driver.wat").read_text("utf-8")
    return wasmtime.Module(engine, text)


class Driver:
    """The driver of one guest; both live in one store, under its deadline and its limits."""

    def __init__(
        self, store: wasmtime.Store, module: wasmtime.Module, guest: wasmtime.Instance
    ) -> None:
        """Link the compiled driver to a guest's exports. Raises wasmtime.WasmtimeError."""
        exported = guest.exports(store)
        # Where the guest does not want outcomes: a function of the same type, which is not called.
        linked = {"on_request_complete": exported["dealloc"], **exported}
        exports = wasmtime.Instance(store, module, [linked[name] for name in _IMPORTS]).exports(
            store
        )
        self._store = store
        self._guest_memory = exported["memory"]
        self._exports = exports
        self._exchange = guest_memory(store, exports, "exchange")
        self._decide = guest_function(store, exports, "decide")
        self._report = guest_function(store, exports, "report")

    def decide(self, payload: bytes) -> bytes:
        """One decision: input in, result out.

        Raises wasmtime.Trap or wasmtime.WasmtimeError where the guest fails, GuestError where it
        returns a pointer that leads nowhere.
        """
        exchange = self._offer(payload)
        length = self._decide(len(payload))
        if length > MAX_RESULT_BYTES:
            raise self._error(length, len(payload))
        return bytes(exchange[:length])

    def report(self, payload: bytes) -> None:
        """Tell the guest how a request has ended; it must export the function. Raises the same."""
        self._offer(payload)
        code = self._report(len(payload))
        if code:
            raise self._error(code, len(payload))

    def decided(self) -> bytes | None:
        """The result of a decision that failed only after it had been taken; None of any other."""
        length = self._global("decided")
        return bytes(self._exchange.bytes[:length]) if length <= MAX_RESULT_BYTES else None

    def _offer(self, payload: bytes) -> memoryview:
        """Put an input into the exchange, and return that."""
        size = len(payload)
        exchange = self._exchange.bytes
        if size > len(exchange):
            exchange = self._widened(size)
        exchange[:size] = payload
        return exchange

    def _widened(self, size: int) -> memoryview:
        """The exchange, grown to hold an input. It may have as much as the guest, not more."""
        exchange = self._exchange
        missing = size - len(exchange.bytes)
        try:
            exchange.memory.grow(self._store, -(-missing // _PAGE_BYTES))
        except wasmtime.WasmtimeError as error:
            raise GuestError("out_of_memory", f"its input has {size:,} bytes") from error
        return exchange.look()

    def _error(self, code: int, size: int) -> GuestError:
        """What a code of the driver's says, for an input of `size` bytes."""
        pointer = self._global("pointer")
        assert isinstance(self._guest_memory, wasmtime.Memory), "checked when it was loaded"
        end = self._guest_memory.data_len(self._store)
        if code == _NO_ROOM and pointer == 0:
            return GuestError(
                "out_of_memory", f"alloc({size:,}) returned 0; memory has {end:,} bytes"
            )
        if code == _ENDLESS:
            readable = min(MAX_RESULT_BYTES + 1, end - pointer)
            return GuestError("bad_output", f"its result has no NUL within {readable:,} bytes")
        assert code in (_NO_ROOM, _OUTSIDE), "the driver has no other codes"
        called = "alloc" if code == _NO_ROOM else "select_worker"
        return GuestError("bad_output", f"{called} returned {pointer:#x}; memory ends at {end:#x}")

    def _global(self, name: str) -> int:
        found = self._exports[name]
        assert isinstance(found, wasmtime.Global), "the driver exports it"
        return int(found.value(self._store)) & 0xFFFFFFFF
