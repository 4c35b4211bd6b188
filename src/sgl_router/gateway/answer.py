"""The engine's answer, as the client gets it."""

from sgl_router.core.worker import Worker
from sgl_router.errors import RequestError
from sgl_router.gateway.context import GatewayContext
from sgl_router.gateway.handler import ClientSide
from sgl_router.gateway.replies import REQUEST_ID_HEADER, error_event
from sgl_router.http1.head import LAST_CHUNK, chunk, without
from sgl_router.http1.request import RequestHead
from sgl_router.http1.response import ResponseHead, encode_response_head

_ENGINES_CORS = frozenset(
    {
        b"access-control-allow-credentials",
        b"access-control-allow-origin",
        b"access-control-expose-headers",
    }
)
"""Left out where the router has a rule: engines allow everybody (SGLang and vLLM do unless told
otherwise), and a browser takes two rules for none (Fetch standard, CORS check)."""


class Answer:
    """One answer that has begun.

    Attributes:
        response: the engine's head.
        encoded_head: the head, as the client is sent it.
        chunked: whether the client is sent chunks.
        keep_alive: whether the client's connection is kept.
    """

    _last_piece = b""

    def __init__(
        self,
        context: GatewayContext,
        head: RequestHead,
        response: ResponseHead,
        worker: Worker,
        id_line: bytes,
    ) -> None:
        self.response = response
        self.keep_alive = (
            head.keep_alive
            and not context.draining
            and not (head.http10 and (response.chunked or response.until_close))
        )
        added = worker.routed_line
        if response.get(REQUEST_ID_HEADER) is None:
            added += id_line
        if context.settings.cors_origins:
            response.lines = without(response.lines, _ENGINES_CORS)
            added += context.cors(head)
        self.encoded_head, self.chunked = encode_response_head(
            response, to_http10=head.http10, keep_alive=self.keep_alive, added=added
        )

    def piece(self, data: bytes) -> bytes:
        """What the client is sent of a piece of the body."""
        self._last_piece = data[-4:]
        return chunk(data) if self.chunked else data

    def break_off(self, client: ClientSide, error: RequestError, path: str, *, close: bool) -> None:
        """End it so that nobody takes it for complete: with an event that says so, or a cut.

        `close`: the client's connection is not to be kept, whatever the head said.
        """
        if not self._streams_events():
            until_close = not self.chunked and self.response.content_length is None
            client.cut_off(reset=until_close)
            return
        event = error_event(error, path, self._last_piece)
        client.write(chunk(event) + LAST_CHUNK if self.chunked else event)
        client.answered(keep_alive=self.keep_alive and not close)

    def _streams_events(self) -> bool:
        """Whether an event can be added: nothing says how long the body is, or encodes it."""
        response = self.response
        return (
            response.content_length is None
            and (response.get(b"content-type") or b"").startswith(b"text/event-stream")
            and response.get(b"content-encoding") is None
        )
