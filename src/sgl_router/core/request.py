"""What a policy may know of a request.

Text and session key are extracted from the body when they are first asked for, and once.
"""

from typing import Any

import orjson

from sgl_router.core.prefix_index import PrefixMatch
from sgl_router.core.registry import NO_WORKERS
from sgl_router.core.worker import Worker

CHARACTERS_PER_TOKEN = 4
"""Of English text, by the usual rule of thumb; the router has no tokenizer."""

KNOWN_BY_BYTES = 32 * 1024
"""Of a body's beginning and its end; see `RequestView.fingerprint`."""

ENDPOINTS = frozenset(
    {
        "/apply-template",
        "/chat/completions",
        "/classify",
        "/completion",
        "/completions",
        "/detokenize",
        "/embedding",
        "/embeddings",
        "/encode",
        "/generate",
        "/infill",
        "/invocations",
        "/pooling",
        "/rerank",
        "/score",
        "/tokenize",
        "/v1/audio/transcriptions",
        "/v1/chat/completions",
        "/v1/classify",
        "/v1/completions",
        "/v1/detokenize",
        "/v1/embeddings",
        "/v1/messages",
        "/v1/rerank",
        "/v1/responses",
        "/v1/score",
        "/v1/tokenize",
    }
)
"""What SGLang, vLLM and llama.cpp are asked for with POST, besides all other paths under `/v1/`."""

# Where each endpoint keeps what it works on; the order is the order of preference.
_TEXT_KEYS = ("prompt", "text", "input_ids", "input", "query", "text_1", "documents")


class RequestView:
    """One request, as policies see it.

    Attributes:
        id: the request id, as it is forwarded to the engine.
        path: the target's path, without the query.
        body: the whole body; empty where the policy in use does not read it.
        routing_key: what the client named for this in a header, or None.
        target: the index of the worker that the client asks for in a header, or None.
        attempt: 0 at first, one more for each worker that the request could not be sent to.
        excluded: the workers already tried.
        prefix: what workers hold of its text; looked up by the dispatcher where the policy needs
            it.
        entropy: 53 random bits, drawn by the dispatcher for each decision.
        now_ms: Unix time in milliseconds, taken by the dispatcher for each decision.
    """

    # What most requests never change stands here, once for all of them.
    routing_key: str | None = None
    target: int | None = None
    attempt = 0
    excluded: frozenset[Worker] = NO_WORKERS
    prefix: PrefixMatch | None = None
    entropy = 0
    now_ms = 0
    _json: dict[str, Any] | None = None
    _text: str | None = None

    def __init__(self, id: str, path: str, body: bytes = b"") -> None:
        self.id = id
        self.path = path
        self.body = body

    @property
    def json(self) -> dict[str, Any]:
        """The body as a JSON object; empty where it is none."""
        if self._json is None:
            self._json = _json_object(self.body)
        return self._json

    @property
    def fingerprint(self) -> int:
        """By which requests for the same are known within this process, but for rare mistakes."""
        body = self.body
        return hash((self.path, len(body), body[:KNOWN_BY_BYTES], body[-KNOWN_BY_BYTES:]))

    @property
    def model(self) -> str | None:
        return _string(self.json.get("model"))

    @property
    def stream(self) -> bool:
        return self.json.get("stream") is True

    @property
    def session(self) -> str | None:
        """What ties requests of one conversation or user together, or None."""
        if self.routing_key:
            return self.routing_key
        return _string(self.json.get("session_id")) or _string(self.json.get("user"))

    @property
    def text(self) -> str | None:
        """The request's text, or None where it has none.

        Chat: the message texts and text parts joined by one space, without roles, tools and
        images; the Messages API's `system` comes first, and so do the Responses API's
        `instructions`. Completion: the prompt. Generate: `text`, else `input_ids`. Embeddings and
        classify: the inputs. Rerank: the query; score: the first text. Several texts are joined by
        one space.
        """
        if self._text is None:
            self._text = _routing_text(self.json)
        return self._text or None

    @property
    def prompt_tokens(self) -> int:
        """An estimate, from the text's length."""
        return len(self.text or "") // CHARACTERS_PER_TOKEN


def _json_object(body: bytes) -> dict[str, Any]:
    if not body:
        return {}
    try:
        parsed = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}  # the engine is the judge of what it is sent; here it only has no text
    return parsed if isinstance(parsed, dict) else {}


def _string(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _routing_text(body: dict[str, Any]) -> str:
    messages = body.get("messages")
    if isinstance(messages, list):
        texts = _texts(body.get("system")) + _message_texts(messages)
    else:
        values = (body[key] for key in _TEXT_KEYS if body.get(key) is not None)
        value, texts = next(values, None), _texts(body.get("instructions"))
        if isinstance(value, list) and value and isinstance(value[0], dict):
            texts += _message_texts(value)
        else:
            texts += _texts(value)
    return texts[0] if len(texts) == 1 else " ".join(texts)


def _message_texts(messages: list[Any]) -> list[str]:
    texts = []
    for message in messages:
        if isinstance(message, dict):
            content = message.get("content", [message])  # else it may be a content part itself
            if type(content) is str and content:  # as most are
                texts.append(content)
            else:
                texts += _texts(content)
    return texts


def _texts(value: object) -> list[str]:
    """The texts in a string, a list of strings, token ids or content parts, in order."""
    if isinstance(value, str):
        return [value] if value else []
    if not isinstance(value, list):
        return []
    texts = []
    pending = value[::-1]  # no recursion: a body may be nested deeper than Python's stack
    while pending:
        item = pending.pop()
        if isinstance(item, dict):
            item = item.get("text")  # a content part stands for its text
        if isinstance(item, str) and item:
            texts.append(item)
        elif type(item) is int:
            texts.append(str(item))
        elif isinstance(item, list):
            pending.extend(reversed(item))
    return texts
