"""What a connection to a client and one to an engine have in common: how it is written to.

What the callbacks of one turn of the event loop write is passed to the kernel at the turn's end,
for all connections together. A write wakes the process at the other end, which is often quicker
than the router and would be asleep again before the next write; and to wake a process on an idle
CPU costs the writer as much as all else that it does for a request, on a virtual machine above all.
One that is sent several messages in a row is woken for the first of them.

The pieces of a stream are not held back: they come one by one, and somebody waits for each.
"""

import asyncio
import logging
import time
from typing import cast

from sgl_router.gateway.flow import ReadGate

_log = logging.getLogger(__name__)

LARGE_BYTES = 64 * 1024
"""A piece of this size is written at once: the memory is worth more than the wake-up."""

LONGEST_WAIT_SECS = 0.001
"""After a turn of the loop that takes longer, what waits is written with what comes next."""


class Outbox:
    """The connections that have something to write at the end of this turn of the loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: list[Connection] = []
        self._scheduled = False
        self._since = 0.0

    def add(self, connection: "Connection") -> None:
        """Have its `write_out` called, once."""
        now = time.perf_counter()
        if not self._waiting:
            self._since = now
            if not self._scheduled:
                self._scheduled = True
                self._loop.call_soon(self._end_of_turn)
        self._waiting.append(connection)
        if now - self._since > LONGEST_WAIT_SECS:
            self.write_out()

    def _end_of_turn(self) -> None:
        self._scheduled = False
        self.write_out()

    def write_out(self) -> None:
        """Write what waits, for all of them."""
        waiting, self._waiting = self._waiting, []
        for connection in waiting:
            try:
                connection.write_out()
            except Exception:  # noqa: BLE001 (one connection's trouble is not the others')
                _log.exception("a connection could not be written to")
                connection.break_off()


class Connection(asyncio.Protocol):
    """See the module.

    Attributes:
        reading: holds back whoever is at the other end.
    """

    __slots__ = ("_outbox", "_transport", "_unwritten", "reading")

    reading: ReadGate
    _transport: asyncio.Transport

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._unwritten: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's has no such base class
        self.reading = ReadGate(self._transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._unwritten.clear()

    def write(self, data: bytes) -> None:
        """Send it, at the end of this turn of the loop."""
        unwritten = self._unwritten
        unwritten.append(data)
        if len(unwritten) == 1:
            self._outbox.add(self)
        if len(data) >= LARGE_BYTES:
            self.write_out()

    def write_at_once(self, data: bytes) -> None:
        """Send it now, after what waits."""
        if self._unwritten:
            self._unwritten.append(data)
            self.write_out()
        else:
            self._transport.write(data)

    def write_out(self) -> None:
        """Send what waits now."""
        unwritten = self._unwritten
        if len(unwritten) == 1:
            self._transport.write(unwritten.pop())
        elif unwritten:
            self._unwritten = []
            self._transport.writelines(unwritten)

    @property
    def unsent(self) -> int:
        """Bytes that the kernel has not taken."""
        return sum(map(len, self._unwritten)) + self._transport.get_write_buffer_size()

    def close(self) -> None:
        """Close once everything is written."""
        self.write_out()
        self._transport.close()

    def abort(self) -> None:
        """Close at once; what has not been sent is lost."""
        self.break_off()

    def break_off(self) -> None:
        """Close at once, as if the other side had: what is under way on it is told."""
        self._unwritten.clear()
        self._transport.abort()
