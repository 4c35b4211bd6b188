"""One GET to a worker and its whole answer, for health checks and listings."""

import asyncio

from sgl_router.core.worker import Worker
from sgl_router.errors import EngineError, ProtocolError
from sgl_router.http1.head import END, HeaderBlock
from sgl_router.http1.request import RequestHead, encode_request_head
from sgl_router.http1.response import ResponseEvent, ResponseHead, ResponseParser

MAX_ANSWER_BYTES = 4 * 1024 * 1024


async def fetch(worker: Worker, path: str, timeout_secs: float) -> tuple[int, bytes]:
    """Status and body of `GET path`, over a connection of its own.

    Raises EngineError where the worker cannot be reached, is too slow or answers nonsense.
    """
    try:
        async with asyncio.timeout(timeout_secs):
            return await _fetch(worker, path)
    except TimeoutError as error:
        raise EngineError(f"{worker.url}{path}: no answer within {timeout_secs:g} s") from error
    except (OSError, ProtocolError) as error:
        raise EngineError(f"{worker.url}{path}: {error}") from error


async def _fetch(worker: Worker, path: str) -> tuple[int, bytes]:
    reader, writer = await asyncio.open_connection(worker.host, worker.port)
    try:
        request = RequestHead(
            b"GET",
            path.encode("latin-1"),
            HeaderBlock([(b"Connection", b"close")]),
            http10=False,
            keep_alive=False,
        )
        writer.write(encode_request_head(request, worker.authority, worker.prefix, None))
        return await _read_answer(reader)
    finally:
        writer.transport.abort()


async def _read_answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    parser = ResponseParser()
    status = 0
    body = bytearray()
    while True:
        data = await reader.read(65_536)
        events: list[ResponseEvent] = parser.feed(data) if data else parser.feed_eof()
        for event in events:
            if isinstance(event, ResponseHead):
                status = event.status
            elif isinstance(event, ProtocolError):
                raise event
            elif event is END:
                return status, bytes(body)
            else:
                body += event
        if len(body) > MAX_ANSWER_BYTES:
            raise ProtocolError(f"an answer of more than {MAX_ANSWER_BYTES:,} bytes")
