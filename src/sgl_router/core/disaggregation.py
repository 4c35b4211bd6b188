"""What is added to the bodies of a request whose prefill and decode two engines share.

Bodies are not serialised anew: what is added is spliced into the client's bytes, before the brace
that ends the object, so that of two equal keys ours is the last and counts.
"""

from collections.abc import Callable, Mapping
from typing import Any

import orjson

from sgl_router.core.worker import Worker
from sgl_router.errors import RequestError

_VLLM_PREFILL = {
    "do_remote_decode": True,
    "do_remote_prefill": False,
    "remote_engine_id": None,
    "remote_block_ids": None,
    "remote_host": None,
    "remote_port": None,
}
"""What tells a vLLM engine to keep the prompt's KV blocks for another one (its NIXL connector)."""


GENERATING = frozenset(
    {
        "/chat/completions",
        "/completion",
        "/completions",
        "/generate",
        "/invocations",
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/messages",
        "/v1/responses",
    }
)
"""Paths whose requests have two halves; of all others one engine makes the whole answer."""


def splice(body: bytes, added: Mapping[str, Any]) -> bytes:
    """The body, a JSON object that is not empty, with these keys added; the rest as it was."""
    end = body.rstrip()
    assert end.endswith(b"}"), "it has been parsed as an object"
    return b"%b,%b" % (end[:-1], orjson.dumps(added)[1:])


def sglang_bootstrap(
    request: Mapping[str, Any], prefill: Worker, new_room: Callable[[], int]
) -> dict[str, Any]:
    """Where the two SGLang engines meet: host and port of the prefill engine's bootstrap server,
    and a room for each prompt of the request.

    Args:
        request: the request's body.
        prefill: the prefill engine.
        new_room: returns 63 random bits.
    """
    prompts = _batch_size(request)
    # The decode engine puts the two together with a colon.
    host = f"[{prefill.host}]" if ":" in prefill.host else prefill.host
    port = prefill.bootstrap_port
    if prompts is None:
        return {"bootstrap_host": host, "bootstrap_port": port, "bootstrap_room": new_room()}
    return {
        "bootstrap_host": [host] * prompts,
        "bootstrap_port": [port] * prompts,
        "bootstrap_room": [new_room() for _ in range(prompts)],
    }


def vllm_prefill(path: str, request: Mapping[str, Any]) -> bytes:
    """The body for a vLLM prefill engine: one token, and the KV blocks kept.

    Args:
        path: the request's; the Responses API has a name of its own for the limit.
        request: its body.
    """
    body = {key: value for key, value in request.items() if key != "stream_options"}
    body |= {"stream": False, "max_tokens": 1, "kv_transfer_params": _VLLM_PREFILL}
    if path == "/v1/responses":
        body["max_output_tokens"] = 1
    if "max_completion_tokens" in body:
        body["max_completion_tokens"] = 1
    if "min_tokens" in body:
        body["min_tokens"] = min(body["min_tokens"], 1) if _is_number(body["min_tokens"]) else 0
    return orjson.dumps(body)


def vllm_decode(body: bytes, prefill_answer: bytes) -> bytes:
    """The client's body with what the prefill engine says of its KV blocks.

    Raises RequestError (502) where its answer does not say it.
    """
    try:
        answer = orjson.loads(prefill_answer)
    except orjson.JSONDecodeError:
        answer = None
    params = answer.get("kv_transfer_params") if isinstance(answer, dict) else None
    if not isinstance(params, dict):
        raise RequestError(
            502,
            "call_upstream_protocol_error",
            "the prefill engine's answer has no kv_transfer_params (is its KV connector set up?)",
        )
    return splice(body, {"kv_transfer_params": params})


def _batch_size(request: Mapping[str, Any]) -> int | None:
    """How many prompts the request holds; None where it is one, not a list."""
    text = request.get("text")
    if isinstance(text, list):
        return len(text)
    tokens = request.get("input_ids")
    if isinstance(tokens, list) and tokens and isinstance(tokens[0], list):
        return len(tokens)
    prompt = request.get("prompt")
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], str | list):
        return len(prompt)
    return None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
