"""Answers of the router's own, and the request id that every answer carries."""

import orjson

from sgl_router.errors import RequestError
from sgl_router.gateway.context import GatewayContext
from sgl_router.http1.request import RequestHead
from sgl_router.http1.response import encode_response

REQUEST_ID_HEADER = b"x-request-id"


def request_id_of(head: RequestHead, context: GatewayContext) -> tuple[str, bytes, bytes]:
    """The request's id, and the header lines that carry it: to the client, and to the engine.

    It is the one that the client sent, which then need not be added for the engine, or a new one.
    """
    if head.asked or context.unusual_ids:
        for name in context.settings.request_id_headers:
            value = head.get(name)
            if value:
                return value.decode("latin-1"), b"%b: %b\r\n" % (REQUEST_ID_HEADER, value), b""
    id = context.new_id(head.path)
    line = b"%b: %b\r\n" % (REQUEST_ID_HEADER, id.encode("ascii"))
    return id, line, line


def error_reply(
    error: RequestError,
    added: bytes,
    *,
    keep_alive: bool,
    with_body: bool = True,
    to_http10: bool = False,
) -> bytes:
    """An error as the OpenAI API words it; `added` are further header lines."""
    if error.retry_after_secs is not None:
        added += b"Retry-After: %d\r\n" % error.retry_after_secs
    if error.status == 401:
        added += b"WWW-Authenticate: Bearer\r\n"
    return encode_response(
        error.status,
        orjson.dumps({"error": _error_object(error)}),
        keep_alive=keep_alive,
        added=added,
        with_body=with_body,
        to_http10=to_http10,
    )


def error_event(error: RequestError, path: str, sent: bytes) -> bytes:
    """The server-sent event that ends a stream of which the engine has broken off.

    Args:
        error: what went wrong.
        path: the request's; the Messages API words its errors in its own way.
        sent: the end of what has been sent, which may be within an event.
    """
    gap = b"" if sent.endswith((b"\n\n", b"\r\n\r\n")) else b"\n\n"
    body: dict[str, object] = {"error": _error_object(error)}
    if path == "/v1/messages":
        body["type"] = "error"
        return b"%bevent: error\ndata: %b\n\n" % (gap, orjson.dumps(body))
    return b"%bdata: %b\n\n" % (gap, orjson.dumps(body))


def _error_object(error: RequestError) -> dict[str, object]:
    return {"type": error.type, "code": error.code, "message": error.message, "param": None}
