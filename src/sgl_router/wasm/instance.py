"""One live instance of a plugin: calls into it, bounded and checked."""

from collections.abc import Callable, Mapping
from typing import ParamSpec, TypeVar

import wasmtime

from sgl_router.errors import DecisionError, FailureKind
from sgl_router.wasm.abi.json_v1 import MAX_RESULT_BYTES
from sgl_router.wasm.calls import GuestDeadline, guest_function, guest_memory
from sgl_router.wasm.printable import printable
from sgl_router.wasm.sandbox import Sandbox
from sgl_router.wasm.wasi import do_nothing

_P = ParamSpec("_P")
_T = TypeVar("_T")

_FIRST_LOOK_BYTES = 1024  # most results are shorter, and copying less is quicker


class Instance:
    """A plugin's instance, with its own memory.

    After a failure, which leaves the guest in an unknown state, it is `poisoned`: to be thrown
    away; `late_failure` is one that came after the decision had been read. A store must never be
    used by two threads at once: an instance has one user at a time.
    """

    def __init__(self, sandbox: Sandbox) -> None:
        """Instantiate and run the module's start, `_initialize` and `init`, under one deadline.

        Raises DecisionError where one of them fails.
        """
        self._sandbox = sandbox
        self.poisoned = False
        self.late_failure: DecisionError | None = None
        try:
            self._store = sandbox.new_store()
        except wasmtime.WasmtimeError as error:  # its private folder is gone
            raise self._failed("trap", printable(_last_line(error), 300)) from None
        self._deadline = GuestDeadline(self._store)
        self._begin(now_ms=0, entropy=0)
        exports = self._bounded(self._start)
        self._memory = guest_memory(self._store, exports)
        self._alloc = guest_function(self._store, exports, "alloc")
        self._dealloc = guest_function(self._store, exports, "dealloc")
        self._select_worker = guest_function(self._store, exports, "select_worker")
        if "on_request_complete" in sandbox.module.exports:
            self._on_request_complete = guest_function(self._store, exports, "on_request_complete")

    def select_worker(self, payload: bytes, now_ms: int, entropy: int) -> bytes:
        """One decision: JSON in, JSON out. Raises DecisionError."""
        self._begin(now_ms, entropy)
        at, result_at, result = self._bounded(self._decide, payload)
        # The decision has been read; what fails now costs the instance, which is poisoned by it.
        try:
            self._bounded(self._free, result_at, len(result) + 1, at, len(payload))
        except DecisionError as error:
            self.late_failure = error.with_traceback(None)
        return result

    def on_request_complete(self, payload: bytes, now_ms: int) -> None:
        """Tell the plugin how a request has ended. Raises DecisionError."""
        self._begin(now_ms, entropy=0)
        self._bounded(self._report, payload)

    def _begin(self, now_ms: int, entropy: int) -> None:
        """Set the deadline of everything that is called from here on."""
        sandbox = self._sandbox
        if sandbox.runtime.closed:
            raise self._failed("trap", "the router has stopped: nothing would bound a call")
        sandbox.host.begin(now_ms, entropy)
        self._deadline.set(sandbox.runtime.ticks(sandbox.config.max_execution_time_ms))

    def _bounded(self, call: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Call into the guest; every failure poisons the instance and is a DecisionError.

        The error is raised outside of the handler: one that kept the trap would keep the trap's
        frames, and with them the dead instance's memory.
        """
        host = self._sandbox.host
        failure: DecisionError | None = None
        host.stop = self._stop
        try:
            result = call(*args, **kwargs)
        except DecisionError as error:
            failure = error
        except (wasmtime.Trap, wasmtime.WasmtimeError) as error:
            failure = self._failure(error)
        finally:
            host.stop = do_nothing
            self._sandbox.runtime.clock.finished()
        if host.exit_code is not None:
            failure = self._failed(
                "trap", f"called proc_exit({host.exit_code}); a plugin must not exit"
            )
        if failure is not None:
            self.poisoned = True
            try:
                raise failure
            finally:
                del failure  # its traceback holds this frame: a cycle
        return result

    def _stop(self) -> None:
        self._deadline.set(0)

    def _start(self) -> Mapping[str, object]:
        exports = self._sandbox.instantiate(self._store).exports(self._store)
        for name in ("_initialize", "init"):
            if name in self._sandbox.module.exports:
                guest_function(self._store, exports, name)()
        return exports

    def _decide(self, payload: bytes) -> tuple[int, int, bytes]:
        """Where the input was put, where the result was, and the host's own copy of it."""
        at = self._put(payload)
        result_at = self._select_worker(at, len(payload))
        return at, result_at, self._read_result(result_at)

    def _report(self, payload: bytes) -> None:
        at = self._put(payload)
        self._on_request_complete(at, len(payload))
        self._dealloc(at, len(payload))

    def _free(self, result_at: int, result_size: int, input_at: int, input_size: int) -> None:
        self._dealloc(result_at, result_size)
        self._dealloc(input_at, input_size)

    def _put(self, payload: bytes) -> int:
        at = self._alloc(len(payload))
        size = self._memory.size()
        if at == 0:
            raise self._failed(
                "out_of_memory",
                f"alloc({len(payload):,}) returned 0; memory has {size:,} bytes, max_memory_bytes "
                f"is {self._sandbox.config.max_memory_bytes:,}",
            )
        if at + len(payload) > size:
            raise self._failed("bad_output", f"alloc returned {at:#x}; memory ends at {size:#x}")
        self._memory.write(at, payload)
        return at

    def _read_result(self, at: int) -> bytes:
        """The host's own copy of the text up to its NUL."""
        size = self._memory.size()
        if at == 0 or at >= size:
            raise self._failed(
                "bad_output", f"select_worker returned {at:#x}; memory ends at {size:#x}"
            )
        readable = min(MAX_RESULT_BYTES + 1, size - at)
        for length in (min(_FIRST_LOOK_BYTES, readable), readable):
            text, nul, _ = self._memory.read(at, length).partition(b"\0")
            if nul:
                return text
        raise self._failed("bad_output", f"its result has no NUL within {readable:,} bytes")

    def _failure(self, error: wasmtime.Trap | wasmtime.WasmtimeError) -> DecisionError:
        if isinstance(error, wasmtime.Trap) and error.trap_code is wasmtime.TrapCode.INTERRUPT:
            limit = self._sandbox.config.max_execution_time_ms
            return self._failed("timeout", f"ran longer than max_execution_time_ms ({limit:,})")
        return self._failed("trap", printable(_last_line(error), 300))

    def _failed(self, kind: FailureKind, detail: str) -> DecisionError:
        return DecisionError(self._sandbox.config.name, kind, detail)


def _last_line(error: wasmtime.Trap | wasmtime.WasmtimeError) -> str:
    """The cause stands below the backtrace."""
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__
