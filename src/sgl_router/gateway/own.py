"""What the router answers itself: errors of the route table, and the ASGI application's paths."""

import asyncio
import logging
import re
from collections import deque
from urllib.parse import unquote

from sgl_router.errors import ProtocolError, RequestError
from sgl_router.gateway.context import AsgiApp, GatewayContext, Message
from sgl_router.gateway.handler import ClientSide, RequestHandler
from sgl_router.gateway.replies import refuse, reply, request_id_of
from sgl_router.http1.request import RequestHead
from sgl_router.wasm.module import MAX_COMPONENT_BYTES

_log = logging.getLogger(__name__)

MAX_BODY_BYTES = 1024 * 1024
"""Of a request that the router answers itself; the control plane's are a few hundred."""

MAX_UPLOAD_BYTES = MAX_COMPONENT_BYTES + 256 * 1024
"""Of a plugin that is sent: its module, which may be a component, and its settings in the form
around it. The application reads no body of a client that it refuses."""

_UPLOAD_PATH = re.compile(r"/plugins/[^/]+")

_FRAMING = frozenset({b"connection", b"content-length", b"content-type", b"transfer-encoding"})


class OwnAnswer(RequestHandler):
    """One request for the application; or for nobody, where an error is given.

    The application is called when the head is there: whether it answers without the body, and then
    nothing of it is kept, is its own affair.
    """

    def __init__(
        self,
        context: GatewayContext,
        client: ClientSide,
        head: RequestHead,
        app: AsgiApp,
        error: RequestError | None,
    ) -> None:
        self._context = context
        self._client = client
        self._head = head
        self._app = app
        self._error = error
        self._max_bytes = max_body_bytes(head)
        self._id_line = request_id_of(head, context)[1]
        self._started_at = context.clock()
        self._body: deque[bytes] = deque()
        self._received = 0
        self._over = self._asked_for = False
        self._more = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._context.requests.add(self)
        if self._error is None and (self._head.content_length or 0) > self._max_bytes:
            self._error = _too_large(self._max_bytes)
        if self._error is not None:
            self._refuse(self._error, close=self._head.expects_continue)
        else:
            self._task = self._context.loop.create_task(self._run())

    def on_read(self, data: bytes, *, over: bool) -> None:
        self._received += len(data)
        if self._received > self._max_bytes:
            self._give_up(_too_large(self._max_bytes))
            return
        self._body.append(data)
        self._over = over
        self._more.set()

    def on_client_gone(self) -> None:
        self._context.requests.discard(self)
        if self._task is not None:
            self._task.cancel()

    def refuse(self, error: ProtocolError) -> None:
        self._give_up(RequestError(error.status, "bad_request", str(error)), close=True)

    def check(self, now: float) -> None:
        secs = self._context.settings.body_timeout
        if not self._over and now - self._started_at >= secs:
            message = f"no complete request in {secs:g} s (option --client-body-timeout-secs)"
            self._give_up(RequestError(408, "request_timeout", message), close=True)

    async def _receive(self) -> Message:
        """The next piece of the body, as it came: to join them is the application's affair."""
        if self._head.expects_continue and not (self._asked_for or self._over):
            self._client.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._asked_for = True
        while not (self._body or self._over):
            self._more.clear()
            await self._more.wait()
        body = self._body.popleft() if self._body else b""
        more = bool(self._body) or not self._over
        return {"type": "http.request", "body": body, "more_body": more}

    async def _run(self) -> None:
        messages: list[Message] = []

        async def send(message: Message) -> None:
            messages.append(message)

        try:
            await self._app(self._scope(), self._receive, send)
        except Exception:  # noqa: BLE001 (the outermost callback: the client gets an answer)
            _log.exception("%s %.200s failed", self._head.method.decode(), self._head.path)
            message = "the router failed; its log says why"
            error = RequestError(500, "internal_error", message)
            self._refuse(error, close=self._unsure_of_body)
        else:
            self._answer(messages[0], b"".join([m.get("body", b"") for m in messages[1:]]))

    def _scope(self) -> Message:
        head = self._head
        # An application answers HEAD as it answers GET; the body is left out on the way.
        method = b"GET" if head.method == b"HEAD" else head.method
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.0" if head.http10 else "1.1",
            "method": method.decode("ascii"),
            "scheme": "http",
            "path": unquote(head.path),
            "raw_path": head.path.encode("latin-1"),
            "query_string": head.target.partition(b"?")[2],
            "root_path": "",
            "headers": [(name.lower(), value) for name, value in head.headers],
            "client": self._client.peer,
            "server": None,
        }

    def _answer(self, start: Message, body: bytes) -> None:
        content_type = b"application/octet-stream"
        added = [self._id_line]
        for name, value in start.get("headers", ()):
            if name.lower() == b"content-type":
                content_type = value
            if name.lower() not in _FRAMING:
                added.append(b"%b: %b\r\n" % (name, value))
        context, client, head = self._context, self._client, self._head
        context.requests.discard(self)
        lines = b"".join(added)
        reply(
            context,
            client,
            head,
            start["status"],
            body,
            added=lines,
            content_type=content_type,
            close=self._unsure_of_body,
        )

    @property
    def _unsure_of_body(self) -> bool:
        """Whether the client may send it or not: it asked, and is answered without it."""
        return self._head.expects_continue and not self._asked_for

    def _give_up(self, error: RequestError, *, close: bool = False) -> None:
        """Refuse what the application is reading."""
        if self._task is not None:
            self._task.cancel()
        self._refuse(error, close=close)

    def _refuse(self, error: RequestError, *, close: bool = False) -> None:
        self._context.counters.count_error(error.code)
        self._context.requests.discard(self)
        refuse(self._context, self._client, self._head, error, self._id_line, close=close)


def max_body_bytes(head: RequestHead) -> int:
    """How large a body may be that is not for an engine: a plugin's module is the one large one."""
    upload = head.method == b"PUT" and _UPLOAD_PATH.fullmatch(head.path) is not None
    return MAX_UPLOAD_BYTES if upload else MAX_BODY_BYTES


def _too_large(limit: int) -> RequestError:
    message = f"the request's body is larger than {limit:,} bytes, the most that is taken here"
    return RequestError(413, "request_body_too_large", message)
