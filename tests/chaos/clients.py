"""Clients that ask, and write down what came of it; some of them leave in the middle."""

import asyncio
import random
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from socket import SO_LINGER, SOL_SOCKET
from typing import Any

import orjson

from sgl_router.errors import ProtocolError
from sgl_router.http1.head import END
from sgl_router.http1.response import ResponseHead, ResponseParser

PATIENCE_SECS = 60
"""Longer than any time limit of the router: what takes as long is stuck."""

LARGE_BODY = 1_500_000
"""More than the router keeps of a body for another worker."""


@dataclass
class Ask:
    """One request, and what its client saw.

    Attributes:
        id: the request's; no other has it.
        body_bytes: of the request.
        began, ended: monotonic clock.
        outcome: `answered`, `left` (the client did), `error CODE` (an answer of the router's
            own), `event CODE` (a stream that ended with the router's error event), `declined`
            (an engine's 503), `cut` (an answer that was cut off), `silence` (the connection
            ended without a byte), `stuck`, or `wrong: …`.
        generations: those of which the client saw something.
        message: of the router's error, where it answered with one.
    """

    id: str
    body_bytes: int
    began: float
    ended: float = 0.0
    outcome: str = ""
    generations: frozenset[str] = frozenset()
    message: str = ""


class Left(Exception):
    """The client had had enough."""


@dataclass(frozen=True)
class Manner:
    """What one request is like.

    Attributes:
        stream: whether the answer is to be streamed.
        tokens, pause_ms: how long it is, and how slow.
        padding: bytes that make the body larger.
        chunked: whether the body is sent in chunks.
        leaves: how the client leaves in the middle: before its request is complete, while it
            waits, within the answer, or not at all.
        abrupt: whether it leaves with a reset.
    """

    stream: bool
    tokens: int
    pause_ms: int
    padding: int
    chunked: bool
    leaves: str | None
    abrupt: bool


def manner(rng: random.Random) -> Manner:
    leaves = ["sending", "waiting", "reading"] if rng.random() < 0.12 else [None]
    return Manner(
        stream=rng.random() < 0.6,
        tokens=rng.choice([1, 1, 2, 5, 20]),
        pause_ms=rng.choice([0, 1, 5, 20, 40]),
        padding=rng.choices([0, 2_000, 100_000, 400_000, LARGE_BODY], [60, 20, 10, 8, 2])[0],
        chunked=rng.random() < 0.3,
        leaves=rng.choice(leaves),
        abrupt=rng.random() < 0.5,
    )


class Client:
    """Asks one request after the other until it is told to stop.

    Args:
        port: the router's.
        rng: decides what it asks.
        name: begins the ids of its requests.
        asks: takes what came of each.
    """

    def __init__(self, port: int, rng: random.Random, name: str, asks: list[Ask]) -> None:
        self._port = port
        self._rng = rng
        self._name = name
        self._asks = asks
        self._count = 0

    async def run(self, over: Callable[[], bool]) -> None:
        """Over new connections now and then, each of which carries a few requests."""
        while not over():
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
            try:
                for _ in range(self._rng.randrange(1, 20)):
                    if over() or not await self.ask(reader, writer, manner(self._rng)):
                        break
                    await asyncio.sleep(self._rng.random() * 0.03)
            finally:
                writer.transport.abort()

    async def ask(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, how: Manner
    ) -> bool:
        """Whether the connection can be used again."""
        self._count += 1
        id = f"{self._name}-{self._count}"
        content = {"id": id, "stream": how.stream, "tokens": how.tokens, "pause_ms": how.pause_ms}
        body = orjson.dumps({**content, "pad": "x" * how.padding})
        ask = Ask(id, len(body), time.monotonic())
        self._asks.append(ask)
        answer = Reading(how.stream)
        try:
            async with asyncio.timeout(PATIENCE_SECS):
                sending = asyncio.ensure_future(self._send(writer, body, how))
                try:
                    await self._receive(reader, answer, how)
                finally:
                    sending.cancel()
                    await asyncio.gather(sending, return_exceptions=True)
        except TimeoutError:
            ask.outcome = "stuck"
        except Left:
            ask.outcome = "left"
            self._leave(writer, how)
        except (ConnectionError, ProtocolError):
            ask.outcome = answer.broken_off()
        else:
            ask.outcome = answer.outcome(id)
        ask.generations = frozenset(answer.generations())
        ask.message = answer.message
        ask.ended = time.monotonic()
        if ask.outcome != "answered":
            await asyncio.sleep(0.05)
        return ask.outcome == "answered" and answer.keep_alive

    async def _send(self, writer: asyncio.StreamWriter, body: bytes, how: Manner) -> None:
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: r\r\n"
        size = 100_000
        pieces = [body[at : at + size] for at in range(0, len(body), size)]
        if how.chunked:
            pieces = [b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces] + [b"0\r\n\r\n"]
            head += b"Transfer-Encoding: chunked\r\n\r\n"
        else:
            head += b"Content-Length: %d\r\n\r\n" % len(body)
        if how.leaves == "sending":
            pieces[-1] = pieces[-1][:-1]
        writer.write(head + pieces[0])
        for piece in pieces[1:]:
            await writer.drain()
            writer.write(piece)

    async def _receive(self, reader: asyncio.StreamReader, answer: "Reading", how: Manner) -> None:
        if how.leaves in ("sending", "waiting"):
            await asyncio.sleep(self._rng.random() * 0.1)
            raise Left
        while not answer.complete:
            data = await reader.read(65_536)
            answer.feed(data)
            if how.leaves == "reading":
                raise Left

    def _leave(self, writer: asyncio.StreamWriter, how: Manner) -> None:
        sock = writer.get_extra_info("socket")
        if how.abrupt and sock is not None and not writer.is_closing():
            sock.setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()


class Reading:
    """An answer as far as it has come.

    Attributes:
        complete: up to its end.
        keep_alive: whether the connection is kept.
        message: of an error, where it is one of the router's.
    """

    def __init__(self, stream: bool) -> None:
        self.complete = False
        self.message = ""
        self.keep_alive = False
        self._stream = stream
        self._parser = ResponseParser()
        self._status = 0
        self._body = bytearray()
        self._heard = False

    def feed(self, data: bytes) -> None:
        """Raises ProtocolError where the answer is none, or is over before its end."""
        self._heard = self._heard or bool(data)
        for event in self._parser.feed(data) if data else self._parser.feed_eof():
            if isinstance(event, ResponseHead):
                self._status, self.keep_alive = event.status, event.keep_alive
            elif event is END:
                self.complete = True
            elif isinstance(event, ProtocolError):
                raise event
            else:
                self._body += event

    def broken_off(self) -> str:
        """What came, where the connection ended within it."""
        return "cut" if self._status else "wrong: no head" if self._heard else "silence"

    def outcome(self, id: str) -> str:
        """What an answer that is complete says; `id` is its request's."""
        if self._status != 200:
            answer = orjson.loads(bytes(self._body))
            if "declined" in answer:
                return "declined"
            self.message = answer["error"]["message"]
            return f"error {answer['error']['code']}"
        if not self._stream:
            found = orjson.loads(bytes(self._body)).get("id")
            return "answered" if found == id else f"wrong: the answer of {found}"
        events = self._events()
        if events and "error" in events[-1]:
            self.message = events[-1]["error"]["message"]
            return f"event {events[-1]['error']['code']}"
        if not self._body.endswith(b"data: [DONE]\n\n"):
            return "wrong: a stream without its end"
        foreign = {event["id"] for event in events} - {id}
        return f"wrong: the answer of {foreign}" if foreign else "answered"

    def generations(self) -> set[str]:
        """Which generations it is of; more than one would be two answers in one."""
        if self._status != 200:
            return set()
        if self._stream:
            return {event["generation"] for event in self._events() if "generation" in event}
        return {orjson.loads(bytes(self._body))["generation"]} if self.complete else set()

    def _events(self) -> list[dict[str, Any]]:
        """The events that are whole, but for the one that says that it was the last."""
        whole = bytes(self._body).rpartition(b"\n\n")[0].split(b"\n\n")
        lines = [event.strip(b"\n").removeprefix(b"data: ") for event in whole]
        return [orjson.loads(line) for line in lines if line and line != b"[DONE]"]
