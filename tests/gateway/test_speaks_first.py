"""Engines that speak before they are asked: what they say is nobody's answer."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread

import pytest

from sgl_router.core.worker import Worker
from sgl_router.gateway.pool import ConnectionPool
from sgl_router.gateway.upstream import EngineConnection
from tests.gateway.certificates import make_certificate
from tests.gateway.support import (
    PATIENCE_SECS,
    ScriptedEngine,
    answering,
    connected,
    respond,
    running,
)


def _serve(listener: socket.socket) -> None:
    kept = []
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:  # it has been shut down
            break
        kept.append(connection)
        connection.sendall(respond(b"greeting"))
    for connection in kept:
        connection.close()


@contextmanager
def greeting() -> Iterator[str]:
    """The URL of an engine that greets whoever connects; in a thread, so that it never waits for
    the router's."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = Thread(target=_serve, args=(listener,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            thread.join()


@pytest.fixture
def slow_to_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the connection and the request the engine has the time to speak."""
    dial = ConnectionPool.dial

    async def dialled(self: ConnectionPool, worker: Worker) -> EngineConnection:
        connection = await dial(self, worker)
        if worker.url.endswith("/first") and connection.usable:
            connection._unread.poll(PATIENCE_SECS * 1000)
        return connection

    monkeypatch.setattr(ConnectionPool, "dial", dialled)


@pytest.mark.usefixtures("slow_to_ask")
async def test_what_is_said_before_the_request_is_not_its_answer() -> None:
    with greeting() as url:
        async with running(f"{url}/first") as server, connected(server) as client:
            for _ in range(3):
                answer = await client.post()
                assert (answer.status, answer.error_code) == (502, "call_upstream_connect_error")


@pytest.mark.usefixtures("slow_to_ask")
async def test_another_worker_has_the_request() -> None:
    with greeting() as url:
        async with (
            ScriptedEngine(answering(respond(b"asked"))) as other,
            running(f"{url}/first", other.url) as server,
            connected(server) as client,
        ):
            for _ in range(4):
                assert (await client.post()).body == b"asked"


async def test_tls_may_have_words_of_its_own_after_a_handshake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Session tickets (RFC 8446, section 4.6.1) come when the server likes."""
    monkeypatch.setattr(EngineConnection, "usable", False)  # as if they had just come
    ours = make_certificate(tmp_path, "ours")
    async with (
        ScriptedEngine(answering(respond(b"served")), ours.server_side()) as engine,
        running(engine.url, ca_cert_paths=[ours.cert]) as server,
        connected(server) as client,
    ):
        for _ in range(2):
            assert (await client.post()).body == b"served"
