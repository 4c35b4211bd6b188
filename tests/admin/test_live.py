"""The control plane of a running router: what only shows with a gateway below it."""

import asyncio
import re

import orjson
import pytest

from sgl_router.config import RouterConfig
from sgl_router.config.fields import PrefillEngine, WorkerSettings
from sgl_router.core.registry import WorkerRegistry
from sgl_router.core.worker import Health, Worker
from sgl_router.errors import ConfigError
from sgl_router.gateway.context import EXPOSED_HEADERS, Message
from sgl_router.server import RouterServer
from sgl_router.server.control import metrics_app
from sgl_router.telemetry.gauges import Sources
from sgl_router.telemetry.metrics import Telemetry
from tests.gateway.support import (
    Client,
    EngineSocket,
    Placements,
    Request,
    Response,
    ScriptedEngine,
    answering,
    connected,
    free_url,
    respond,
    running,
    within,
)

GOOD, EVIL = b"https://good.test", b"https://evil.test"


# ---- CORS


def origin(value: bytes) -> bytes:
    return b"Origin: %b\r\n" % value


def cors_of(response: Response) -> dict[str, list[bytes]]:
    names = ("allow-origin", "expose-headers")
    found = {name: response.get(b"access-control-" + name.encode()) for name in names}
    return {"vary": response.get(b"vary"), **found}


EXPOSED = [", ".join(EXPOSED_HEADERS).encode()]
REFUSED = {"vary": [b"Origin"], "allow-origin": [], "expose-headers": []}
ALLOWED = {"vary": [b"Origin"], "allow-origin": [GOOD], "expose-headers": EXPOSED}
EVERYBODY = {"vary": [], "allow-origin": [b"*"], "expose-headers": EXPOSED}


@pytest.mark.parametrize(
    ("allowed", "sent", "expected"),
    [
        ((GOOD,), origin(GOOD), ALLOWED),
        ((GOOD, b"https://other.test"), origin(GOOD), ALLOWED),
        ((GOOD,), origin(EVIL), REFUSED),
        ((GOOD,), origin(b"null"), REFUSED),
        ((GOOD,), b"", REFUSED),
        ((b"*",), origin(EVIL), EVERYBODY),
        ((b"*",), b"", EVERYBODY),
        ((), origin(GOOD), {"vary": [], "allow-origin": [], "expose-headers": []}),
    ],
)
async def test_which_pages_may_read_what_an_engine_answers(
    allowed: tuple[bytes, ...], sent: bytes, expected: dict[str, list[bytes]]
) -> None:
    origins = [one.decode() for one in allowed]
    async with (
        ScriptedEngine(answering(respond())) as engine,
        running(engine.url, cors_allowed_origins=origins) as server,
        connected(server) as client,
    ):
        answered = await client.ask(b"POST", b"/v1/x", b"{}", sent)
        by_router = await client.ask(b"GET", b"/generate", b"", sent)
    assert (answered.status, by_router.status) == (200, 405)
    assert cors_of(answered) == expected
    assert cors_of(by_router) == expected, "errors too, or a page cannot tell what went wrong"


# ---- engines' caches


async def test_a_flush_says_that_it_has_no_body() -> None:
    seen: list[Request] = []
    async with (
        ScriptedEngine(answering(respond(b"Cache flushed."), seen)) as engine,
        running(engine.url) as server,
        connected(server) as client,
    ):
        assert (await client.ask(b"POST", b"/flush_cache")).status == 200
        assert (await client.ask(b"GET", b"/get_loads")).status == 200
    flush, load = seen
    assert flush.head.method == b"POST"
    assert [v for n, v in flush.head.headers if n.lower() == b"content-length"] == [b"0"]
    assert flush.head.get(b"content-type") is None
    assert load.head.get(b"content-length") is None, "a GET has none"


async def test_a_flushed_cache_draws_no_requests() -> None:
    """Two engines, and one text: it goes where it was before, until that engine has flushed."""

    async def flushable(socket: EngineSocket) -> None:
        while (request := await socket.request()) is not None:
            refused = request.head.path == "/flush_cache" and not flushing.is_set()
            await socket.send(respond(b"", 400 if refused else 200))

    flushing = asyncio.Event()
    placements = Placements()
    async with (
        ScriptedEngine(flushable) as one,
        ScriptedEngine(flushable) as two,
        running(one.url, two.url, policy="cache_aware", placements=placements) as server,
        connected(server) as client,
    ):
        body = orjson.dumps({"prompt": "once upon a time " * 20})

        async def holder() -> str:
            await client.post(b"/v1/completions", body)
            return placements.done[-1][0].worker.url

        def matched() -> int:
            assert server._dispatcher is not None, "it is running"
            return server._dispatcher._prefixes.match(("regular", None), "once upon").characters

        first = await holder()
        assert {await holder() for _ in range(8)} == {first}
        assert (await client.ask(b"POST", b"/flush_cache")).status == 502
        assert matched() > 0, "no engine has flushed"
        flushing.set()
        assert (await client.ask(b"POST", b"/flush_cache")).status == 200
        assert matched() == 0
        again = await holder()
        assert {await holder() for _ in range(8)} == {again}, "what it has since is remembered"


# ---- metrics


def sample(page: bytes, name: str) -> float:
    (found,) = re.findall(rf"^{re.escape(name)} (\S+)$", page.decode(), re.MULTILINE)
    return float(found)


async def streaming(client: Client) -> None:
    """Begin a request whose answer does not end."""
    await client.send(b"POST /v1/x HTTP/1.1\r\nHost: r\r\nContent-Length: 2\r\n\r\n{}")
    assert b"begun" in await within(client.reader.readuntil(b"begun"))


async def endless(socket: EngineSocket) -> None:
    await socket.request()
    await socket.send(b"HTTP/1.1 200 OK\r\n\r\nbegun")
    await socket.reader.read()


@pytest.mark.parametrize("cap", [-1, 8])
async def test_requests_for_the_router_itself_are_not_counted_as_running(cap: int) -> None:
    async with (
        ScriptedEngine(endless) as engine,
        running(engine.url, max_concurrent_requests=cap) as server,
        connected(server) as client,
        connected(server) as scraper,
    ):
        pages = [(await scraper.ask(b"GET", b"/metrics")).body]
        await streaming(client)
        pages.append((await scraper.ask(b"GET", b"/metrics")).body)
    assert [sample(page, "sgl_router_running_requests") for page in pages] == [0, 1]


async def test_the_last_request_of_a_removed_worker_is_its_own() -> None:
    """Counted while the worker is there, it goes with it, and leaves no worker of another name."""
    placements = Placements()
    async with (
        ScriptedEngine(endless) as engine,
        running(engine.url, placements=placements) as server,
        connected(server) as other,
    ):
        (worker,) = server.registry
        async with connected(server) as client:
            await streaming(client)
            path = b"/workers/%b" % worker.id.encode()
            assert (await other.ask(b"DELETE", path)).status == 202
            assert list(server.registry) == [worker]
            ended = asyncio.ensure_future(placements.more(1))
            await asyncio.sleep(0)
        await within(ended)
        page = (await other.ask(b"GET", b"/metrics")).body
    assert not list(server.registry)
    assert b'worker="' not in page
    assert b"sgl_router_requests_total{" in page


async def test_other_work_is_done_while_a_large_page_is_made() -> None:
    registry = WorkerRegistry()
    for number in range(300):
        registry.add(Worker(f"http://engine-{number}", Health.UP))
    telemetry = Telemetry(registry, Sources(lambda: 7, lambda: 7, lambda: 7, lambda: 7))
    pieces = sum(1 for _ in telemetry.pieces("")[0])
    assert pieces > 10
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        raise AssertionError("a GET has no body")

    scope: Message = {"path": "/metrics", "method": "GET", "headers": []}
    task = asyncio.ensure_future(metrics_app(telemetry)(scope, receive, send))
    turns = 0
    while not task.done():
        await asyncio.sleep(0)
        turns += 1
    assert turns >= pieces
    start, body = sent
    whole, content_type = telemetry.pieces("")
    assert start["status"] == 200
    assert start["headers"] == [(b"content-type", content_type.encode())]
    assert _without_process(body["body"]) == _without_process(b"".join(whole))


def _without_process(page: bytes) -> list[bytes]:
    """What does not change while nothing happens."""
    return [line for line in page.splitlines() if b"process_" not in line]


# ---- settings


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        ({"worker_urls": ["http://user@engine"]}, "option --worker-urls"),
        ({"prefill": [PrefillEngine("http://user@engine")]}, "option --prefill"),
        ({"decode": ["http://user@engine"]}, "option --decode"),
        ({"workers": [WorkerSettings.model_construct(url="http://user@engine")]}, "key workers"),
        ({"decode": ["http://engine", "http://engine/"]}, "option --decode"),
        (
            {
                "worker_urls": ["http://engine"],
                "workers": [WorkerSettings.model_construct(url="http://engine")],
            },
            "key workers",
        ),
    ],
)
def test_a_url_that_cannot_be_used_is_named_with_where_it_was_given(
    settings: dict[str, object], where: str
) -> None:
    config = RouterConfig().model_copy(update=settings)
    with pytest.raises(ConfigError) as refused:
        RouterServer(config)
    assert "engine" in str(refused.value)
    assert re.findall(r"option --[a-z-]+|key [a-z]+", str(refused.value)) == [where]


async def test_a_url_that_cannot_be_added_names_no_option() -> None:
    async with running(free_url()) as server, connected(server) as client:
        body, json = b'{"url": "http://user@engine"}', b"Content-Type: application/json\r\n"
        added = await client.ask(b"POST", b"/workers", body, json)
        older = await client.ask(b"POST", b"/add_worker?url=http://user@engine")
    assert (added.status, older.status) == (400, 400)
    for response in (added, older):
        assert b"credentials" in response.body
        assert b"http://HOST:PORT" in response.body
        assert b"--" not in response.body
