"""The component encoding, version 1: what a component is given, and what its answer means.

The types are those of `wit/policy.wit`. An input is plain data that refers to nothing that changes
after it was made, so that a decision can wait for its turn; how it becomes a value that wasmtime
takes is `component_values`.
"""

from collections.abc import Collection
from typing import Any, NamedTuple

import orjson

from sgl_router.core.policy import Outcome
from sgl_router.core.registry import WorkerView
from sgl_router.core.request import CHARACTERS_PER_TOKEN, RequestView
from sgl_router.core.worker import Worker
from sgl_router.errors import DecisionError
from sgl_router.wasm.abi.hashes import cut
from sgl_router.wasm.abi.json_v1 import (
    MAX_ERROR_CHARACTERS,
    MAX_FIELD_CHARACTERS,
    MAX_RESULT_BYTES,
    PluginState,
)
from sgl_router.wasm.abi.wit_types import Function, ListOf, Option, Record, Result, TupleOf
from sgl_router.wasm.abi.worker_list import MAX_KEPT_VIEWS
from sgl_router.wasm.printable import printable

INTERFACE = "sgl:router/policy@1.0.0"
"""What a component exports that is a policy."""

ENGINE_METRICS = Record(
    (
        ("queued", "u32"),
        ("running", "u32"),
        ("kv-usage", Option("f64")),
        ("metrics-age-ms", "u64"),
    )
)
WORKER_INFO = Record(
    (
        ("id", "string"),
        ("weight", "f64"),
        ("labels", ListOf(TupleOf(("string", "string")))),
        ("ttft-ms", Option("f64")),
    )
)
WORKER = Record(
    (
        ("url", "string"),
        ("healthy", "bool"),
        ("load", "u32"),
        ("pending-tokens", Option("u64")),
        ("prefix-match", Option("u64")),
        ("engine-metrics", Option(ENGINE_METRICS)),
        ("worker-info", Option(WORKER_INFO)),
    )
)
REQUEST = Record(
    (
        ("id", "string"),
        ("path", "string"),
        ("model", Option("string")),
        ("stream", "bool"),
        ("session", Option("string")),
        ("attempt", "u32"),
        ("text-bytes", "u64"),
        ("prompt-tokens", Option("u64")),
    )
)
INPUT = Record(
    (
        ("workers", ListOf(WORKER)),
        ("request-text", Option("string")),
        ("request", REQUEST),
        ("state", "string"),
        ("now-ms", "u64"),
        ("entropy", "u64"),
    )
)
DECISION = Record((("selected-worker", Option("u32")), ("state", Option("string"))))
OUTCOME = Record(
    (
        ("worker", "string"),
        ("success", "bool"),
        ("status", Option("u16")),
        ("ttft-ms", Option("f64")),
        ("duration-ms", "f64"),
        ("output-chunks", "u32"),
        ("error", Option("string")),
    )
)
FUNCTIONS = {
    "init": Function((("config", "string"),), Result(None, "string")),
    "select-worker": Function((("input", INPUT),), Result(DECISION, "string")),
    "on-request-complete": Function((("outcome", OUTCOME),), None),
}
"""Of the interface."""

MAX_U32 = 2**32 - 1
MAX_TEXT_BYTES = MAX_RESULT_BYTES
"""Of a text in an answer; what is longer is read up to one byte more, by which it is known."""

Info = tuple[bytes, float, tuple[tuple[bytes, bytes], ...]]
"""`id`, `weight` and `labels` of a worker."""

Metrics = tuple[int, int, float | None, int]
"""`queued`, `running`, `kv-usage` and `metrics-age-ms` of a worker."""


class WorkerFrame:
    """What does not change of a view's workers from one decision to the next.

    Attributes:
        members: the workers; for the encoder only.
        urls: for each worker, in UTF-8.
        healthy: for each worker.
        infos: for each worker, or None where the plugin does not need them.
    """

    __slots__ = ("__weakref__", "healthy", "infos", "members", "urls")

    def __init__(self, workers: WorkerView, *, with_info: bool) -> None:
        self.members: tuple[Worker, ...] = workers[:]
        self.urls = [worker.url.encode("ascii") for worker in workers]
        self.healthy = workers.healthy
        self.infos = [_info(worker) for worker in workers] if with_info else None


class ComponentInput(NamedTuple):
    """The input of `select-worker`; texts in UTF-8.

    Attributes:
        frame: of the workers; the lists that follow are for each worker in it. They are None where
            the plugin does not need them.
        texts: the request's `id` and `path`, its `model` and `session`, `request-text` and the
            state.
    """

    frame: WorkerFrame
    loads: list[int]
    pending_tokens: list[int] | None
    prefix_match: list[int] | None
    metrics: list[Metrics | None] | None
    ttft_ms: list[float | None] | None
    texts: tuple[bytes, bytes, bytes | None, bytes | None, bytes | None, bytes]
    stream: bool
    attempt: int
    text_bytes: int
    prompt_tokens: int | None
    now_ms: int
    entropy: int


class ComponentOutcome(NamedTuple):
    """The input of `on-request-complete`; texts in UTF-8."""

    worker: bytes
    success: bool
    status: int | None
    ttft_ms: float | None
    duration_ms: float
    output_chunks: int
    error: bytes | None


class ComponentAnswer(NamedTuple):
    """What `select-worker` has returned, not yet judged.

    Attributes:
        selected_worker: an index.
        state: UTF-8, cut after `MAX_TEXT_BYTES` and one byte, as is the next.
        error: of a result that is one; the rest is None then.
    """

    selected_worker: int | None
    state: bytes | None
    error: bytes | None


class ComponentEncoder:
    """Encodes inputs for one plugin; one thread's at a time.

    What is true of `WorkerListEncoder` is true of this: what changes of a worker besides the
    numbers has to come with a new view.

    Args:
        needs: what the plugin's manifest asks for.
        max_text_bytes: where the text is cut, at a character's boundary.
        reads_body: if not, whatever the body would tell stands for that of an empty one.
    """

    def __init__(
        self, needs: Collection[str], max_text_bytes: int, reads_body: bool = True
    ) -> None:
        self._with_text = "request_text" in needs
        self._with_tokens = "pending_tokens" in needs
        self._with_prefixes = "prefix_match" in needs
        self._with_metrics = "engine_metrics" in needs
        self._with_info = "worker_info" in needs
        self._max_text_bytes = max_text_bytes
        self._reads_body = reads_body
        self._frames: dict[WorkerView, WorkerFrame] = {}
        self._state: tuple[PluginState | None, bytes] = (None, b"{}")

    def encode(
        self, workers: WorkerView, request: RequestView, state: PluginState
    ) -> ComponentInput:
        """The input of `select-worker`."""
        frame = self._frames.get(workers)
        if frame is None:
            frame = WorkerFrame(workers, with_info=self._with_info)
            if not request.excluded:  # a view for a request that is tried again is not seen twice
                self._keep(workers, frame)
        members = frame.members
        if self._state[0] is not state:
            self._state = state, orjson.dumps(state.encoded)
        if self._reads_body:
            text, model, session = request.text, request.model, request.session
            stream = request.stream
        else:
            text, model, session, stream = None, None, request.routing_key, False
        return ComponentInput(
            frame=frame,
            loads=[min(worker.load, MAX_U32) for worker in members],
            pending_tokens=[w.pending_tokens for w in members] if self._with_tokens else None,
            prefix_match=self._matches(members, request) if self._with_prefixes else None,
            metrics=[_metrics(w, request.now_ms) for w in members] if self._with_metrics else None,
            ttft_ms=[worker.ttft_ms for worker in members] if self._with_info else None,
            texts=(
                _utf_8(request.id[:MAX_FIELD_CHARACTERS]),
                _utf_8(request.path[:MAX_FIELD_CHARACTERS]),
                None if model is None else _utf_8(model[:MAX_FIELD_CHARACTERS]),
                None if session is None else _utf_8(session[:MAX_FIELD_CHARACTERS]),
                cut(text, self._max_text_bytes) if text is not None and self._with_text else None,
                self._state[1],
            ),
            stream=stream,
            attempt=request.attempt,
            text_bytes=_utf_8_bytes(text),
            prompt_tokens=request.prompt_tokens if self._with_tokens else None,
            now_ms=request.now_ms,
            entropy=request.entropy,
        )

    def _matches(self, members: tuple[Worker, ...], request: RequestView) -> list[int]:
        prefix = request.prefix
        if prefix is None:
            return [0] * len(members)
        return [prefix.of(worker) // CHARACTERS_PER_TOKEN for worker in members]

    def _keep(self, workers: WorkerView, frame: WorkerFrame) -> None:
        if len(self._frames) >= MAX_KEPT_VIEWS:
            self._frames.clear()  # most of them are of views that are gone
        self._frames[workers] = frame


def encode_outcome(outcome: Outcome) -> ComponentOutcome:
    """The input of `on-request-complete`."""
    return ComponentOutcome(
        worker=_utf_8(outcome.worker_url),
        success=outcome.success,
        status=outcome.status,
        ttft_ms=outcome.ttft_ms,
        duration_ms=outcome.duration_ms,
        output_chunks=min(outcome.output_chunks, MAX_U32),
        error=None if outcome.error is None else _utf_8(outcome.error),
    )


def state_patch(plugin: str, answer: ComponentAnswer) -> dict[str, Any] | None:
    """What an answer changes of the state.

    Raises DecisionError: `plugin_error` where the plugin reports an error itself, `bad_output`
    where its state is not a JSON object of at most `MAX_TEXT_BYTES`.
    """
    if answer.error is not None:
        raise DecisionError(plugin, "plugin_error", error_text(answer.error))
    state = answer.state
    if state is None:
        return None
    if len(state) > MAX_TEXT_BYTES:
        raise DecisionError(
            plugin,
            "bad_output",
            f"the state in its result has more than {MAX_TEXT_BYTES:,} bytes, the most that it may "
            "have",
        )
    try:
        patch = orjson.loads(state)
    except orjson.JSONDecodeError as error:
        raise DecisionError(
            plugin, "bad_output", f"the state in its result is not JSON: {error}"
        ) from error
    if not isinstance(patch, dict):
        raise DecisionError(plugin, "bad_output", "the state in its result is not a JSON object")
    return patch


def error_text(error: bytes) -> str:
    """What a plugin reports, cut and escaped."""
    if len(error) <= MAX_TEXT_BYTES:
        return printable(error.decode("utf-8", "replace"), MAX_ERROR_CHARACTERS)
    kept = error.decode("utf-8", "replace")[:MAX_ERROR_CHARACTERS]
    return f"{printable(kept)}… (more than {MAX_TEXT_BYTES:,} bytes)"


def _utf_8(text: str) -> bytes:
    """Without lone surrogates, which JSON can spell and UTF-8 cannot."""
    return text.encode("utf-8", "replace")


def _utf_8_bytes(text: str | None) -> int:
    if text is None:
        return 0
    return len(text) if text.isascii() else len(text.encode("utf-8", "replace"))


def _info(worker: Worker) -> Info:
    labels = tuple((_utf_8(key), _utf_8(label)) for key, label in worker.labels.items())
    return worker.id.encode("ascii"), worker.weight, labels


def _metrics(worker: Worker, now_ms: int) -> Metrics | None:
    said = worker.metrics
    if said is None:
        return None
    age_ms = max(0, now_ms - said.at_ms)  # clocks are set back at times
    return min(said.queued, MAX_U32), min(said.running, MAX_U32), said.kv_usage, age_ms
