"""Calls into a component: through wasmtime's C API, or through its Python classes.

The C API copies what it is given before the call, so that parameters are ours and stay where they
are. What it returns is its own until it is deleted, and is deleted as soon as it was read. A text
in it has been copied out of the guest's memory and is never larger than that; only its beginning is
copied again.

The functions are those of wasmtime's `component/func.h` and `component/val.h`; see
`component_blocks` for how values are laid out.
"""

import ctypes
from collections.abc import Callable
from struct import Struct
from typing import NamedTuple, Protocol, TypeVar
from weakref import WeakKeyDictionary

import wasmtime
from wasmtime import _ffi
from wasmtime.component import Func, Record

from sgl_router.wasm.abi.component_v1 import (
    MAX_TEXT_BYTES,
    ComponentAnswer,
    ComponentInput,
    ComponentOutcome,
    WorkerFrame,
)
from sgl_router.wasm.calls import c_function, context_of, keeping, pointer, releasing
from sgl_router.wasm.component_blocks import VALUE_WORDS, Words
from sgl_router.wasm.component_values import (
    InputValue,
    OutcomeValue,
    TextValue,
    WorkerValues,
)

_call = c_function(releasing, "wasmtime_component_func_call", ctypes.c_void_p)
_delete = c_function(keeping, "wasmtime_component_val_delete", None)

_VALUE = Struct("<8xQQ8x")  # a value without its kind, which its type tells
_DECISION = Struct("<24xQ16x24xQ16x")  # of a record with two options: where the two have something
_U32 = Struct("<8xI")
_BYTE = 0xFF


_R = TypeVar("_R")


class Functions(NamedTuple):
    """Of one instance; their types are those of the contract."""

    init: Func
    select_worker: Func
    on_request_complete: Func


class PolicyCalls(Protocol):
    """The functions of one instance of a component. All raise wasmtime.WasmtimeError."""

    def init(self, config: bytes) -> bytes | None:
        """Its configuration, as JSON; returns why it is refused, cut after `MAX_TEXT_BYTES` and
        one byte."""

    def select_worker(self, given: ComponentInput) -> ComponentAnswer:
        """One decision."""

    def on_request_complete(self, given: ComponentOutcome) -> None:
        """How a request has ended."""


class FastComponentCalls:
    """Through the C API."""

    def __init__(self, store: wasmtime.Store, functions: Functions) -> None:
        self._store = store
        self._functions = functions
        self._input = InputValue()
        self._select = _Call(store, functions.select_worker, self._input.address)
        self._report: tuple[OutcomeValue, _Call] | None = None
        self._frame: WorkerFrame | None = None
        self._workers: WorkerValues | None = None
        self._laid: WeakKeyDictionary[WorkerFrame, WorkerValues] = WeakKeyDictionary()

    def init(self, config: bytes) -> bytes | None:
        given = TextValue(config)
        call = _Call(self._store, self._functions.init, given.address)
        return call.make(lambda is_ok, at: None if is_ok else _text_at(at))

    def select_worker(self, given: ComponentInput) -> ComponentAnswer:
        workers = self._workers
        if workers is None or given.frame is not self._frame:
            workers = self._values_of(given)
        workers.fill(given)
        self._input.fill(given, workers)
        return self._select.make(_answer_at)

    def on_request_complete(self, given: ComponentOutcome) -> None:
        if self._report is None:
            value = OutcomeValue()
            function = self._functions.on_request_complete
            self._report = value, _Call(self._store, function, value.address, results=0)
        value, call = self._report
        value.fill(given)
        call.make(lambda is_ok, at: None)

    def _values_of(self, given: ComponentInput) -> WorkerValues:
        found = self._laid.get(given.frame)
        if found is None:
            found = self._laid[given.frame] = WorkerValues(given)
        self._frame, self._workers = given.frame, found
        return found


class _Call:
    """Of a function of one parameter that stands at an address, and at most one result."""

    def __init__(
        self, store: wasmtime.Store, function: Func, parameter: int, results: int = 1
    ) -> None:
        self._keep = (store, function)
        # What is here when a call returns is deleted by it, and has to be a value: at first, and
        # again after each call, a `false`, which owns nothing.
        self._result = Words(VALUE_WORDS)
        self._delete = (pointer(self._result.address),)
        self._arguments = (
            pointer(ctypes.addressof(function._func)),
            context_of(store),
            pointer(parameter),
            ctypes.c_size_t.from_param(1),
            pointer(self._result.address),
            ctypes.c_size_t.from_param(results),
        )

    def make(self, read: Callable[[bool, int], _R]) -> _R:
        """Call, and return what `read` makes of the result: whether it is ok, and where the value
        stands that it carries."""
        error = _call(*self._arguments)
        if error is not None:
            raise wasmtime.WasmtimeError._from_ptr(
                ctypes.cast(error, ctypes.POINTER(_ffi.wasmtime_error_t))
            )
        words = self._result.whole
        try:
            return read(words[1] & _BYTE != 0, words[2])
        finally:
            _delete(*self._delete)
            words[0] = 0


def _answer_at(is_ok: bool, at: int) -> ComponentAnswer:
    if not is_ok:
        return ComponentAnswer(None, None, _text_at(at))
    _, fields = _VALUE.unpack(ctypes.string_at(at, _VALUE.size))
    index_at, state_at = _DECISION.unpack(ctypes.string_at(fields, _DECISION.size))
    return ComponentAnswer(
        _U32.unpack(ctypes.string_at(index_at, _U32.size))[0] if index_at else None,
        _text_at(state_at) if state_at else None,
        None,
    )


def _text_at(at: int) -> bytes:
    """The beginning of the text of a value."""
    size, data = _VALUE.unpack(ctypes.string_at(at, _VALUE.size))
    return ctypes.string_at(data, min(size, MAX_TEXT_BYTES + 1))


class PublicComponentCalls:
    """Through wasmtime's Python classes, which takes some 50 times as long."""

    def __init__(self, store: wasmtime.Store, functions: Functions) -> None:
        self._store = store
        self._functions = functions

    def init(self, config: bytes) -> bytes | None:
        error = self._functions.init(self._store, config.decode())
        return None if error is None else _beginning(error)

    def select_worker(self, given: ComponentInput) -> ComponentAnswer:
        answer = self._functions.select_worker(self._store, _input(given))
        if isinstance(answer, str):
            return ComponentAnswer(None, None, _beginning(answer))
        index, state = getattr(answer, "selected-worker"), answer.state
        return ComponentAnswer(index, None if state is None else _beginning(state), None)

    def on_request_complete(self, given: ComponentOutcome) -> None:
        outcome = _record(
            worker=given.worker.decode(),
            success=given.success,
            status=given.status,
            ttft_ms=given.ttft_ms,
            duration_ms=float(given.duration_ms),
            output_chunks=given.output_chunks,
            error=None if given.error is None else given.error.decode(),
        )
        self._functions.on_request_complete(self._store, outcome)


def _beginning(text: str) -> bytes:
    return text.encode()[: MAX_TEXT_BYTES + 1]


def _record(**fields: object) -> Record:
    record = Record()
    for name, value in fields.items():
        setattr(record, name.replace("_", "-"), value)
    return record


def _input(given: ComponentInput) -> Record:
    id, path, model, session, text, state = (
        None if text is None else text.decode() for text in given.texts
    )
    request = _record(
        id=id,
        path=path,
        model=model,
        stream=given.stream,
        session=session,
        attempt=given.attempt,
        text_bytes=given.text_bytes,
        prompt_tokens=given.prompt_tokens,
    )
    return _record(
        workers=[_worker(given, i) for i in range(len(given.loads))],
        request_text=text,
        request=request,
        state=state,
        now_ms=given.now_ms,
        entropy=given.entropy,
    )


def _worker(given: ComponentInput, i: int) -> Record:
    frame = given.frame
    metrics = info = None
    if given.metrics is not None and (said := given.metrics[i]) is not None:
        queued, running, usage, age_ms = said
        usage = None if usage is None else float(usage)
        metrics = _record(queued=queued, running=running, kv_usage=usage, metrics_age_ms=age_ms)
    if frame.infos is not None and given.ttft_ms is not None:
        id, weight, labels = frame.infos[i]
        info = _record(
            id=id.decode(),
            weight=float(weight),
            labels=[(key.decode(), label.decode()) for key, label in labels],
            ttft_ms=given.ttft_ms[i],
        )
    return _record(
        url=frame.urls[i].decode(),
        healthy=frame.healthy[i],
        load=given.loads[i],
        pending_tokens=None if given.pending_tokens is None else given.pending_tokens[i],
        prefix_match=None if given.prefix_match is None else given.prefix_match[i],
        engine_metrics=metrics,
        worker_info=info,
    )
