"""The driver: a module of our own that makes the calls of one decision into a guest.

A decision is four calls into the guest, a copy in, a copy out, and a check of each pointer in
between. The driver is linked to the guest's exports and does all that on the guest's side of the
fence: for the host a decision is one foreign call, and no pointer of a guest's is ever used by the
host. The two meet in the driver's own memory, the exchange, which the guest cannot reach. A mistake
in the driver would be a trap like any guest's.
"""

from collections.abc import Mapping
from importlib.resources import files

import wasmtime
from wasmtime._exportable import AsExtern

from sgl_router.errors import FailureKind
from sgl_router.wasm.abi.json_v1 import MAX_RESULT_BYTES
from sgl_router.wasm.calls import Calls

PAGE_BYTES = 65_536
Exports = Mapping[str, AsExtern]
"""Of a guest, by their names; to ask wasmtime for them takes longer than a decision."""

_LENGTH_BITS = 17
_LENGTH = (1 << _LENGTH_BITS) - 1
_IMPORTS = ("memory", "alloc", "dealloc", "select_worker", "on_request_complete")
_NO_ROOM, _OUTSIDE, _ENDLESS = (2**32 - code for code in (1, 2, 3))  # -1, -2, -3 of an i32
_FIRST_ERROR = _ENDLESS


class GuestError(Exception):
    """A guest that did not trap has broken the contract.

    Attributes:
        kind, detail: as in `DecisionError`.
    """

    def __init__(self, kind: FailureKind, detail: str) -> None:
        self.kind: FailureKind = kind
        self.detail = detail
        super().__init__(f"{kind}: {detail}")


def driver_text() -> str:
    """The driver, as WebAssembly text."""
    return files("sgl_router.wasm").joinpath("driver.wat").read_text("utf-8")


class Driver:
    """The driver of one guest; both live in one store, under its deadline and its limits.

    Attributes:
        pages: of 64 KiB, that the guest's memory had after the last decision.
    """

    def __init__(
        self,
        store: wasmtime.Store,
        module: wasmtime.Module,
        exported: Exports,
        calls: Calls,
    ) -> None:
        """Link the compiled driver to a guest's exports. Raises wasmtime.WasmtimeError."""
        # Where the guest does not want outcomes: a function of the same type, which is not called.
        linked = {"on_request_complete": exported["dealloc"], **exported}
        exports = wasmtime.Instance(store, module, [linked[name] for name in _IMPORTS]).exports(
            store
        )
        memory = exported["memory"]
        assert isinstance(memory, wasmtime.Memory), "checked when the module was read"
        self._store = store
        self._guest_memory = memory
        self._exports = exports
        self._exchange = calls.memory(store, exports, "exchange")
        self._decide = calls.function(store, exports, "decide")
        self._report = calls.function(store, exports, "report")
        self.pages = memory.size(store)

    def decide(self, payload: bytes) -> bytes:
        """One decision: input in, result out.

        Raises wasmtime.Trap or wasmtime.WasmtimeError where the guest fails, GuestError where it
        returns a pointer that leads nowhere.
        """
        exchange = self._offer(payload)
        said = self._decide(len(payload))
        if said >= _FIRST_ERROR:
            raise self._error(said, len(payload))
        self.pages = said >> _LENGTH_BITS
        return bytes(exchange[: said & _LENGTH])

    def report(self, payload: bytes) -> None:
        """Tell the guest how a request has ended; it must export the function. Raises the same."""
        self._offer(payload)
        code = self._report(len(payload))
        if code:
            raise self._error(code, len(payload))
        self.pages = self._guest_memory.size(self._store)

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
            exchange.memory.grow(self._store, -(-missing // PAGE_BYTES))
        except wasmtime.WasmtimeError as error:
            raise GuestError("out_of_memory", f"its input has {size:,} bytes") from error
        return exchange.look()

    def _error(self, code: int, size: int) -> GuestError:
        """What a code of the driver's says, for an input of `size` bytes."""
        pointer = self._global("pointer")
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
