"""Who may ask, what engines are told of it, and what each address answers."""

import logging
from typing import Any

import orjson
import pytest

from sgl_router.errors import ConfigError
from sgl_router.server import RouterServer
from tests.gateway.support import (
    Client,
    EngineSocket,
    Request,
    ScriptedEngine,
    answering,
    connected,
    respond,
    running,
    until,
)

KEY = "client-key-7f3a"
ENGINE_KEY = "engine-key-91bc"
PAGE = b"Origin: https://chat.example.com\r\n"


class At:
    """One of the router's further addresses."""

    def __init__(self, port: int | None) -> None:
        assert port is not None, "it listens there"
        self.port = port


async def ask(client: Client, headers: bytes, body: bytes = b"{}") -> Any:
    return await client.ask(b"POST", b"/v1/chat/completions", body, headers)


# ---- keys


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (b"", 401),
        (b"Authorization: Bearer wrong\r\n", 401),
        (b"Authorization: Bearer\r\n", 401),
        (b"Authorization: Basic %b\r\n" % KEY.encode(), 401),
        (b"Authorization: Bearer %bx\r\n" % KEY.encode(), 401),
        (b"x-api-key: wrong\r\n", 401),
        (b"Authorization: Bearer %b\r\n" % KEY.encode(), 200),
        (b"authorization: bearer  %b\r\n" % KEY.encode(), 200),
        (b"X-Api-Key: %b\r\n" % KEY.encode(), 200),
    ],
)
async def test_the_data_plane_needs_its_key(headers: bytes, status: int) -> None:
    seen: list[Request] = []
    async with (
        ScriptedEngine(answering(respond(b"served"), seen)) as engine,
        running(engine.url, api_key=KEY) as server,
        connected(server) as client,
    ):
        for _ in range(2):  # the connection is kept, whatever the answer
            answer = await ask(client, headers)
            assert answer.status == status
        assert (await client.ask(b"GET", b"/health")).status == 200, "probes need none"
    assert len(seen) == (2 if status == 200 else 0)
    if status == 401:
        assert answer.error_code == "invalid_api_key"
        assert answer.get(b"www-authenticate") == [b"Bearer"]
        assert orjson.loads(answer.body)["error"]["type"] == "authentication_error"
        assert len(answer.get(b"x-request-id")) == 1


async def test_a_body_without_a_key_is_not_waited_for() -> None:
    async with running(api_key=KEY) as server, connected(server) as client:
        await client.send(
            b"POST /v1/x HTTP/1.1\r\nHost: r\r\nContent-Length: 1000\r\n"
            b"Expect: 100-continue\r\n\r\n"
        )
        assert (await client.response()).status == 401
        assert await client.closed()


async def test_an_engine_has_its_own_key() -> None:
    """It replaces what the client has shown, on requests and on the router's own questions."""
    seen: list[Request] = []
    others: list[Request] = []
    async with (
        ScriptedEngine(answering(respond(b'{"data": []}'), seen)) as engine,
        ScriptedEngine(answering(respond(b'{"data": []}'), others)) as other,
        running(
            api_key=KEY,
            workers=[{"url": engine.url, "api_key": ENGINE_KEY}, {"url": other.url}],
            disable_health_check=False,
        ) as server,
        connected(server) as client,
    ):
        await until(lambda: all(worker.healthy for worker in server.registry))
        shown = b"Authorization: Bearer %b\r\n" % KEY.encode()
        for _ in range(2):
            assert (await ask(client, shown)).status == 200
        assert (await client.ask(b"GET", b"/v1/models", b"", shown)).status == 200
    assert {request.head.path for request in seen} == {
        "/health", "/v1/models", "/v1/chat/completions"
    }  # fmt: skip
    for request in seen:
        values = [v for name, v in request.head.headers if name.lower() == b"authorization"]
        assert values == [b"Bearer %b" % ENGINE_KEY.encode()]
    (proxied,) = (r for r in others if r.head.path == "/v1/chat/completions")
    assert proxied.head.get(b"authorization") == b"Bearer %b" % KEY.encode(), "passed on as it came"


@pytest.mark.parametrize("name", [b"authorization", b"x-api-key"])
async def test_the_routers_key_is_not_for_an_engine_that_has_its_own(name: bytes) -> None:
    """However it was shown."""
    seen: list[Request] = []
    others: list[Request] = []
    shown = (b"Bearer %b" if name == b"authorization" else b"%b") % KEY.encode()
    async with (
        ScriptedEngine(answering(respond(), seen)) as engine,
        ScriptedEngine(answering(respond(), others)) as other,
        running(
            api_key=KEY, workers=[{"url": engine.url, "api_key": ENGINE_KEY}, {"url": other.url}]
        ) as server,
        connected(server) as client,
    ):
        for _ in range(2):
            assert (await ask(client, b"%b: %b\r\n" % (name.title(), shown))).status == 200
    (ours,), (theirs,) = seen, others
    assert ours.head.get(b"authorization") == b"Bearer %b" % ENGINE_KEY.encode()
    assert ours.head.get(b"x-api-key") is None
    assert KEY.encode() not in ours.head.raw
    assert theirs.head.get(name) == shown, "passed on as it came"


async def test_keys_are_in_no_log_and_no_listing(caplog: pytest.LogCaptureFixture) -> None:
    async def fails(socket: EngineSocket) -> None:
        await socket.request()
        await socket.send(b"nonsense")

    caplog.set_level(logging.DEBUG)
    async with (
        ScriptedEngine(fails) as engine,
        running(
            api_key=KEY,
            admin_api_key="admin-key-44de",
            workers=[{"url": engine.url, "api_key": ENGINE_KEY}],
            disable_health_check=False,
            health_failure_threshold=1000,
        ) as server,
        connected(server) as client,
    ):
        admin = b"Authorization: Bearer admin-key-44de\r\n"
        added = b'{"url": "http://127.0.0.1:1", "api_key": "added-key-20af"}'
        texts = [
            (await ask(client, b"Authorization: Bearer %b\r\n" % KEY.encode())).body,
            (await ask(client, b"Authorization: Bearer wrong-key-6600\r\n")).body,
            (await client.ask(b"GET", b"/workers", b"", admin)).body,
            (
                await client.ask(
                    b"POST", b"/workers", added, admin + b"Content-Type: application/json\r\n"
                )
            ).body,
            (await client.ask(b"GET", b"/workers", b"", admin)).body,
            (await client.ask(b"GET", b"/metrics")).body,
        ]
        assert len(server.registry) == 2
        texts.append(repr(list(server.registry)).encode())
    text = b"\n".join(texts).decode() + caplog.text
    assert "added" in text, "something was said"
    for key in (KEY, ENGINE_KEY, "admin-key-44de", "added-key-20af", "wrong-key-6600"):
        assert key not in text


# ---- pages of other origins


@pytest.mark.parametrize(
    ("origins", "allowed"),
    [
        ((), None),
        (("https://other.example",), None),
        (("https://chat.example.com",), "page"),
        (("*",), "*"),
    ],
)
@pytest.mark.parametrize("engine_says", [b"", b"access-control-allow-origin: *\r\n"])
async def test_pages_may_read_answers_where_they_are_allowed_to(
    origins: tuple[str, ...], allowed: str | None, engine_says: bytes
) -> None:
    """The engines' own headers say nothing about this router, where it has a rule of its own."""
    async with (
        ScriptedEngine(answering(respond(b"served", 200, engine_says))) as engine,
        running(engine.url, cors_allowed_origins=origins) as server,
        connected(server) as client,
    ):
        proxied = await ask(client, PAGE)
        own = await client.ask(b"GET", b"/health", b"", PAGE)
        refused = await client.ask(b"GET", b"/nowhere", b"", PAGE)
        without = await ask(client, b"")
    expected = {None: [], "page": [b"https://chat.example.com"], "*": [b"*"]}[allowed]
    assert refused.get(b"access-control-allow-origin") == expected
    assert own.get(b"access-control-allow-origin") == expected
    if not origins and engine_says:
        expected = [b"*"]  # passed on as it came
    assert proxied.get(b"access-control-allow-origin") == expected
    if allowed is not None:
        exposed = b",".join(proxied.get(b"access-control-expose-headers")).lower()
        assert b"x-request-id" in exposed
    if allowed == "page":
        assert b"origin" in b",".join(proxied.get(b"vary")).lower()
    if origins and "*" not in origins:
        assert without.get(b"access-control-allow-origin") == []
        assert b"origin" in b",".join(without.get(b"vary")).lower(), "a cache must know"


async def test_a_page_may_read_errors_of_the_router() -> None:
    async with (
        running(cors_allowed_origins=["https://chat.example.com"]) as server,
        connected(server) as client,
    ):
        answer = await ask(client, PAGE)
    assert answer.status == 503
    assert answer.get(b"access-control-allow-origin") == [b"https://chat.example.com"]


async def test_a_browser_may_ask_before_it_sends() -> None:
    """Its question is for the router, and needs no key: browsers show none."""
    seen: list[Request] = []
    async with (
        ScriptedEngine(answering(respond(), seen)) as engine,
        running(
            engine.url, cors_allowed_origins=["https://chat.example.com"], api_key=KEY
        ) as server,
        connected(server) as client,
    ):
        question = PAGE + (
            b"Access-Control-Request-Method: POST\r\n"
            b"Access-Control-Request-Headers: authorization, content-type\r\n"
        )
        for path in (b"/v1/chat/completions", b"/generate", b"/v1/anything"):
            answer = await client.ask(b"OPTIONS", path, b"", question)
            assert answer.status == 200
            assert answer.get(b"access-control-allow-origin") == [b"https://chat.example.com"]
            assert b"POST" in answer.get(b"access-control-allow-methods")[0]
    assert seen == []


# ---- addresses


async def statuses(server: At | RouterServer, asked: dict[bytes, bytes]) -> dict[bytes, int]:
    async with connected(server) as client:
        return {
            path: (await client.ask(method, path, b"{}" if method == b"POST" else b"")).status
            for path, method in asked.items()
        }


async def test_each_address_answers_what_it_is_for() -> None:
    seen: list[Request] = []
    asked = {
        b"/v1/chat/completions": b"POST",
        b"/v1/files": b"GET",
        b"/generate": b"POST",
        b"/metrics": b"GET",
        b"/workers": b"GET",
        b"/health": b"GET",
        b"/readiness": b"GET",
    }
    async with (
        ScriptedEngine(answering(respond(), seen)) as engine,
        running(engine.url, admin_port=0, prometheus_port=0, prometheus_host="127.0.0.1") as server,
    ):
        assert set((await statuses(server, asked)).values()) == {200}
        assert len(seen) == 3
        admin = await statuses(At(server.admin_port), asked)
        metrics = await statuses(At(server.prometheus_port), asked)
        assert len({server.port, server.admin_port, server.prometheus_port}) == 3
    assert len(seen) == 3, "engines are asked through the main address only"
    assert {path for path, status in admin.items() if status == 200} == {
        b"/metrics", b"/workers", b"/health", b"/readiness"
    }  # fmt: skip
    assert {path for path, status in metrics.items() if status == 200} == {b"/metrics"}


async def test_metrics_are_the_same_at_either_address() -> None:
    async with (
        ScriptedEngine(answering(respond())) as engine,
        running(engine.url, prometheus_port=0, prometheus_host="127.0.0.1") as server,
        connected(server) as client,
        connected(At(server.prometheus_port)) as scraper,
    ):
        assert (await client.post()).status == 200
        pages = [await c.ask(b"GET", b"/metrics") for c in (client, scraper)]
        names = [
            {line.split(b" ")[2] for line in page.body.splitlines() if line.startswith(b"# TYPE")}
            for page in pages
        ]
    assert names[0] == names[1] != set()
    assert pages[0].get(b"content-type") == pages[1].get(b"content-type")


@pytest.mark.parametrize("option", ["admin", "prometheus"])
async def test_a_further_address_that_is_taken_is_named(option: str) -> None:
    async with running() as server:
        taken: dict[str, Any] = {f"{option}_port": server.port, f"{option}_host": "127.0.0.1"}
        with pytest.raises(ConfigError, match=f"--{option}-port"):
            async with running(**taken):
                raise AssertionError("it must not start")
