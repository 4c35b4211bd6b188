"""One live instance of a plugin: calls into it, bounded and checked."""

from collections.abc import Callable
from typing import TypeVar

import wasmtime

from sgl_router.errors import DecisionError, FailureKind
from sgl_router.wasm.calls import deadline_setter, guest_function
from sgl_router.wasm.clock import NEVER
from sgl_router.wasm.driver import Driver, GuestError
from sgl_router.wasm.printable import printable
from sgl_router.wasm.sandbox import Sandbox
from sgl_router.wasm.wasi import do_nothing

_T = TypeVar("_T")

_FAILURES = (GuestError, wasmtime.Trap, wasmtime.WasmtimeError)


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
        self._time = sandbox.runtime.clock.call_time(sandbox.config.max_execution_time_ms)
        self._host = sandbox.host if sandbox.module.imports else None
        try:
            self._store = sandbox.new_store()
        except wasmtime.WasmtimeError as error:  # its private folder is gone
            raise self._failed("trap", printable(_last_line(error), 300)) from None
        self._ticks = self._time.ticks
        self._set_deadline = deadline_setter(self._store, self._ticks)
        self._stop = deadline_setter(self._store, 0)
        self._begin(now_ms=0, entropy=0)
        self._driver = self._bounded(self._start, b"")

    def select_worker(self, payload: bytes, now_ms: int, entropy: int) -> bytes:
        """One decision: JSON in, JSON out. Raises DecisionError."""
        self._begin(now_ms, entropy)
        try:
            return self._bounded(self._driver.decide, payload)
        except DecisionError as failure:
            result = self._driver.decided()
            if result is None or self._exited():
                raise
            # The decision had been taken; what failed after it costs the instance only.
            self.late_failure = failure.with_traceback(None)
            return result

    def on_request_complete(self, payload: bytes, now_ms: int) -> None:
        """Tell the plugin, which must export the function, how a request has ended.

        Raises DecisionError.
        """
        self._begin(now_ms, entropy=0)
        self._bounded(self._driver.report, payload)

    def _begin(self, now_ms: int, entropy: int) -> None:
        """Set the deadline of everything that is called from here on."""
        if not self._time.begin():
            raise self._failed("trap", "the router has stopped: nothing would bound a call")
        if self._host is not None:
            self._host.begin(now_ms, entropy, self._stop)
        if self._ticks != self._time.ticks:
            self._ticks = self._time.ticks
            self._set_deadline = deadline_setter(self._store, self._ticks)
        self._set_deadline()

    def _bounded(self, call: Callable[[bytes], _T], payload: bytes) -> _T:
        """Call into the guest; every failure poisons the instance and is a DecisionError.

        The error is raised outside of the handler: one that kept the trap would keep the trap's
        frames, and with them the dead instance's memory.
        """
        failure: DecisionError | None = None
        try:
            result = call(payload)
        except _FAILURES as error:
            failure = self._failure(error)
        finally:
            self._time.ends_at = NEVER
            if self._host is not None:
                self._host.stop = do_nothing
        if self._exited():
            assert self._host is not None, "it has let the guest exit"
            failure = self._failed(
                "trap", f"called proc_exit({self._host.exit_code}); a plugin must not exit"
            )
        if failure is None:
            return result
        self.poisoned = True
        try:
            raise failure
        finally:
            del failure  # its traceback holds this frame: a cycle

    def _start(self, _payload: bytes) -> Driver:
        sandbox, store = self._sandbox, self._store
        guest = sandbox.instantiate(store)
        for name in ("_initialize", "init"):
            if name in sandbox.module.exports:
                guest_function(store, guest.exports(store), name)()
        return Driver(store, sandbox.runtime.driver, guest)

    def _exited(self) -> bool:
        """Whether the guest has called `proc_exit`, whatever came of it."""
        return self._host is not None and self._host.exit_code is not None

    def _failure(self, error: GuestError | wasmtime.Trap | wasmtime.WasmtimeError) -> DecisionError:
        config = self._sandbox.config
        if isinstance(error, GuestError):
            limit = f"; max_memory_bytes is {config.max_memory_bytes:,}"
            return self._failed(
                error.kind, error.detail + (limit if error.kind == "out_of_memory" else "")
            )
        if isinstance(error, wasmtime.Trap) and error.trap_code is wasmtime.TrapCode.INTERRUPT:
            limit = f"{config.max_execution_time_ms:,}"
            return self._failed("timeout", f"ran longer than max_execution_time_ms ({limit})")
        return self._failed("trap", printable(_last_line(error), 300))

    def _failed(self, kind: FailureKind, detail: str) -> DecisionError:
        return DecisionError(self._sandbox.config.name, kind, detail)


def _last_line(error: wasmtime.Trap | wasmtime.WasmtimeError) -> str:
    """The cause stands below the backtrace."""
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__
