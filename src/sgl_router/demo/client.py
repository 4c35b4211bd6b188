"""A client that streams chat completions over one keep-alive connection."""

import asyncio
import time
from dataclasses import dataclass

from sgl_router.errors import ProtocolError
from sgl_router.http1.head import END
from sgl_router.http1.response import ResponseHead, ResponseParser


@dataclass(frozen=True, slots=True)
class StreamResult:
    """One request as its client saw it.

    Attributes:
        error: why it failed, or None.
        ttft_ms: from sending to the first byte of the answer's body.
    """

    error: str | None
    ttft_ms: float


class StreamClient:
    """Sends one request after the other; connects again where the connection was closed."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def stream(self, body: bytes) -> StreamResult:
        """Send one request and read its answer to the end; failures are results too."""
        started = time.perf_counter()
        try:
            error, first = await self._exchange(body)
        except (OSError, ProtocolError) as failure:
            self.close()
            return StreamResult(str(failure), 0.0)
        return StreamResult(error, (first - started) * 1000)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.transport.abort()
        self._reader = self._writer = None

    async def _exchange(self, body: bytes) -> tuple[str | None, float]:
        if self._reader is None or self._writer is None:
            self._reader, self._writer = await asyncio.open_connection(self._host, self._port)
        self._writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: %b:%d\r\n"
            b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
            % (self._host.encode("ascii"), self._port, len(body), body)
        )
        parser = ResponseParser()
        status, first, tail = 0, 0.0, b""
        while True:
            data = await self._reader.read(65_536)
            for event in parser.feed(data) if data else parser.feed_eof():
                if isinstance(event, ResponseHead):
                    status = event.status
                elif isinstance(event, ProtocolError):
                    raise event
                elif event is END:
                    complete = status == 200 and tail.endswith(b"data: [DONE]\n\n")
                    return None if complete else f"status {status}", first
                else:
                    first = first or time.perf_counter()
                    tail = (tail + event)[-64:]
