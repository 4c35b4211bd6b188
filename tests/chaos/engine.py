"""An engine as a process of its own that writes down what it does, so that it can be judged.

    python -m tests.chaos.engine --port PORT --log FILE

A request's body is `{"id", "stream", "tokens", "pause_ms"}`. Each generation gets a name that no
other has, and its log lines are whole even if the process is killed: `EVENT ID GENERATION TIME`,
the time in seconds of the machine's monotonic clock. The events:

- `begun`: the request has been read to its end;
- `spoken`: the kernel has the first byte of the answer;
- `done`: everything has been generated; what is left is to send the last of it;
- `gone`: the connection was lost meanwhile, which ended the generation;
- `reset`, `dropped`, `garbled`: the engine was told to fail, see `/chaos`;
- `declined`: it was told to answer 503, and has generated nothing.

`POST /chaos` with `{"reset": n}` resets n answers that have begun; with `drop`, `garble` or
`decline` the next n requests are closed without a byte, answered with nonsense or with 503; `calm`
takes that back.
"""

import argparse
import asyncio
import os
import struct
import time
from itertools import count
from socket import SO_LINGER, SOL_SOCKET
from typing import Any, cast

import orjson

from sgl_router.errors import ProtocolError
from sgl_router.http1.head import END, LAST_CHUNK, chunk
from sgl_router.http1.request import RequestHead, RequestParser
from sgl_router.http1.response import encode_response

STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
)
FAULTS = ("drop", "garble", "decline")


class Engine:
    """What its connections share.

    Attributes:
        speaking: connections on which an answer has begun.
        faults: how many of the next requests are to fail, and how.
    """

    def __init__(self, log: int) -> None:
        self.speaking: set[Connection] = set()
        self.faults = dict.fromkeys(FAULTS, 0)
        self._log = log
        self._process = f"{os.getpid()}.{time.monotonic_ns()}"
        self._numbers = count()

    def name(self) -> str:
        """A name for one generation."""
        return f"{self._process}.{next(self._numbers)}"

    def note(self, event: str, id: str, generation: str) -> None:
        """One write of a line: it is there, or it is not."""
        os.write(self._log, f"{event} {id} {generation} {time.monotonic():.6f}\n".encode())

    def command(self, wanted: dict[str, int]) -> None:
        """What `/chaos` is told."""
        for connection in list(self.speaking)[: wanted.pop("reset", 0)]:
            connection.reset()
        if wanted.pop("calm", 0):
            self.faults = dict.fromkeys(FAULTS, 0)
        for fault, number in wanted.items():
            self.faults[fault] += number

    def fault(self) -> str | None:
        """What is to be wrong with the next request, if anything."""
        for fault, number in self.faults.items():
            if number:
                self.faults[fault] -= 1
                return fault
        return None


class Connection(asyncio.Protocol):
    """One request at a time; the router sends no more."""

    _transport: asyncio.Transport

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._parser = RequestParser()
        self._path = ""
        self._body = bytearray()
        self._id = self._generation = ""
        self._spoken = False
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._engine.speaking.discard(self)
        if self._task is not None and not self._task.done():
            self._task.cancel()
            self._engine.note("gone", self._id, self._generation)

    def data_received(self, data: bytes) -> None:
        for event in self._parser.feed(data):
            if isinstance(event, RequestHead):
                self._path = event.path
                self._body.clear()
            elif event is END:
                self._answer(orjson.loads(bytes(self._body) or b"{}"))
            elif isinstance(event, ProtocolError):
                raise event  # the router has sent what is no request: its log line is a finding
            else:
                self._body += event

    def reset(self) -> None:
        """Break off, as a machine that crashes does."""
        self._engine.note("reset", self._id, self._generation)
        linger = struct.pack("ii", 1, 0)
        self._transport.get_extra_info("socket").setsockopt(SOL_SOCKET, SO_LINGER, linger)
        if self._task is not None:
            self._task.cancel()
        self._transport.abort()

    def _answer(self, request: dict[str, Any]) -> None:
        if self._path == "/chaos":
            self._engine.command(request)
            self._transport.write(encode_response(200, b"{}"))
        elif self._path != "/v1/chat/completions":
            self._transport.write(encode_response(200 if self._path == "/health" else 404, b"{}"))
        else:
            self._id, self._generation = request["id"], self._engine.name()
            fault = self._engine.fault()
            if fault == "decline":
                self._engine.note("declined", self._id, self._generation)
                self._transport.write(encode_response(503, b'{"declined":true}'))
                return
            self._engine.note("begun", self._id, self._generation)
            if fault == "drop":
                self._engine.note("dropped", self._id, self._generation)
                self._transport.abort()
            elif fault == "garble":
                self._engine.note("garbled", self._id, self._generation)
                self._transport.write(b"\x00 nonsense\r\n\r\n")
            else:
                self._spoken = False
                self._task = asyncio.ensure_future(self._generate(request))

    async def _generate(self, request: dict[str, Any]) -> None:
        tokens, pause = request["tokens"], request["pause_ms"] / 1000
        piece = orjson.dumps({"id": self._id, "generation": self._generation})
        if not request["stream"]:
            await self._answer_whole(encode_response(200, piece), tokens, pause)
            return
        for number in range(tokens):
            await asyncio.sleep(pause)
            event = chunk(b"data: %b\n\n" % piece)
            self._say(event if number else STREAM_HEAD + event)
        self._engine.speaking.discard(self)
        self._engine.note("done", self._id, self._generation)
        self._transport.write(chunk(b"data: [DONE]\n\n") + LAST_CHUNK)

    async def _answer_whole(self, answer: bytes, tokens: int, pause: float) -> None:
        """In one piece where it is short, else its beginning first."""
        await asyncio.sleep(tokens * pause)
        if tokens > 1:
            self._say(answer[:-10])
            await asyncio.sleep(pause)
            answer = answer[-10:]
        self._engine.speaking.discard(self)
        self._engine.note("done", self._id, self._generation)
        self._say(answer)
        self._engine.speaking.discard(self)

    def _say(self, data: bytes) -> None:
        """Send a part of the answer; the first one is written down."""
        self._transport.write(data)
        if not self._spoken:
            self._spoken = True
            self._engine.note("spoken", self._id, self._generation)
            self._engine.speaking.add(self)


async def serve(port: int, log: str) -> None:
    """Serve until the process is ended."""
    engine = Engine(os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600))
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(engine), "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="An engine that writes down what it does.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--log", required=True)
    options = parser.parse_args()
    asyncio.run(serve(options.port, options.log))
