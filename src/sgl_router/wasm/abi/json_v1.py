"""The JSON encoding, version 1: what a plugin is given, and what it answers."""

from collections.abc import Collection, Mapping
from typing import Any

import orjson

from sgl_router.core.policy import Outcome
from sgl_router.core.registry import WorkerView
from sgl_router.core.request import RequestView
from sgl_router.errors import DecisionError
from sgl_router.wasm.abi.worker_list import WorkerListEncoder
from sgl_router.wasm.printable import printable, shown

MAX_RESULT_BYTES = 64 * 1024
MAX_STATE_BYTES = 64 * 1024
MAX_ERROR_CHARACTERS = 1024
MAX_FIELD_CHARACTERS = 1024
"""Of the request's id, path, model and session: a client must not be able to fill the guest."""

Answer = tuple[int | None, dict[str, Any] | None]
"""`selected_worker`, not yet judged, and `state` of a plugin's result."""


class PluginState:
    """What a plugin has returned to be given back; never changed, but replaced.

    Attributes:
        values: decoded, to be merged into.
        encoded: the same as JSON, to be sent.
        size: of that, in bytes.
    """

    __slots__ = ("encoded", "size", "values")

    def __init__(self, values: dict[str, Any], encoded: bytes) -> None:
        self.values = values
        self.encoded = orjson.Fragment(encoded)
        self.size = len(encoded)

    def merged(self, plugin: str, patch: dict[str, Any]) -> "PluginState":
        """The state with `patch` merged into it key by key; null removes a key.

        Raises DecisionError (`bad_output`) where the result is larger than `MAX_STATE_BYTES` or
        nested more deeply than orjson writes (254 levels; it reads 1,024).
        """
        if not self._changed_by(patch):
            return self
        values = {**self.values, **patch}
        if None in patch.values():
            values = {key: value for key, value in values.items() if value is not None}
        try:
            encoded = orjson.dumps(values)
        except orjson.JSONEncodeError as error:
            raise DecisionError(plugin, "bad_output", f"its state is refused: {error}") from error
        if len(encoded) > MAX_STATE_BYTES:
            raise DecisionError(
                plugin,
                "bad_output",
                f"its state would be {len(encoded):,} bytes; at most {MAX_STATE_BYTES:,} are "
                "allowed",
            )
        return PluginState(values, encoded)

    def _changed_by(self, patch: dict[str, Any]) -> bool:
        """False only where nothing changes; what Python takes for equal can differ in JSON."""
        for key, value in patch.items():
            if isinstance(value, (float, list, dict)):  # 0.0 and -0.0, [1] and [true]
                return True
            before = self.values.get(key)
            if type(value) is not type(before) or value != before:
                return True
        return False


EMPTY_STATE = PluginState({}, b"{}")


class JsonEncoder:
    """Encodes inputs for one plugin.

    Args:
        config: the plugin's configuration; constant, so it is encoded once.
        needs: what the plugin's manifest asks for: here `request_text` and `pending_tokens`, for
            the workers see `WorkerListEncoder`.
        max_text_bytes: where the text is cut, at a character's boundary.
        reads_body: if not, whatever the body would tell stands for that of an empty one.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        *,
        needs: Collection[str],
        max_text_bytes: int,
        reads_body: bool = True,
    ) -> None:
        self._config = orjson.Fragment(orjson.dumps(dict(config)))
        self._workers = WorkerListEncoder(needs)
        self._with_text = "request_text" in needs
        self._with_tokens = "pending_tokens" in needs
        self._max_text_bytes = max_text_bytes
        self._reads_body = reads_body

    def encode_request(
        self, workers: WorkerView, request: RequestView, state: PluginState
    ) -> bytes:
        """The input of `select_worker`."""
        if self._reads_body:
            text, model, session = request.text, request.model, request.session
            stream = request.stream
        else:
            text, model, session, stream = None, None, request.routing_key, False
        if text is None:
            size = 0
        elif text.isascii():
            size = len(text)
        else:
            size = len(text.encode("utf-8", "replace"))
        asked = {
            "id": request.id[:MAX_FIELD_CHARACTERS],
            "path": request.path[:MAX_FIELD_CHARACTERS],
            "model": None if model is None else model[:MAX_FIELD_CHARACTERS],
            "stream": stream,
            "session": None if session is None else session[:MAX_FIELD_CHARACTERS],
            "attempt": request.attempt,
            "text_bytes": size,
        }
        if self._with_tokens:
            asked["prompt_tokens"] = request.prompt_tokens
        if text is not None:
            text = _cut(text, self._max_text_bytes) if self._with_text else None
        return orjson.dumps(
            {
                "workers": orjson.Fragment(self._workers.encode(workers, request)),
                "request_text": text,
                "config": self._config,
                "state": state.encoded,
                "request": asked,
                "now_ms": request.now_ms,
                "entropy": request.entropy,
            }
        )

    def encode_outcome(self, outcome: Outcome, state: PluginState) -> bytes:
        """The input of `on_request_complete`."""
        return orjson.dumps(
            {
                "worker": outcome.worker_url,
                "success": outcome.success,
                "status": outcome.status,
                "ttft_ms": outcome.ttft_ms,
                "duration_ms": outcome.duration_ms,
                "output_chunks": outcome.output_chunks,
                "error": outcome.error,
                "config": self._config,
                "state": state.encoded,
            }
        )


def decode_answer(plugin: str, result: bytes) -> Answer:
    """Decode what `select_worker` returned.

    Raises DecisionError: `bad_output` where it is not of the contract's shape, `out_of_range`
    where the index is no integer, `plugin_error` where the plugin reports an error itself.
    """
    try:
        answer = orjson.loads(result)
    except orjson.JSONDecodeError as error:
        raise DecisionError(plugin, "bad_output", f"its result is not JSON: {error}") from error
    if not isinstance(answer, dict):
        raise DecisionError(plugin, "bad_output", "its result is not a JSON object")
    message = answer.get("error")
    if isinstance(message, str):
        raise DecisionError(plugin, "plugin_error", printable(message, MAX_ERROR_CHARACTERS))
    state = answer.get("state")
    if message is not None or not (state is None or isinstance(state, dict)):
        raise DecisionError(
            plugin,
            "bad_output",
            "its result has an error that is no string or a state that is no object",
        )
    index = answer.get("selected_worker")
    if index is not None and type(index) is not int:
        raise DecisionError(
            plugin, "out_of_range", f"selected_worker is {shown(index)}; expected a whole number"
        )
    return index, state


def _cut(text: str, limit: int) -> str:
    """The text within `limit` UTF-8 bytes."""
    if text.isascii():
        return text[:limit]
    return text.encode("utf-8", "replace")[:limit].decode("utf-8", "ignore")
