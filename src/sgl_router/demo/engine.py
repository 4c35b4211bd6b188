"""A small inference engine: the OpenAI API with a speed that can be set and no model behind it.

It has as many slots as it computes answers at once; further requests wait, as in a real engine.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any, cast

import orjson

from sgl_router.errors import ProtocolError
from sgl_router.http1.head import END, LAST_CHUNK, chunk
from sgl_router.http1.request import RequestHead, RequestParser
from sgl_router.http1.response import encode_response

_WORDS = ("the", "quick", "brown", "fox", "jumps", "over", "the", "lazy", "dog")
DEFAULT_TOKENS = 16
MAX_TOKENS = 4096


@dataclass(frozen=True, slots=True)
class EngineSpeed:
    """Milliseconds to the first token and for each further one, and answers computed at once."""

    first_token_ms: float = 20.0
    token_ms: float = 5.0
    slots: int = 8


class DemoEngine:
    """One engine.

    Attributes:
        served: requests answered completely.
        abandoned: requests whose client left before the end.
    """

    def __init__(self, name: str, speed: EngineSpeed) -> None:
        self.name = name
        self.speed = speed
        self.served = 0
        self.abandoned = 0
        self._busy = 0
        self._waiting: deque[_Answer] = deque()
        self._server: asyncio.Server | None = None
        self._connections: set[_Connection] = set()
        self._port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    async def start(self, port: int = 0) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: _Connection(self, self._connections), "127.0.0.1", port
        )
        self._port = self._server.sockets[0].getsockname()[1]

    def stop(self) -> None:
        """Close everything at once, as a process that is killed does."""
        if self._server is not None:
            self._server.close()
        for connection in list(self._connections):
            connection.abort()

    def admit(self, answer: "_Answer") -> None:
        """Compute an answer now, or when a slot is free."""
        if self._busy < self.speed.slots:
            self._busy += 1
            answer.begin()
        else:
            self._waiting.append(answer)

    def release(self, answer: "_Answer", *, complete: bool) -> None:
        """An answer has ended; the next one may begin."""
        self.served += complete
        self.abandoned += not complete
        if answer in self._waiting:
            self._waiting.remove(answer)
        elif self._waiting:
            self._waiting.popleft().begin()
        else:
            self._busy -= 1


class _Answer:
    """Tokens on a timer, sent as they come or all at the end."""

    def __init__(
        self,
        engine: DemoEngine,
        write: Callable[[bytes], None],
        request: dict[str, Any],
        chat: bool,
    ) -> None:
        self._engine = engine
        self._write = write
        self._chat = chat
        self._stream = request.get("stream") is True
        wanted = request.get("max_completion_tokens") or request.get("max_tokens")
        count = wanted if isinstance(wanted, int) and wanted > 0 else DEFAULT_TOKENS
        self._words = list(islice(cycle(_WORDS), min(count, MAX_TOKENS)))
        self._sent = 0
        self._timer: asyncio.TimerHandle | None = None
        self.over = False

    def begin(self) -> None:
        self._later(self._engine.speed.first_token_ms)

    def abandon(self) -> None:
        """The client is gone."""
        if not self.over:
            self.over = True
            if self._timer is not None:
                self._timer.cancel()
            self._engine.release(self, complete=False)

    def _later(self, delay_ms: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(delay_ms / 1000, self._token)

    def _token(self) -> None:
        if self._stream:
            if self._sent == 0:
                self._write(_STREAM_HEAD)
            event = orjson.dumps(self._piece(self._words[self._sent] + " "))
            self._write(chunk(b"data: %b\n\n" % event))
        self._sent += 1
        if self._sent < len(self._words):
            self._later(self._engine.speed.token_ms)
            return
        if self._stream:
            self._write(chunk(b"data: [DONE]\n\n") + LAST_CHUNK)
        else:
            self._write(encode_response(200, orjson.dumps(self._whole(" ".join(self._words)))))
        self.over = True
        self._engine.release(self, complete=True)

    def _piece(self, text: str) -> dict[str, Any]:
        finish = "length" if self._sent + 1 == len(self._words) else None
        content = {"delta": {"content": text}} if self._chat else {"text": text}
        return self._object(".chunk" if self._chat else "", {**content, "finish_reason": finish})

    def _whole(self, text: str) -> dict[str, Any]:
        message = {"message": {"role": "assistant", "content": text}}
        content = message if self._chat else {"text": text}
        usage = {"completion_tokens": len(self._words), "prompt_tokens": 0}
        return {
            **self._object("", {**content, "finish_reason": "length"}),
            "usage": {**usage, "total_tokens": len(self._words)},
        }

    def _object(self, suffix: str, choice: dict[str, Any]) -> dict[str, Any]:
        return {
            "id": "demo",
            "object": ("chat.completion" if self._chat else "text_completion") + suffix,
            "created": int(time.time()),
            "model": self._engine.name,
            "choices": [{"index": 0, **choice}],
        }


_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
)


class _Connection(asyncio.Protocol):
    """Requests on one connection, one after the other (no pipelining)."""

    def __init__(self, engine: DemoEngine, connections: "set[_Connection]") -> None:
        self._engine = engine
        self._connections = connections
        self._parser = RequestParser()
        self._head: RequestHead | None = None
        self._body = bytearray()
        self._answer: _Answer | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's has no such base class
        self._connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.discard(self)
        if self._answer is not None:
            self._answer.abandon()

    def abort(self) -> None:
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        for event in self._parser.feed(data):
            if isinstance(event, RequestHead):
                self._head = event
                self._body.clear()
            elif event is END:
                self._respond()
            elif isinstance(event, ProtocolError):
                self._transport.close()
            else:
                self._body += event

    def _respond(self) -> None:
        assert self._head is not None, "a request ends after its head"
        path = self._head.path
        if path == "/health":
            self._transport.write(encode_response(200, b"{}"))
        elif path == "/v1/models":
            model = {"id": self._engine.name, "object": "model", "owned_by": "sgl-router"}
            self._transport.write(
                encode_response(200, orjson.dumps({"object": "list", "data": [model]}))
            )
        elif path in ("/v1/chat/completions", "/v1/completions"):
            self._generate(chat=path.endswith("chat/completions"))
        else:
            self._transport.write(encode_response(404, b'{"error":{"message":"not found"}}'))

    def _generate(self, *, chat: bool) -> None:
        try:
            request = orjson.loads(bytes(self._body))
        except orjson.JSONDecodeError:
            request = None
        if not isinstance(request, dict):
            self._transport.write(encode_response(400, b'{"error":{"message":"not JSON"}}'))
            return
        self._answer = _Answer(self._engine, self._transport.write, request, chat)
        self._engine.admit(self._answer)
