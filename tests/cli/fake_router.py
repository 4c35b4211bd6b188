"""A small HTTP server that answers what a router's control plane would, or what a test says."""

import ssl
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

import orjson

from sgl_router.core.shadow import ShadowLatency, ShadowReport, ShadowWorker
from sgl_router.wasm.status import (
    FailureDetail,
    PluginSource,
    PluginStatus,
    PolicyInUse,
    PutResult,
    QuarantineStatus,
    SelfTest,
    VersionStatus,
)

VERSION = VersionStatus(
    id="7",
    sha256="ab" * 32,
    plugin_version="1.2.0",
    abi="table_v1",
    source=PluginSource("file", "/plugins/weighted.wasm"),
    loaded_at_ms=1_769_860_800_000,
    settings={"max_execution_time_ms": 50, "config": {"weights": {"http://w:1": 4}}},
    decisions=1_234_567,
    failures={"trap": 3, "timeout": 1},
    instances=2,
    memory_bytes=1_114_112,
    state_bytes=96,
)
PLUGIN = PluginStatus(
    name="weighted",
    current=VERSION,
    previous=replace(VERSION, id="6", plugin_version=None, sha256="cd" * 32, decisions=12),
    lane="inline",
    waiting=0,
    quarantine=QuarantineStatus("open", 5, 2, 1_500, "five failures in a row"),
    fallback="power_of_two",
    stale="the file is no WebAssembly",
    last_failure="trap: unreachable",
    swaps=6,
    in_use_as=["regular", "shadow"],
    last_failure_detail=FailureDetail(
        kind="trap",
        detail="unreachable",
        panic="no such table",
        output="loading\npanic: no such table",
        backtrace=["inner at 0x1f", "outer at 0x2e"],
    ),
)
POLICIES = {"policies": [PolicyInUse("regular", "weighted", "plugin", "7", "power_of_two")]}
REPORT = ShadowReport(
    plugin="weighted",
    version="7",
    role="regular",
    share=0.1,
    since_ms=1_769_860_800_000,
    policy="round_robin",
    observed=2_500,
    decided=2_400,
    declined=17,
    agreed=1_951,
    agreement=0.8129,
    failures={"timeout": 100},
    skipped=4,
    decision_us=ShadowLatency(p50=3.21, p99=41_000.0, max=1_500_000.0),
    workers=[
        ShadowWorker(
            url="http://w:1",
            requests=1_250,
            share=0.5,
            would_be_requests=1_800,
            would_be_share=0.75,
            would_be_load=12,
            would_be_peak_load=31,
        )
    ],
)


def put_result(
    status: Literal["loaded", "replaced", "unchanged"],
    in_use_as: Sequence[str] = ("regular",),
    *,
    worker: int | None = 0,
    error: str | None = None,
) -> PutResult:
    """What PUT /plugins/{name} answers."""
    plugin = replace(PLUGIN, in_use_as=list(in_use_as))
    return PutResult(status, plugin, SelfTest(worker, 12.34, error))


def refusal(code: str, message: str, *reasons: str) -> dict[str, Any]:
    """The body of an error."""
    error = {"type": "invalid_request_error", "code": code, "message": message, "param": None}
    return {"error": error, "reasons": reasons} if reasons else {"error": error}


@dataclass(frozen=True)
class Call:
    """One request that came."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


Taken = tuple[int, bytes, dict[str, str]]
"""An answer: status, body and headers."""


@dataclass
class FakeRouter:
    """A server that is running.

    Attributes:
        answers: method and path -> status, body (bytes as they are, all else as JSON), headers.
        calls: what came, the oldest first.
    """

    url: str
    answers: dict[str, tuple[int, object, dict[str, str]]] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)

    def answer(self, call: str, body: object, status: int = 200, **headers: str) -> None:
        """Give this answer to `call`, such as `GET /plugins`."""
        self.answers[call] = (status, body, headers)

    def take(self, call: Call) -> Taken:
        """Returns the answer."""
        self.calls.append(call)
        asked = f"{call.method} {call.path}"
        if asked not in self.answers:
            self.answer(asked, refusal("unknown_url", f"there is nothing at {call.path!r}"), 404)
        status, body, headers = self.answers[asked]
        return status, body if isinstance(body, bytes) else orjson.dumps(body), headers

    def answer_all(self) -> None:
        """Give each call of the control plane of plugins an answer that says it was done."""
        self.answer("GET /plugins", {"plugins": [PLUGIN], "total": 1})
        self.answer("GET /plugins/weighted", PLUGIN)
        self.answer("PUT /plugins/weighted", put_result("loaded", []), 201)
        self.answer("POST /plugins/weighted/reload", put_result("replaced"))
        self.answer("POST /plugins/weighted/rollback", PLUGIN)
        self.answer("DELETE /plugins/weighted", {"status": "unloaded", "name": "weighted"})
        self.answer("GET /policy", POLICIES)
        self.answer("PUT /policy", POLICIES)
        self.answer("GET /shadow", {"shadow": REPORT})
        self.answer("PUT /shadow", {"shadow": REPORT})
        self.answer("DELETE /shadow", {"shadow": REPORT})
        self.answer("POST /shadow/promote", POLICIES)


@contextmanager
def fake_router(tls: ssl.SSLContext | None = None) -> Iterator[FakeRouter]:
    """A router that answers what it is told to."""
    router = FakeRouter("")
    with http_server(router.take, tls) as router.url:
        yield router


@contextmanager
def http_server(
    answer: Callable[[Call], Taken], tls: ssl.SSLContext | None = None
) -> Iterator[str]:
    """A server on a free port of 127.0.0.1, in a thread; its URL."""

    class Handler(BaseHTTPRequestHandler):
        def handle_call(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            call = Call(self.command, self.path, dict(self.headers.items()), body)
            status, content, headers = answer(call)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_PUT = do_POST = do_DELETE = handle_call

        def log_message(self, format: str, *args: object) -> None:
            """Calls are kept in `FakeRouter.calls`."""

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: object, client_address: object) -> None:
            """A client that does not trust the certificate leaves in the handshake."""

    with Server(("127.0.0.1", 0), Handler) as server:
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        scheme = "http" if tls is None else "https"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"{scheme}://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()
