"""The driver of a table plugin: a module of our own that keeps the guest's tables and calls it.

As with `driver.py`, it stands on the guest's side of the fence, so that no pointer of a guest's is
ever used by the host: the host writes what has changed into the driver's own memory, the exchange,
and makes one foreign call. What stands there where is said in `table_driver.wat`.
"""

from importlib.resources import files

import wasmtime

from sgl_router.wasm.abi.table_v1 import ENTRIES_AT, HEAD_AT
from sgl_router.wasm.calls import Calls
from sgl_router.wasm.driver import PAGE_BYTES, Exports, GuestError

_IMPORTS = ("memory", "alloc", "dealloc", "sgl_table_v1_select", "on_request_complete")
_NONE = 2**32 - 1  # -1 of an i32
_LARGEST = 2**31 - 1
_INDEX_BITS = 20
_INDEX = (1 << _INDEX_BITS) - 1


def table_driver_text() -> str:
    """The driver, as WebAssembly text."""
    return files("sgl_router.wasm").joinpath("table_driver.wat").read_text("utf-8")


class TableDriver:
    """The driver of one guest; both live in one store, under its deadline and its limits.

    A decision is `TableEncoder.encode`, then `select` with what that returned; or, where several
    wait for the same guest, `TableEncoder.snapshot`, and later `select_from` that.

    Attributes:
        exchange: where the encoder writes.
        token: by which the encoder tells this guest from one that it wrote for before.
        taken: whether the guest has all that was written for it.
        pages: of 64 KiB, that the guest's memory had after the last decision.
    """

    __slots__ = (
        "_decide",
        "_exports",
        "_guest_memory",
        "_put",
        "_report",
        "_store",
        "exchange",
        "pages",
        "taken",
        "token",
    )

    def __init__(
        self,
        store: wasmtime.Store,
        module: wasmtime.Module,
        exported: Exports,
        calls: Calls,
        *,
        config: bytes,
    ) -> None:
        """Link the compiled driver to a guest's exports, and hand over the configuration (JSON).

        Raises wasmtime.Trap or wasmtime.WasmtimeError where the guest fails, GuestError where it
        refuses the configuration or has no room for it.
        """
        # Where the guest does not want outcomes: a function of the same type, which is not called.
        linked = {"on_request_complete": exported["dealloc"], **exported}
        exports = wasmtime.Instance(store, module, [linked[name] for name in _IMPORTS]).exports(
            store
        )
        self._store = store
        self._exports = exports
        self._decide = calls.function(store, exports, "decide")
        self._put = calls.function(store, exports, "put")
        self._report = calls.function(store, exports, "report")
        self.exchange = calls.memory(store, exports, "exchange")
        self.token = object()
        self.taken = False
        memory = exported["memory"]
        assert isinstance(memory, wasmtime.Memory), "checked when the module was read"
        self._guest_memory = memory
        self.pages = memory.size(store)
        if "sgl_table_v1_configure" in exported:
            self._configure(exported["sgl_table_v1_configure"], exported["dealloc"], config)

    def select(self, slot: int) -> int | None:
        """The decision for what was encoded last: an index, not yet judged; None: no worker.

        Raises wasmtime.Trap or wasmtime.WasmtimeError where the guest fails, GuestError where its
        `alloc` returns what leads nowhere (`out_of_memory`, `bad_output`) or it returns another
        negative number (`plugin_error`, which leaves it as sound as it was).
        """
        said = self._decide(slot)
        if said <= _LARGEST:
            self.taken = True
            self.pages = said >> _INDEX_BITS
            return said & _INDEX
        self._check()
        self.taken = True
        result = self._global("other")
        if result == _NONE:
            return None
        if result <= _LARGEST:
            return result
        raise GuestError("plugin_error", f"sgl_table_v1_select returned {result - 2**32}")

    def select_from(self, snapshot: bytes) -> int | None:
        """The decision for a snapshot. Raises the same."""
        self.token = object()  # what the tables held before is lost
        self.room(HEAD_AT + len(snapshot))[HEAD_AT : HEAD_AT + len(snapshot)] = snapshot
        return self.select(0)

    def report(self, payload: bytes) -> None:
        """Tell the guest how a request has ended; it must export the function. Raises the same."""
        self._offer(payload)
        self._report(len(payload))
        self._check()
        self.pages = self._guest_memory.size(self._store)

    def room(self, size: int) -> memoryview:
        """The exchange, with room for `size` bytes from its start.

        Raises GuestError where that is more than the guest itself may have.
        """
        exchange = self.exchange
        missing = size - len(exchange.bytes)
        if missing > 0:
            try:
                exchange.memory.grow(self._store, -(-missing // PAGE_BYTES))
            except wasmtime.WasmtimeError as error:
                raise GuestError("out_of_memory", f"its input has {size:,} bytes") from error
            exchange.look()
        return exchange.bytes

    def _configure(self, configure: object, dealloc: object, config: bytes) -> None:
        assert isinstance(configure, wasmtime.Func), "checked when the module was read"
        assert isinstance(dealloc, wasmtime.Func), "checked when the module was read"
        size = len(config)
        self._offer(config)
        at = self._put(size)
        self._check()
        # Once in a guest's life, so by wasmtime's own calls; the pointer is only handed back.
        code = configure(self._store, _signed(at), size)
        if code:
            raise GuestError("plugin_error", f"sgl_table_v1_configure returned {code}")
        dealloc(self._store, _signed(at), size)

    def _offer(self, payload: bytes) -> None:
        end = ENTRIES_AT + len(payload)
        self.room(end)[ENTRIES_AT:end] = payload

    def _check(self) -> None:
        """Raise what is wrong with the pointer that alloc returned last, if anything."""
        if not self._global("refused"):
            return
        pointer, asked = self._global("pointer"), self._global("asked")
        end = self._guest_memory.data_len(self._store)
        if pointer == 0:
            raise GuestError(
                "out_of_memory", f"alloc({asked:,}) returned 0; memory has {end:,} bytes"
            )
        raise GuestError("bad_output", f"alloc returned {pointer:#x}; memory ends at {end:#x}")

    def _global(self, name: str) -> int:
        found = self._exports[name]
        assert isinstance(found, wasmtime.Global), "the driver exports it"
        return int(found.value(self._store)) & 0xFFFFFFFF


def _signed(pointer: int) -> int:
    """As wasmtime's Python classes take an i32."""
    return pointer - 2**32 if pointer > _LARGEST else pointer
