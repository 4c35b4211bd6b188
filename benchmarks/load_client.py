"""Unary requests at a fixed rate, or as fast as they are answered; a process of its own.

    python benchmarks/load_client.py --port P --rate 1000 --seconds 4 --connections 64
    python benchmarks/load_client.py --port P --requests 100 --connections 1 --body-bytes 100000

With `--rate` requests come due at equal distances whatever the answers do, and the time of each is
counted from when it was due: one that has to wait because all connections are busy is charged for
the waiting, which a client that only asks again after an answer leaves out ("coordinated
omission"). One request on each connection comes before, uncounted; then a line of JSON says that it
is ready, and when all is over another has the result. `select` is used for its time-out in
microseconds: epoll's and uvloop's are whole milliseconds, more than most of what is measured.
"""

import argparse
import gc
import json
import re
import select
import socket
import time
from collections import deque
from typing import Any

from workload import chat_bodies, http_request, summary

PATIENCE_SECS = 20.0
"""How long to wait where nothing is answered at all."""

_LENGTH = re.compile(rb"(?i)\r\ncontent-length:[ \t]*(\d+)")
_CHUNKED = re.compile(rb"(?i)\r\ntransfer-encoding:[ \t]*chunked")
_COUNTED = re.compile(rb'"prompt_tokens":(\d+)')


class Failed(Exception):
    """An answer was not what it should be."""


class Connection:
    """A keep-alive connection.

    Attributes:
        due: when its request was due, in monotonic seconds.
    """

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.setblocking(False)
        self._unsent = memoryview(b"")
        self._answer = b""
        self.due = 0.0

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def sending(self) -> bool:
        return bool(self._unsent)

    def begin(self, request: bytes, due: float) -> None:
        self.due = due
        self._answer = b""
        self._unsent = memoryview(request)
        self.send()

    def send(self) -> None:
        try:
            self._unsent = self._unsent[self._socket.send(self._unsent) :]
        except BlockingIOError:
            return  # its buffer is full: it is asked again when there is room

    def receive(self) -> bytes | None:
        """The body of the answer where all of it is there; raises Failed."""
        data = self._socket.recv(65_536)
        if not data:
            raise Failed("the connection was closed instead of an answer")
        self._answer += data
        head, end, body = self._answer.partition(b"\r\n\r\n")
        if not end:
            return None
        if not head.startswith(b"HTTP/1.1 200 "):
            raise Failed(f"answered {self._answer[:200]!r}")
        if length := _LENGTH.search(head):
            return body if len(body) >= int(length[1]) else None
        if _CHUNKED.search(head):
            return body if body.endswith(b"0\r\n\r\n") else None
        raise Failed(f"an answer of unknown length: {head!r}")


class Load:
    """One run.

    Args:
        rate: requests a second, or None: each connection asks again when it is answered.
        counted: how long each body must have been, by the engine's answer; 0: is not looked at.
    """

    def __init__(self, requests: list[bytes], rate: float | None, counted: int) -> None:
        self._idle: deque[Connection] = deque()
        self._busy: list[Connection] = []
        self._requests = requests
        self._rate = rate
        self._counted = counted
        self.times: list[float] = []
        self.lateness: list[float] = []

    def connect(self, port: int, connections: int) -> None:
        """Open them, and use each once; they are closed when the process ends."""
        for _ in range(connections):
            self._idle.append(Connection(port))
        rate, self._rate = self._rate, None
        self.run(connections)
        self._rate = rate
        self.times.clear()
        self.lateness.clear()

    def run(self, total: int) -> float:
        """Send so many requests and wait for their answers; returns the seconds that it took."""
        started = time.monotonic()
        sent = 0
        while len(self.times) < total:
            sent = self._send_due(started, sent, total)
            wait = PATIENCE_SECS
            if sent < total and self._idle and self._rate:
                wait = max(0.0, started + sent / self._rate - time.monotonic())
            sending = [connection for connection in self._busy if connection.sending]
            readable, writable, _ = select.select(self._busy, sending, [], wait)
            for connection in writable:
                connection.send()
            for connection in readable:
                self._read(connection)
            if wait == PATIENCE_SECS and not readable and not writable:
                raise Failed(f"no answer within {PATIENCE_SECS:g} s")
        return time.monotonic() - started

    def _send_due(self, started: float, sent: int, total: int) -> int:
        while sent < total and self._idle:
            now = time.monotonic()
            due = now if self._rate is None else started + sent / self._rate
            if due > now:
                break
            connection = self._idle.popleft()
            connection.begin(self._requests[sent % len(self._requests)], due)
            self._busy.append(connection)
            self.lateness.append(now - due)
            sent += 1
        return sent

    def _read(self, connection: Connection) -> None:
        body = connection.receive()
        if body is None:
            return
        self.times.append(time.monotonic() - connection.due)
        if self._counted:
            found = _COUNTED.search(body)
            if found is None or int(found[1]) != self._counted:
                raise Failed(f"the engine was not sent the {self._counted} bytes: {body[:600]!r}")
        self._busy.remove(connection)
        self._idle.append(connection)


def main(options: argparse.Namespace) -> dict[str, Any]:
    gc.disable()
    total = options.requests or round(options.rate * options.seconds)
    bodies = chat_bodies(min(total, options.bodies), options.body_bytes)
    requests = [http_request(f"127.0.0.1:{options.port}", body) for body in bodies]
    load = Load(requests, options.rate, options.body_bytes if options.check_length else 0)
    try:
        load.connect(options.port, options.connections)
        spent = time.process_time()
        print(json.dumps({"state": "ready"}), flush=True)
        elapsed = load.run(total)
    except (Failed, OSError) as error:
        return {"state": "failed", "error": str(error) or repr(error), "answered": len(load.times)}
    return {
        "state": "done",
        "requests": total,
        "seconds": elapsed,
        "latency_us": summary(secs * 1e6 for secs in load.times),
        "client_late_us": summary(secs * 1e6 for secs in load.lateness),
        "client_cpu_share": (time.process_time() - spent) / elapsed,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--rate", type=float, help="requests a second; without it: no pause")
    parser.add_argument("--seconds", type=float, default=1.0, help="with --rate")
    parser.add_argument("--requests", type=int, default=0, help="so many instead of --seconds")
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--bodies", type=int, default=256, help="different ones")
    parser.add_argument("--body-bytes", type=int, default=1100)
    parser.add_argument("--check-length", action="store_true", help="with engine.py behind it")
    parsed = parser.parse_args()
    if not parsed.requests and parsed.rate is None:
        parser.error("give --rate, or --requests")
    print(json.dumps(main(parsed)))
