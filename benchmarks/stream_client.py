"""Many streams at once, each chunk of each of them timed; a process of its own.

    python benchmarks/stream_client.py --port P --streams 64 --chunks 100 [--ramp 1]

It prints three lines of JSON: when every stream has begun, when the first one has ended, and the
result. Between the first two all streams are open, which is when others look at what the program
in between costs. Each chunk holds the time at which the engine sent it (`engine.py`): delays are of
single chunks, and whatever the engine was late by is not in them.
"""

import argparse
import asyncio
import gc
import json
import re
import time
from array import array
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, cast

import uvloop
from workload import chat_bodies, http_request, summary

BODY_BYTES = 1100
BODIES = 256
PATIENCE_SECS = 20.0
"""How long after the last chunk is due a stream may still end."""

_SENT = re.compile(rb'"content":"(\d{19}) ')


@dataclass
class Tally:
    """What all streams of a run have seen; times in nanoseconds.

    Attributes:
        chunks: that have arrived.
        first: from a request to its first chunk.
        delays: from a chunk's sending to its arrival, since all streams have begun.
        largest_gap: the most by which two chunks of one stream came further apart than they were
            sent.
        errors: how often each thing went wrong.
        ended: streams that were complete.
    """

    chunks: int = 0
    first: "array[int]" = field(default_factory=lambda: array("q"))
    delays: "array[int]" = field(default_factory=lambda: array("q"))
    largest_gap: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    ended: int = 0

    def report(self, state: str) -> None:
        print(json.dumps({"state": state, "chunks": self.chunks}), flush=True)


class Stream(asyncio.Protocol):
    """One streamed answer, on a connection of its own."""

    def __init__(self, request: bytes, chunks: int, run: "Run") -> None:
        self._request = request
        self._missing = chunks
        self._run = run
        self._head: bytes | None = None
        self._raw = b""
        self._text = b""
        self._sent = 0
        self._delay = 0
        self._over = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's has no such base class
        self._asked = time.monotonic_ns()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        now = time.monotonic_ns()
        self._raw += data
        if self._head is None and not self._read_head():
            return
        content, last = self._unchunk()
        events, _, self._text = (self._text + content).rpartition(b"\n\n")
        for found in _SENT.finditer(events):
            self._arrived(int(found[1]), now)
        if last:
            few = self._missing
            self._end(f"{abs(few)} chunks too {'few' if few > 0 else 'many'}" if few else None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(f"the connection was closed within an answer ({exc})")

    def give_up(self) -> None:
        """The run is over."""
        self._end("not ended in time")

    def _read_head(self) -> bool:
        head, end, rest = self._raw.partition(b"\r\n\r\n")
        if not end:
            return False
        self._head, self._raw = head.lower(), rest
        if not head.startswith(b"HTTP/1.1 200 "):
            self._end(f"answered {head[:60].decode('latin-1').splitlines()[0]}")
            return False
        if b"\r\ntransfer-encoding: chunked" not in self._head:
            self._end("the answer is not chunked")
            return False
        return True

    def _unchunk(self) -> tuple[bytes, bool]:
        """The content of the chunks that are there whole, and whether the last one is."""
        raw, at, parts, last = self._raw, 0, [], False
        while not last and (line := raw.find(b"\r\n", at)) >= 0:
            size = int(raw[at:line].partition(b";")[0], 16)
            stop = line + 2 + size
            if len(raw) < stop + 2:
                break
            parts.append(raw[line + 2 : stop])
            last = size == 0
            at = stop + 2
        self._raw = raw[at:]
        return b"".join(parts), last

    def _arrived(self, sent: int, now: int) -> None:
        tally = self._run.tally
        delay = now - sent
        if not self._sent:
            tally.first.append(now - self._asked)
            self._run.begun()
        elif sent < self._sent:
            tally.errors["a chunk came out of its turn"] += 1
        else:
            tally.largest_gap = max(tally.largest_gap, delay - self._delay)
        tally.chunks += 1
        if self._run.steady:
            tally.delays.append(delay)
        self._sent, self._delay = sent, delay
        self._missing -= 1

    def _end(self, error: str | None) -> None:
        if not self._over:
            self._over = True
            self._run.over(self, error, begun=self._sent > 0)
            self._transport.abort()


class Run:
    """A number of streams, from the first to the last.

    Attributes:
        tally: what they have seen so far.
        steady: whether all have begun.
    """

    def __init__(self, port: int, streams: int, chunks: int) -> None:
        self._port = port
        self._streams = streams
        self._chunks = chunks
        self._open: set[Stream] = set()
        self._to_begin = self._to_end = streams
        self._all_over = asyncio.Event()
        self.tally = Tally()
        self.steady = False

    async def complete(self, ramp: float, patience: float) -> dict[str, Any]:
        """Begin the streams evenly over `ramp` seconds, wait for their ends, sum up."""
        bodies = chat_bodies(BODIES, BODY_BYTES, stream=True)
        requests = [http_request(f"127.0.0.1:{self._port}", body) for body in bodies]
        started, spent = time.monotonic(), time.process_time()
        connecting = []
        for number in range(self._streams):
            due = started + number * ramp / self._streams
            if (wait := due - time.monotonic()) > 0:
                await asyncio.sleep(wait)
            connecting.append(asyncio.create_task(self._connect(requests[number % BODIES])))
        await asyncio.gather(*connecting)
        try:
            await asyncio.wait_for(self._all_over.wait(), patience)
        except TimeoutError:
            for stream in list(self._open):
                stream.give_up()
        elapsed = time.monotonic() - started
        return self._result((time.process_time() - spent) / elapsed)

    def begun(self) -> None:
        """A stream has had its first chunk, or never will."""
        self._to_begin -= 1
        self.steady = not self._to_begin
        if self.steady:
            self.tally.report("steady")

    def over(self, stream: Stream, error: str | None, *, begun: bool) -> None:
        """A stream has ended, with what is wrong about it."""
        self._open.discard(stream)
        if error is None and not self.tally.ended:
            self.tally.report("ending")
        if error is None:
            self.tally.ended += 1
        else:
            self.tally.errors[error] += 1
        if not begun:
            self.begun()
        self._to_end -= 1
        if not self._to_end:
            self._all_over.set()

    async def _connect(self, request: bytes) -> None:
        loop = asyncio.get_running_loop()
        stream = Stream(request, self._chunks, self)
        self._open.add(stream)
        try:
            await loop.create_connection(lambda: stream, "127.0.0.1", self._port)
        except OSError as error:
            self.over(stream, f"cannot connect: {error}", begun=False)

    def _result(self, cpu_share: float) -> dict[str, Any]:
        tally = self.tally
        return {
            "state": "done",
            "streams": self._streams,
            "chunks": tally.chunks,
            "errors": dict(tally.errors),
            "first_us": summary(ns / 1000 for ns in tally.first),
            "delay_us": summary(ns / 1000 for ns in tally.delays),
            "largest_gap_us": tally.largest_gap / 1000,
            "client_cpu_share": cpu_share,
        }


async def main(port: int, streams: int, chunks: int, ramp: float, lasts: float) -> None:
    gc.disable()  # a collection would be taken for a gap
    result = await Run(port, streams, chunks).complete(ramp, lasts + PATIENCE_SECS)
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--chunks", type=int, default=100, help="that each stream has")
    parser.add_argument("--ramp", type=float, default=1.0, help="seconds over which they begin")
    parser.add_argument("--lasts", type=float, default=10.0, help="seconds that a stream takes")
    options = parser.parse_args()
    uvloop.run(main(options.port, options.streams, options.chunks, options.ramp, options.lasts))
