"""Requests of the router's own to workers: health checks, listings, metrics."""

import asyncio
import ssl

from sgl_router.core.worker import Worker
from sgl_router.errors import EngineError, ProtocolError
from sgl_router.gateway.pool import LOCAL_ERRORS
from sgl_router.http1.head import END
from sgl_router.http1.response import ResponseEvent, ResponseHead, ResponseParser

MAX_ANSWER_BYTES = 4 * 1024 * 1024


class Fetcher:
    """Asks workers, each time over a connection of its own.

    Args:
        tls: for workers with an https URL.
    """

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls

    async def fetch(self, worker: Worker, path: str, timeout_secs: float) -> tuple[int, bytes]:
        """Status and body of the answer to one GET; raises as `request`."""
        head, answer = await self.request(worker, path, timeout_secs)
        return head.status, answer

    async def request(
        self,
        worker: Worker,
        path: str,
        timeout_secs: float,
        headers: bytes = b"",
        *,
        method: bytes = b"GET",
        body: bytes = b"",
    ) -> tuple[ResponseHead, bytes]:
        """Head and body of the answer to one request; `headers` are whole lines.

        Raises EngineError where the worker cannot be reached, is too slow or answers nonsense.
        """
        if worker.api_key is not None and b"authorization" not in headers.lower():
            headers += b"Authorization: Bearer %b\r\n" % worker.api_key.encode("latin-1")
        if body:
            headers += b"Content-Type: application/json\r\nContent-Length: %d\r\n" % len(body)
        elif method == b"POST":
            headers += b"Content-Length: 0\r\n"  # RFC 9110, section 8.6
        message = b"%b %b%b HTTP/1.1\r\nHost: %b\r\n%bConnection: close\r\n\r\n%b" % (
            method, worker.prefix, path.encode("latin-1"), worker.authority, headers, body,
        )  # fmt: skip
        try:
            async with asyncio.timeout(timeout_secs):
                return await self._ask(worker, message)
        except TimeoutError as error:
            raise EngineError(f"{worker.url}{path}: no answer within {timeout_secs:g} s") from error
        except OSError as error:
            local = error.errno in LOCAL_ERRORS
            raise EngineError(f"{worker.url}{path}: {error}", local=local) from error
        except ProtocolError as error:
            raise EngineError(f"{worker.url}{path}: {error}") from error

    async def _ask(self, worker: Worker, message: bytes) -> tuple[ResponseHead, bytes]:
        reader, writer = await asyncio.open_connection(
            worker.host, worker.port, ssl=self._tls if worker.tls else None
        )
        try:
            writer.write(message)
            return await _read_answer(reader)
        finally:
            writer.transport.abort()


async def _read_answer(reader: asyncio.StreamReader) -> tuple[ResponseHead, bytes]:
    parser = ResponseParser()
    head: ResponseHead | None = None
    body = bytearray()
    while True:
        data = await reader.read(65_536)
        events: list[ResponseEvent] = parser.feed(data) if data else parser.feed_eof()
        for event in events:
            if isinstance(event, ResponseHead):
                head = event
            elif isinstance(event, ProtocolError):
                raise event
            elif event is END:
                assert head is not None, "an answer begins with its head"
                return head, bytes(body)
            else:
                body += event
        if len(body) > MAX_ANSWER_BYTES:
            raise ProtocolError(f"an answer of more than {MAX_ANSWER_BYTES:,} bytes")
