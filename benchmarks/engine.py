"""An engine that costs next to nothing: many streams at a set pace, and short unary answers.

No C server at hand streams slowly, so this is as little Python as will do it, in a process of its
own whose CPU time is not counted. A stream is sent its first chunk at once and the others at its
own phase of a clock of milliseconds, as requests that came at different times are answered; each
chunk carries the monotonic time at which it was sent, which every process of a machine shares.

    python benchmarks/engine.py --ports 8001 8002 --chunks 100 --interval-ms 10

serves until it is ended. Chunks and pace are options and not fields of the request, because some
routers change the requests that they pass on. What comes before the API's path is ignored, so that
`http://127.0.0.1:8001/w17` is one of as many workers as are wanted.
"""

import argparse
import asyncio
import json
import re
import time
from typing import cast

import uvloop
from workload import MODEL, PATH

ANSWER_BYTES = 600
KEPT_BYTES = 64 * 1024
"""How much of a body is looked at for `"stream": true`; the rest of a larger one is counted."""

_LENGTH = re.compile(rb"(?i)\r\ncontent-length:[ \t]*(\d+)")
_STREAM = re.compile(rb'"stream"\s*:\s*true')
_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)
_EVENT = b'data: {"id":"c","choices":[{"index":0,"delta":{"content":"%019d "}}]}\n\n'
_CHUNK = b"%x\r\n%b\r\n" % (len(_EVENT % 0), _EVENT)
_ANSWER = (
    b'{"id":"c","object":"chat.completion","created":0,"model":"m","choices":[{"index":0,"message":'
    b'{"role":"assistant","content":"%b"},"finish_reason":"stop"}],"usage":{"prompt_tokens":%-9d,'
    b'"completion_tokens":1,"total_tokens":1}}'
)
_LAST = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"


def unary_answer(body_bytes: int) -> bytes:
    """The JSON of a chat completion that tells how long the request's body was."""
    return _ANSWER % (b"x" * (ANSWER_BYTES - len(_ANSWER % (b"", 0))), body_bytes)


def models_answer() -> bytes:
    """The list of models, which some routers ask for before they use an engine."""
    model = {"id": MODEL, "object": "model", "owned_by": "benchmark"}
    return json.dumps({"object": "list", "data": [model]}).encode("ascii")


def http_answer(status: bytes, body: bytes) -> bytes:
    return b"HTTP/1.1 %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (
        status,
        len(body),
        body,
    )


class Clock:
    """Calls each stream once an interval, in the millisecond in which it began."""

    def __init__(self, interval_ms: int, chunks: int) -> None:
        self.chunks = chunks
        self._loop = asyncio.get_running_loop()
        self._slots: list[dict[Stream, None]] = [{} for _ in range(interval_ms)]
        self._tick = self._now()
        self._beat()

    def add(self, stream: "Stream") -> int:
        """Returns the slot in which the stream now is."""
        slot = self._tick % len(self._slots)
        self._slots[slot][stream] = None
        return slot

    def remove(self, stream: "Stream", slot: int) -> None:
        self._slots[slot].pop(stream, None)

    def _now(self) -> int:
        return time.monotonic_ns() // 1_000_000

    def _beat(self) -> None:
        self._loop.call_later(0.001, self._beat)
        now = self._now()
        while self._tick < now:  # what was missed is made up for
            self._tick += 1
            for stream in list(self._slots[self._tick % len(self._slots)]):
                stream.send()


class Stream:
    """One streamed answer."""

    def __init__(self, transport: asyncio.Transport, clock: Clock) -> None:
        self._transport = transport
        self._clock = clock
        self._left = clock.chunks
        self._slot = clock.add(self)
        self.send(_STREAM_HEAD)

    def send(self, head: bytes = b"") -> None:
        """The next chunk; after the last one, the end."""
        self._left -= 1
        data = head + _CHUNK % time.monotonic_ns()
        if not self._left:
            data += _LAST
            self.stop()
        self._transport.write(data)

    def stop(self) -> None:
        self._clock.remove(self, self._slot)


class Connection(asyncio.Protocol):
    """Requests on one connection, one after the other."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._head = b""
        self._missing = 0
        self._received = 0
        self._kept = bytearray()
        self._stream: Stream | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's has no such base class

    def connection_lost(self, exc: Exception | None) -> None:
        if self._stream is not None:
            self._stream.stop()

    def data_received(self, data: bytes) -> None:
        if self._missing:
            self._take(data)
            return
        head, end, rest = (self._head + data).partition(b"\r\n\r\n")
        if not end:
            self._head = head
            return
        self._head = b""
        self._begin(head)
        self._take(rest)

    def _begin(self, head: bytes) -> None:
        method, _, rest = head.partition(b" ")
        self._target = rest.partition(b" ")[0]
        self._received = 0
        self._kept.clear()
        length = _LENGTH.search(head)
        self._missing = int(length[1]) if length else 0
        if method not in (b"GET", b"POST") or (method == b"POST" and length is None):
            self._transport.write(http_answer(b"400 Bad Request", b'{"error":"no length"}'))
            self._transport.close()

    def _take(self, data: bytes) -> None:
        self._missing -= len(data)
        self._received += len(data)
        if self._received <= KEPT_BYTES:
            self._kept += data
        if self._missing == 0:
            self._respond()
        elif self._missing < 0:  # no proxy sends a request before the last one is answered
            self._transport.abort()

    def _respond(self) -> None:
        if self._target.endswith(PATH.encode("ascii")):
            if _STREAM.search(self._kept):
                self._stream = Stream(self._transport, self._clock)
                return
            self._transport.write(http_answer(b"200 OK", unary_answer(self._received)))
        elif self._target.endswith(b"/v1/models"):
            self._transport.write(http_answer(b"200 OK", models_answer()))
        elif self._target.endswith(b"/health"):
            self._transport.write(http_answer(b"200 OK", b"{}"))
        else:
            self._transport.write(http_answer(b"404 Not Found", b'{"error":"not found"}'))


async def main(ports: list[int], chunks: int, interval_ms: int) -> None:
    loop = asyncio.get_running_loop()
    clock = Clock(interval_ms, chunks)
    servers = [
        await loop.create_server(lambda: Connection(clock), "127.0.0.1", port, backlog=4096)
        for port in ports
    ]
    await asyncio.gather(*(server.serve_forever() for server in servers))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ports", type=int, nargs="+", required=True)
    parser.add_argument("--chunks", type=int, default=100, help="of one streamed answer")
    parser.add_argument("--interval-ms", type=int, default=10, help="between two chunks")
    options = parser.parse_args()
    uvloop.run(main(options.ports, options.chunks, options.interval_ms))
