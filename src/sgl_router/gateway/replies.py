"""Answers of the router's own, and the request id that every answer carries."""

import orjson

from sgl_router.errors import RequestError
from sgl_router.gateway.context import GatewayContext
from sgl_router.gateway.handler import ClientSide
from sgl_router.http1.request import RequestHead
from sgl_router.http1.response import encode_response

REQUEST_ID_HEADER = b"x-request-id"


def request_id_of(head: RequestHead, context: GatewayContext) -> tuple[str, bytes, bytes]:
    """The request's id, and the lines that are added to heads: for the client, and for the engine.

    It is the one that the client sent, which then need not be added for the engine, or a new one.
    The engine's have a `Via` besides, as a gateway must send (RFC 9110, section 7.6.3).
    """
    if head.asked or context.unusual_ids:
        for name in context.settings.request_id_headers:
            value = head.get(name)
            if value:
                line = b"%b: %b\r\n" % (REQUEST_ID_HEADER, value)
                return value.decode("latin-1"), line, context.via_line
    id = context.new_id(head.path)
    line = b"%b: %b\r\n" % (REQUEST_ID_HEADER, id.encode("ascii"))
    return id, line, line + context.via_line


def reply(
    context: GatewayContext,
    client: ClientSide,
    head: RequestHead,
    status: int,
    body: bytes,
    *,
    added: bytes,
    content_type: bytes = b"application/json",
    close: bool = False,
) -> None:
    """Answer a request with a response of the router's own.

    Args:
        context: whether connections are kept.
        client: whose request it is.
        head: the request's.
        status, body, content_type: the response's.
        added: further header lines.
        close: the client's connection is not to be kept, whatever the head said.
    """
    keep_alive = head.keep_alive and not close and not context.draining
    client.write(
        encode_response(
            status,
            body,
            content_type=content_type,
            keep_alive=keep_alive,
            added=added,
            with_body=head.method != b"HEAD",
            to_http10=head.http10,
        )
    )
    client.answered(keep_alive=keep_alive)


def refuse(
    context: GatewayContext,
    client: ClientSide,
    head: RequestHead,
    error: RequestError,
    id_line: bytes,
    *,
    close: bool = False,
) -> None:
    """Answer a request with an error; otherwise as `reply`."""
    added = id_line + context.cors(head)
    if error.retry_after_secs is not None:
        added += b"Retry-After: %d\r\n" % error.retry_after_secs
    if error.status == 405:
        added += b"Allow: POST\r\n"
    if error.status == 401:
        added += b"WWW-Authenticate: Bearer\r\n"
    reply(context, client, head, error.status, error_body(error), added=added, close=close)


def error_body(error: RequestError) -> bytes:
    """An error as the OpenAI API words it."""
    return orjson.dumps({"error": _error_object(error)})


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


def payload_too_large(limit: int) -> RequestError:
    return RequestError(
        413,
        "request_body_too_large",
        f"the request's body is larger than {limit:,} bytes (option --max-payload-size)",
    )
