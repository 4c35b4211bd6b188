"""Answers of the router's own, and the request id that every answer carries."""

from typing import NamedTuple

import orjson

from sgl_router.errors import RequestError
from sgl_router.gateway.context import GatewayContext
from sgl_router.http1.request import RequestHead
from sgl_router.http1.response import encode_response

REQUEST_ID_HEADER = b"x-request-id"


class RequestId(NamedTuple):
    """Attributes:
    value: as policies and the log see it.
    header: what the answer carries.
    added: the header to add to the request for the engine, or None where the client sent it.
    """

    value: str
    header: tuple[bytes, bytes]
    added: tuple[bytes, bytes] | None


def request_id_of(head: RequestHead, context: GatewayContext, path: str) -> RequestId:
    """The id that the client sent, or a new one."""
    for name in context.settings.request_id_headers:
        value = head.get(name)
        if value:
            return RequestId(value.decode("latin-1"), (REQUEST_ID_HEADER, value), None)
    new = context.new_request_id(path)
    header = (REQUEST_ID_HEADER, new.encode("ascii"))
    return RequestId(new, header, header)


def error_reply(
    error: RequestError,
    request_id: tuple[bytes, bytes],
    *,
    keep_alive: bool,
    with_body: bool = True,
) -> bytes:
    """An error as the OpenAI API words it."""
    body = orjson.dumps(
        {
            "error": {
                "type": error.type,
                "code": error.code,
                "message": error.message,
                "param": None,
            }
        }
    )
    return encode_response(
        error.status, body, keep_alive=keep_alive, extra=[request_id], with_body=with_body
    )
