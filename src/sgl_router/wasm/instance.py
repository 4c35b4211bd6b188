"""One live instance of a plugin: calls into it, bounded and checked."""

import threading
from collections.abc import Callable
from typing import Any, TypeVar

import orjson
import wasmtime

from sgl_router.errors import DecisionError, FailureKind, LastWords
from sgl_router.wasm.clock import NEVER, CallTimer
from sgl_router.wasm.component import ComponentDriver
from sgl_router.wasm.driver import PAGE_BYTES, Driver, Exports, GuestError
from sgl_router.wasm.panics import panic_text
from sgl_router.wasm.sandbox import Sandbox
from sgl_router.wasm.table_driver import TableDriver
from sgl_router.wasm.trap import Ended, backtrace_of, cause_of, stubbed_call
from sgl_router.wasm.wasi_output import panic_in

_A = TypeVar("_A")
_R = TypeVar("_R")

_FAILURES = (GuestError, wasmtime.Trap, wasmtime.WasmtimeError)

_NO_SYSTEM = (
    "; it called %s, and components are given nothing of the system: the time is now-ms, chance is "
    "entropy, there are no files and nothing to write to, and Python imports at the top of a file"
)

WORN_SHARE = 0.75
"""Of its memory limit: an instance that has grown past this is replaced between calls."""


class Instance:
    """A plugin's instance, with its own memory.

    A store must never be used by two threads at once: whoever calls holds the instance's lock.

    Attributes:
        driver: what makes the calls into the guest.
        worn_pages: of its memory, with which it has grown so much that another should take its
            place.
        poisoned: whether it is to be thrown away: a failure leaves a guest in an unknown state.
        late_failure: one that came after the decision had been read.
        spent_ms: what is to be taken off the next call's limit, for starting the instance was part
            of that call.
    """

    def __init__(self, sandbox: Sandbox, limit_ms: float) -> None:
        """Instantiate and run the module's start, `_initialize` and `init`, within `limit_ms`.

        Raises DecisionError where one of them fails.
        """
        self._sandbox = sandbox
        self._lock = threading.Lock()
        self.poisoned = False
        self.late_failure: DecisionError | None = None
        self.spent_ms = 0.0
        self._host = sandbox.host if sandbox.module.imports else None
        self._exports: Exports = {}
        try:
            self._store = sandbox.new_store()
        except wasmtime.WasmtimeError as error:  # no descriptor is left for its files
            raise self._failed("trap", cause_of(error)) from None
        self._clock = sandbox.clock
        self.driver = self.call(self._start, None, limit_ms)
        limit_pages = sandbox.config.max_memory_bytes * WORN_SHARE / PAGE_BYTES
        self.worn_pages = max(self.memory_bytes // PAGE_BYTES + 1, limit_pages)

    @property
    def memory_bytes(self) -> int:
        """Of the guest's memory, after its start or the last decision."""
        return self.driver.pages * PAGE_BYTES

    def select_worker(
        self, payload: bytes, now_ms: int, entropy: int, limit_ms: float | None = None
    ) -> bytes:
        """A decision of a plugin of the JSON ABI, within `limit_ms`, or all that it may take.

        Raises DecisionError.
        """
        driver = self.driver
        assert type(driver) is Driver, "made for such a plugin"
        try:
            return self.call(driver.decide, payload, limit_ms, now_ms, entropy)
        except DecisionError as failure:
            result = driver.decided()
            exited = self._host is not None and self._host.exit_code is not None
            if result is None or exited:
                raise
            # The decision had been taken; what failed after it costs the instance only.
            self.late_failure = failure.with_traceback(None)
            return result

    def on_request_complete(self, payload: Any, now_ms: int, limit_ms: float | None = None) -> None:
        """Tell the plugin, which must export the function, how a request has ended.

        The payload is what its contract has encoded. Raises DecisionError.
        """
        report: Callable[[Any], None] = self.driver.report
        self.call(report, payload, limit_ms, now_ms)

    def call(
        self,
        function: Callable[[_A], _R],
        argument: _A,
        limit_ms: float | None = None,
        now_ms: int = 0,
        entropy: int = 0,
    ) -> _R:
        """Have a function call the guest; what fails is a DecisionError, and poisons the instance.

        The error is raised outside of the handler: one that kept the trap would keep the trap's
        frames, and with them the dead instance's memory.
        """
        clock, host = self._clock, self._host
        if limit_ms is None:
            limit_ms = self._sandbox.config.max_execution_time_ms
        failure: DecisionError | None = None
        with self._lock:
            try:
                timer = clock.here.timer
                timer.begin((limit_ms - self.spent_ms) / 1000)
            except OSError as error:
                detail = f"its deadline cannot be set: {error.strerror}"
                raise self._failed("trap", detail) from None
            self.spent_ms = 0.0
            if host is not None:
                host.begin(now_ms, entropy, timer.end_now)
            try:
                if clock.closed:  # not sooner: what begins later, closing it does not see
                    raise self._failed("trap", "the router has stopped")
                result = function(argument)
            except _FAILURES as error:
                failure = self._failure(error, timer, limit_ms)
                error.__traceback__ = None  # a frame of wasmtime's may hold the error: a cycle
            finally:
                timer.ends_at = NEVER
                if host is not None:
                    host.end()
        if host is not None and host.exit_code is not None:
            detail = f"called proc_exit({host.exit_code}); a plugin must not exit"
            words = LastWords() if failure is None else failure.words
            failure = self._failed("trap", detail, self._words(words.backtrace, exited=True))
        if failure is None:
            return result
        self.poisoned = failure.kind != "plugin_error"
        try:
            raise failure
        finally:
            del failure  # its traceback holds this frame: a cycle

    def _start(self, _: None) -> Driver | TableDriver | ComponentDriver:
        sandbox, store = self._sandbox, self._store
        if sandbox.module.component is not None:
            return sandbox.start_component(store, sandbox.module.component)
        guest = sandbox.instantiate(store)
        runtime = sandbox.runtime
        self._exports = exports = guest.exports(store)
        for name in ("_initialize", "init"):
            if name in sandbox.module.exports:
                runtime.calls.function(store, exports, name)()
        if sandbox.module.abi == "table_v1":
            given = orjson.dumps(dict(sandbox.config.config))
            return TableDriver(store, runtime.table_driver, exports, runtime.calls, config=given)
        return Driver(store, runtime.driver, exports, runtime.calls)

    def failed(self, error: GuestError, words: LastWords | None = None) -> DecisionError:
        """What a guest that has broken the contract comes to; it is thrown away."""
        self.poisoned = True
        limit = f"; max_memory_bytes is {self._sandbox.config.max_memory_bytes:,}"
        detail = error.detail + (limit if error.kind == "out_of_memory" else "")
        return self._failed(error.kind, detail, words)

    def _failure(
        self,
        error: GuestError | Ended,
        timer: CallTimer,
        limit_ms: float,
    ) -> DecisionError:
        config = self._sandbox.config
        if isinstance(error, GuestError):
            return self.failed(error, self._words())
        if timer.expired and self._clock.closed:
            return self._failed("trap", "the router has stopped")
        if timer.expired:
            option, limit = "max_execution_time_ms", config.max_execution_time_ms
            if limit_ms <= config.inline_budget_ms < limit:
                option, limit = "inline_budget_ms", config.inline_budget_ms
            detail = f"ran longer than {option} ({limit:,})"
            return self._failed("timeout", detail, self._words(backtrace_of(error)))
        panic, backtrace = panic_text(self._store, self._exports), backtrace_of(error)
        detail = cause_of(error)
        if self._sandbox.module.component is not None and (called := stubbed_call(backtrace)):
            detail += _NO_SYSTEM % called
        return self._failed("trap", detail, self._words(backtrace, panic))

    def _words(
        self, backtrace: tuple[str, ...] = (), panic: str | None = None, *, exited: bool = False
    ) -> LastWords:
        output = None if self._host is None else self._host.output.last
        panic = panic or panic_in(output)
        if panic is None and output is not None and exited:
            panic = output.splitlines()[-1]  # who gives up says why, and goes
        return LastWords(panic, output, backtrace)

    def _failed(
        self, kind: FailureKind, detail: str, words: LastWords | None = None
    ) -> DecisionError:
        return DecisionError(self._sandbox.config.name, kind, detail, words or LastWords())
