"""The JSON encoding, version 1: what a plugin is given, and what it answers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from sgl_router.core.policy import Outcome
from sgl_router.core.registry import WorkerView
from sgl_router.core.request import RequestView
from sgl_router.errors import DecisionError
from sgl_router.wasm.printable import printable, shown

MAX_RESULT_BYTES = 64 * 1024
MAX_STATE_BYTES = 64 * 1024
MAX_ERROR_CHARACTERS = 1024
MAX_FIELD_CHARACTERS = 1024
"""Of the request's id, path, model and session: a client must not be able to fill the guest."""
EMPTY_STATE = b"{}"


@dataclass(frozen=True, slots=True)
class PluginAnswer:
    """A result that keeps the contract's shape; the index is not yet judged."""

    selected_worker: int | None
    state: dict[str, Any] | None


class JsonEncoder:
    """Encodes inputs for one plugin.

    Args:
        config: the plugin's configuration; constant, so it is encoded once.
        with_text: whether the plugin reads the request's text.
        max_text_bytes: where the text is cut, at a character's boundary.
    """

    def __init__(self, config: Mapping[str, Any], *, with_text: bool, max_text_bytes: int) -> None:
        self._config = orjson.Fragment(orjson.dumps(dict(config)))
        self._with_text = with_text
        self._max_text_bytes = max_text_bytes

    def encode_request(self, workers: WorkerView, request: RequestView, state: bytes) -> bytes:
        """The input of `select_worker`."""
        text = request.text
        shown, size = _cut(text, self._max_text_bytes) if text is not None else (None, 0)
        return orjson.dumps(
            {
                "workers": [
                    {"url": worker.url, "healthy": healthy, "load": worker.load}
                    for worker, healthy in zip(workers, workers.healthy, strict=True)
                ],
                "request_text": shown if self._with_text else None,
                "config": self._config,
                "state": orjson.Fragment(state),
                "request": {
                    "id": request.id[:MAX_FIELD_CHARACTERS],
                    "path": request.path[:MAX_FIELD_CHARACTERS],
                    "model": _short(request.model),
                    "stream": request.stream,
                    "session": _short(request.session),
                    "attempt": request.attempt,
                    "text_bytes": size,
                },
                "now_ms": request.now_ms,
                "entropy": request.entropy,
            }
        )

    def encode_outcome(self, outcome: Outcome, state: bytes) -> bytes:
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
                "state": orjson.Fragment(state),
            }
        )


def decode_answer(plugin: str, result: bytes) -> PluginAnswer:
    """Decode what `select_worker` returned, at most `MAX_RESULT_BYTES`.

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
    return PluginAnswer(index, state)


def merge_state(plugin: str, state: bytes, patch: dict[str, Any]) -> bytes:
    """The state with `patch` merged into it key by key; null removes a key.

    Raises DecisionError (`bad_output`) where the result is larger than `MAX_STATE_BYTES` or
    nested more deeply than orjson writes (254 levels; it reads 1,024).
    """
    merged = orjson.loads(state)
    merged.update(patch)
    try:
        encoded = orjson.dumps({key: value for key, value in merged.items() if value is not None})
    except orjson.JSONEncodeError as error:
        raise DecisionError(plugin, "bad_output", f"its state is refused: {error}") from error
    if len(encoded) > MAX_STATE_BYTES:
        raise DecisionError(
            plugin,
            "bad_output",
            f"its state would be {len(encoded):,} bytes; at most {MAX_STATE_BYTES:,} are allowed",
        )
    return encoded


def _short(text: str | None) -> str | None:
    return None if text is None else text[:MAX_FIELD_CHARACTERS]


def _cut(text: str, limit: int) -> tuple[str, int]:
    """The text within `limit` UTF-8 bytes, and how many it has in full."""
    if text.isascii():
        return text[:limit], len(text)
    encoded = text.encode("utf-8", "replace")
    if len(encoded) <= limit:
        return text, len(encoded)
    return encoded[:limit].decode("utf-8", "ignore"), len(encoded)
