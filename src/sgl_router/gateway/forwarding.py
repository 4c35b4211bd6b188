"""What a request becomes on its way to a worker, and what its answer says of the engine."""

from sgl_router.core.request import RequestView
from sgl_router.core.worker import Worker
from sgl_router.errors import RequestError
from sgl_router.http1.request import RequestHead, encode_request_head

_KEYS = frozenset({b"authorization", b"x-api-key"})
"""What a client shows a key in; the router's own key is not for engines."""

_NOTHING: frozenset[bytes] = frozenset()


def head_for(
    worker: Worker, head: RequestHead, added: bytes, content_length: int | None = None
) -> bytes:
    """The head as `worker` is sent it.

    Args:
        worker: whose `Host`, path prefix and API key it gets.
        head: the client's.
        added: further header lines.
        content_length: where the body is not the one that the client sent.
    """
    dropped = _NOTHING
    if worker.api_key is not None:
        added += b"Authorization: Bearer %b\r\n" % worker.api_key.encode("latin-1")
        dropped = _KEYS
    return encode_request_head(
        head, worker.authority, worker.prefix, added, dropped=dropped, content_length=content_length
    )


def take_hints(head: RequestHead, request: RequestView) -> None:
    """What the client asks for in headers (names: smg's).

    Raises RequestError (400) where the worker's index is none.
    """
    key = head.get(b"x-smg-routing-key")
    if key:
        request.routing_key = key.decode("latin-1")
    target = head.get(b"x-smg-target-worker")
    if target is not None:
        if not target.isdigit() or len(target) > 9:
            raise RequestError(
                400, "bad_request", "x-smg-target-worker is not the index of a worker, from 0"
            )
        request.target = int(target)


def speaks_for_engine(status: int) -> bool | None:
    """What an answer's status says of the engine: that it works, that it fails, or nothing.

    A 4xx is the client's fault, 501 and 505 speak of the request; 429 says that there is too much
    to do, which is neither a failure nor a recovery.
    """
    if status < 500 or status in (501, 505):
        return None if status == 429 else True
    return False
