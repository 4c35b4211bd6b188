"""One GET to a worker and its whole answer, for health checks and listings."""

import asyncio

from sgl_router.core.worker import Worker
from sgl_router.errors import EngineError, ProtocolError
from sgl_router.gateway.pool import LOCAL_ERRORS
from sgl_router.http1.head import END
from sgl_router.http1.response import ResponseEvent, ResponseHead, ResponseParser

MAX_ANSWER_BYTES = 4 * 1024 * 1024


async def fetch(
    worker: Worker, path: str, timeout_secs: float, headers: bytes = b""
) -> tuple[int, bytes]:
    """Status and body of `GET path`, over a connection of its own; `headers` are whole lines.

    Raises EngineError where the worker cannot be reached, is too slow or answers nonsense.
    """
    try:
        async with asyncio.timeout(timeout_secs):
            return await _fetch(worker, path, headers)
    except TimeoutError as error:
        raise EngineError(f"{worker.url}{path}: no answer within {timeout_secs:g} s") from error
    except OSError as error:
        local = error.errno in LOCAL_ERRORS
        raise EngineError(f"{worker.url}{path}: {error}", local=local) from error
    except ProtocolError as error:
        raise EngineError(f"{worker.url}{path}: {error}") from error


async def _fetch(worker: Worker, path: str, headers: bytes) -> tuple[int, bytes]:
    reader, writer = await asyncio.open_connection(worker.host, worker.port)
    try:
        writer.write(
            b"GET %b%b HTTP/1.1\r\nHost: %b\r\n%bConnection: close\r\n\r\n"
            % (worker.prefix, path.encode("latin-1"), worker.authority, headers)
        )
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
