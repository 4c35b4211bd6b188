"""TLS on both sides: with whom the router speaks, and what is different about it."""

import asyncio
import socket
import ssl
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from sgl_router.core.worker import Health
from sgl_router.errors import ConfigError, ProtocolError
from sgl_router.gateway import downstream
from tests.gateway.certificates import Certificate, make_certificate
from tests.gateway.inside import client_connection
from tests.gateway.support import (
    PATIENCE_SECS,
    POST,
    EngineSocket,
    Request,
    ScriptedEngine,
    answering,
    connected,
    respond,
    running,
    until,
    within,
)


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("ours"), "ours")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("other"), "other")


def shown(certificate: Certificate) -> dict[str, Any]:
    return {"tls_cert_path": certificate.cert, "tls_key_path": certificate.key}


# ---- clients


async def test_clients_come_over_tls(ours: Certificate) -> None:
    seen: list[Request] = []
    body = b"{" + b" " * 1_000_000 + b"}"
    async with (
        ScriptedEngine(answering(respond(b"x" * 1_000_000), seen)) as engine,
        running(engine.url, **shown(ours)) as server,
        connected(server, ours.client_side()) as client,
    ):
        for _ in range(3):
            answer = await client.post(body=body)
            assert (answer.status, len(answer.body)) == (200, 1_000_000)
        assert (await client.ask(b"GET", b"/health")).status == 200
    assert [request.body for request in seen] == [body] * 3


async def test_http_1_is_agreed_on_and_nothing_newer(ours: Certificate) -> None:
    async with running(**shown(ours)) as server:
        context = ours.client_side()
        context.set_alpn_protocols(["h2", "http/1.1"])
        async with connected(server, context) as client:
            chosen = client.writer.get_extra_info("ssl_object").selected_alpn_protocol()
            assert chosen == "http/1.1"


async def test_a_client_without_tls_is_closed_and_harms_nobody(ours: Certificate) -> None:
    async with (
        ScriptedEngine(answering(respond(b"served"))) as engine,
        running(engine.url, **shown(ours)) as server,
        connected(server, ours.client_side()) as client,
        connected(server) as plain,
    ):
        await plain.send(POST)
        with suppress(ConnectionError):
            assert b"HTTP" not in await within(plain.reader.read())
        assert (await client.post()).body == b"served"


async def test_a_client_that_leaves_is_noticed_over_tls(ours: Certificate) -> None:
    got, closed = asyncio.Event(), asyncio.Event()

    async def script(socket: EngineSocket) -> None:
        await socket.request()
        got.set()
        await socket.reader.read()
        closed.set()

    async with ScriptedEngine(script) as engine, running(engine.url, **shown(ours)) as server:
        async with connected(server, ours.client_side()) as client:
            await client.send(POST)
            await within(got.wait())
        await within(closed.wait())


async def test_a_client_that_reads_nothing_is_noticed_when_it_leaves(ours: Certificate) -> None:
    """While its next request keeps the router from reading, too."""
    got, closed = asyncio.Event(), asyncio.Event()

    async def script(socket: EngineSocket) -> None:
        await socket.request()
        got.set()
        await socket.reader.read()
        closed.set()

    async with ScriptedEngine(script) as engine, running(engine.url, **shown(ours)) as server:
        async with connected(server, ours.client_side()) as client:
            await client.send(POST * 2)
            await within(got.wait())
        await within(closed.wait())


@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
async def test_an_answer_that_breaks_off_over_tls(ours: Certificate, version: bytes) -> None:
    """Not even HTTP/1.0's end of the connection ends it."""

    async def script(socket: EngineSocket) -> None:
        await socket.request()
        await socket.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n")

    async with (
        ScriptedEngine(script) as engine,
        running(engine.url, **shown(ours)) as server,
        connected(server, ours.client_side()) as client,
    ):
        await client.send(POST.replace(b"HTTP/1.1", b"HTTP/" + version))
        with pytest.raises((ProtocolError, ConnectionError)):
            await client.response()


async def test_an_upload_that_is_refused_gets_its_answer_over_tls(ours: Certificate) -> None:
    size = 3 * 1024 * 1024
    async with (
        running(max_payload_size=1000, **shown(ours)) as server,
        connected(server, ours.client_side()) as client,
    ):
        client.writer.write(b"POST /v1/x HTTP/1.1\r\nHost: r\r\nContent-Length: %d\r\n\r\n" % size)
        client.writer.write(b"x" * size)
        assert (await client.response()).status == 413


async def test_metrics_have_an_address_without_tls(ours: Certificate) -> None:
    class At:
        def __init__(self, port: int | None) -> None:
            assert port is not None
            self.port = port

    async with running(
        prometheus_port=0, prometheus_host="127.0.0.1", admin_port=0, **shown(ours)
    ) as server:
        async with connected(At(server.prometheus_port)) as scraper:
            assert (await scraper.ask(b"GET", b"/metrics")).status == 200
        async with connected(At(server.admin_port), ours.client_side()) as admin:
            assert (await admin.ask(b"GET", b"/workers")).status == 200


# ---- engines


async def test_engines_over_tls(ours: Certificate, other: Certificate) -> None:
    """Two of them, each with an authority of its own."""
    async with (
        ScriptedEngine(answering(respond(b"served")), ours.server_side()) as one,
        ScriptedEngine(answering(respond(b"served")), other.server_side()) as two,
        running(
            one.url,
            two.url,
            ca_cert_paths=[ours.cert, other.cert],
            disable_health_check=False,
        ) as server,
        connected(server) as client,
    ):
        await until(lambda: all(worker.healthy for worker in server.registry))
        assert [(await client.post()).body for _ in range(4)] == [b"served"] * 4
        assert one.connections + two.connections == 4, "a check and a kept connection each"


async def test_an_engine_that_nobody_vouches_for(ours: Certificate, other: Certificate) -> None:
    seen: list[Request] = []
    async with (
        ScriptedEngine(answering(respond(), seen), ours.server_side()) as engine,
        running(engine.url, ca_cert_paths=[other.cert]) as server,
        connected(server) as client,
    ):
        answer = await client.post()
        assert (answer.status, answer.error_code) == (502, "call_upstream_connect_error")
        assert b"certificate" in answer.body
    assert seen == []


async def test_the_systems_authorities_do_not_know_it(ours: Certificate) -> None:
    async with (
        ScriptedEngine(answering(respond()), ours.server_side()) as engine,
        running(engine.url) as server,
        connected(server) as client,
    ):
        assert (await client.post()).status == 502


async def test_an_engine_with_the_certificate_of_another_host(tmp_path: Path) -> None:
    elsewhere = make_certificate(tmp_path, "elsewhere", "DNS:engine.example")
    async with (
        ScriptedEngine(answering(respond()), elsewhere.server_side()) as engine,
        running(engine.url, ca_cert_paths=[elsewhere.cert]) as server,
        connected(server) as client,
    ):
        assert (await client.post()).status == 502


async def test_an_engine_that_nobody_vouches_for_is_down(
    ours: Certificate, other: Certificate
) -> None:
    async with (
        ScriptedEngine(answering(respond()), ours.server_side()) as engine,
        running(
            engine.url,
            ca_cert_paths=[other.cert],
            disable_health_check=False,
            worker_startup_check_interval=0.01,
        ) as server,
        connected(server) as client,
    ):
        await until(lambda: {worker.health for worker in server.registry} == {Health.DOWN})
        assert (await client.ask(b"GET", b"/readiness")).status == 503
        assert (await client.post()).status == 503


@pytest.mark.parametrize("shows", [True, False])
async def test_an_engine_that_wants_a_certificate(
    shows: bool, ours: Certificate, other: Certificate
) -> None:
    own: dict[str, Any] = (
        {"client_cert_path": other.cert, "client_key_path": other.key} if shows else {}
    )
    async with (
        ScriptedEngine(answering(respond()), ours.server_side(other)) as engine,
        running(engine.url, ca_cert_paths=[ours.cert], **own) as server,
        connected(server) as client,
    ):
        assert (await client.post()).status == (200 if shows else 502)


async def test_a_stream_over_tls_on_both_sides(ours: Certificate) -> None:
    """Each piece arrives before the next one is sent."""
    arrived = [asyncio.Event() for _ in range(3)]

    async def script(socket: EngineSocket) -> None:
        await socket.request()
        await socket.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for event in arrived:
            await socket.send(b"5\r\npiece\r\n")
            await within(event.wait())
        await socket.send(b"0\r\n\r\n")
        await socket.request()

    async with (
        ScriptedEngine(script, ours.server_side()) as engine,
        running(engine.url, ca_cert_paths=[ours.cert], **shown(ours)) as server,
        connected(server, ours.client_side()) as client,
    ):
        await client.send(POST)
        for event in arrived:
            await within(client.reader.readuntil(b"piece\r\n"))
            event.set()
        assert await within(client.reader.readuntil(b"0\r\n\r\n"))


def _dial(port: int, context: ssl.SSLContext) -> ssl.SSLSocket:
    """A client's socket that holds little of what it does not read."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.settimeout(PATIENCE_SECS)
    sock.connect(("127.0.0.1", port))
    return context.wrap_socket(sock, server_hostname="127.0.0.1")


def _read(sock: ssl.SSLSocket) -> bytes:
    """All that comes up to its orderly end."""
    got = b""
    while data := sock.recv(65_536):
        got += data
    return got


async def test_an_early_answer_that_is_not_read_at_once_is_not_cut_off(
    ours: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The transport under TLS holds it, and does not say how much."""
    monkeypatch.setattr(downstream, "LINGER_SECS", 0.01)
    body = b"x" * 60_000

    async def script(engine: EngineSocket) -> None:
        await engine.reader.readuntil(b"part one")
        await engine.send(respond(body))
        await engine.reader.read()

    async with ScriptedEngine(script) as engine, running(engine.url, **shown(ours)) as server:
        with await asyncio.to_thread(_dial, server.port, ours.client_side()) as client:
            connection = client_connection(server)
            sock = connection._transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            head = POST.replace(b"Length: 2", b"Length: 16").replace(
                b"Host", b"Connection: close\r\nHost"
            )
            client.sendall(head.removesuffix(b"{}") + b"part one")
            await until(connection._transport.is_closing)
            got = await asyncio.to_thread(_read, client)
    assert got.partition(b"\r\n\r\n")[2] == body


# ---- files


@pytest.mark.parametrize("option", ["tls_cert_path", "ca_cert_paths", "client_cert_path"])
@pytest.mark.parametrize("content", [None, "no certificate"])
async def test_a_file_that_is_of_no_use_is_named(
    option: str, content: str | None, tmp_path: Path, ours: Certificate
) -> None:
    file = tmp_path / "given.pem"
    if content is not None:
        file.write_text(content)
    settings: dict[str, Any] = {option: [str(file)] if option == "ca_cert_paths" else str(file)}
    if option != "ca_cert_paths":
        settings[option.replace("cert", "key")] = ours.key
    with pytest.raises(ConfigError) as raised:
        async with running(**settings):
            raise AssertionError("it must not start")
    assert "given.pem" in str(raised.value)
    assert "--" + option.replace("_", "-") in str(raised.value)


async def test_a_key_of_another_certificate_is_refused(
    ours: Certificate, other: Certificate
) -> None:
    with pytest.raises(ConfigError, match="--tls-key-path"):
        async with running(tls_cert_path=ours.cert, tls_key_path=other.key):
            raise AssertionError("it must not start")


async def test_a_handshake_that_is_not_finished_ends(ours: Certificate) -> None:
    """It counts as a head that does not come."""
    async with (
        running(client_head_timeout_secs=0.1, **shown(ours)) as server,
        connected(server) as silent,
    ):
        assert await silent.closed()
