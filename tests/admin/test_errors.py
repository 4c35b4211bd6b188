"""Paths and methods that there are not, CORS, and what goes wrong inside."""

import logging

import httpx
import pytest

from sgl_router.admin.app import CORS_METHODS
from sgl_router.admin.control import AdminSettings
from sgl_router.gateway.context import EXPOSED_HEADERS
from tests.admin.support import ADMIN_KEY, API_KEY, LOCAL, REMOTE, Router, error_of

ONE = "http://one:8000"
GOOD = "https://good.test"
EMPTY = Router()
LOCKED = Router(settings=AdminSettings(admin_key=ADMIN_KEY.encode(), api_key=API_KEY.encode()))


@pytest.mark.parametrize(
    "path",
    ["/", "/nothing", "/workers/", "/workers/a/b", "/docs", "/redoc", "/v2/models", "/%00%ff"],
)
async def test_unknown_paths(path: str) -> None:
    async with LOCKED.client(REMOTE) as client:
        for method in ("GET", "POST", "DELETE", "OPTIONS", "QUERY"):
            assert error_of(await client.request(method, path)) == (404, "unknown_url")
        head = await client.head(path)
    assert (head.status_code, head.content) == (404, b"")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "/workers", {"GET", "HEAD", "POST"}),
        ("DELETE", "/workers", {"GET", "HEAD", "POST"}),
        ("OPTIONS", "/workers", {"GET", "HEAD", "POST"}),
        ("POST", "/workers/some-id", {"GET", "HEAD", "PATCH", "DELETE"}),
        ("POST", "/health", {"GET", "HEAD"}),
        ("POST", "/v1/models", {"GET", "HEAD"}),
        ("POST", "/openapi.json", {"GET", "HEAD"}),
        ("GET", "/flush_cache", {"POST"}),
        ("GET", "/abort_request", {"POST"}),
        ("QUERY", "/get_loads", {"GET", "HEAD"}),
    ],
)
async def test_methods_that_a_path_does_not_take(method: str, path: str, allowed: set[str]) -> None:
    async with EMPTY.client() as client:
        response = await client.request(method, path)
    assert error_of(response) == (405, "method_not_allowed")
    assert set(response.headers["allow"].split(", ")) == allowed


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/anything", "/generate"])
async def test_the_gateways_paths_are_not_denied(path: str) -> None:
    router = Router()
    async with router.client() as client:
        response = await client.options(path)
        assert error_of(response) == (405, "method_not_allowed")
        assert response.headers["allow"] == "POST"
        assert error_of(await client.post(path)) == (404, "unknown_url"), "not on this address"


async def test_an_unexpected_failure(caplog: pytest.LogCaptureFixture) -> None:
    router = Router(ONE, settings=AdminSettings(cors_origins=frozenset({GOOD})))
    router.engines.answers[ONE, "/v1/models"] = ZeroDivisionError("the plan")
    caplog.set_level(logging.ERROR)
    async with router.client(origin=GOOD) as client:
        response = await client.get("/v1/models")
        assert (await client.get("/health")).status_code == 200
    assert error_of(response) == (500, "internal_error")
    assert "the plan" not in response.text
    assert response.headers["access-control-allow-origin"] == GOOD
    (record,) = (record for record in caplog.records if record.exc_info)
    assert record.name.startswith("sgl_router.")
    assert "the plan" in caplog.text


async def preflight(
    router: Router, path: str, origin: str, method: str, **headers: str
) -> httpx.Response:
    asked = {"origin": origin, "access-control-request-method": method, **headers}
    async with router.client(REMOTE) as client:
        return await client.options(path, headers=asked)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/generate", "/workers", "/v1/models"])
async def test_a_page_of_an_allowed_origin_may_ask(path: str) -> None:
    keys = AdminSettings(ADMIN_KEY.encode(), API_KEY.encode(), frozenset({GOOD}))
    names = {"access-control-request-headers": "authorization, content-type, x-smg-routing-key"}
    for method in CORS_METHODS:
        response = await preflight(Router(settings=keys), path, GOOD, method, **names)
        assert response.status_code == 200
        assert response.headers["access-control-allow-origin"] == GOOD
        assert method in response.headers["access-control-allow-methods"]
        assert "authorization" in response.headers["access-control-allow-headers"]
        assert "origin" in response.headers["vary"].lower()


@pytest.mark.parametrize("origin", ["https://evil.test", "null", "https://good.test.evil.test"])
async def test_a_page_of_another_origin_may_not(origin: str) -> None:
    router = Router(ONE, settings=AdminSettings(cors_origins=frozenset({GOOD})))
    response = await preflight(router, "/v1/chat/completions", origin, "POST")
    assert response.status_code == 400
    async with router.client(REMOTE, origin=origin) as client:
        answer = await client.get("/workers")
    for headers in (response.headers, answer.headers):
        assert "access-control-allow-origin" not in headers


async def test_answers_may_be_read_by_pages_of_allowed_origins() -> None:
    settings = AdminSettings(admin_key=ADMIN_KEY.encode(), cors_origins=frozenset({GOOD}))
    async with Router(settings=settings).client(LOCAL, origin=GOOD) as client:
        for path in ("/health", "/workers", "/nothing"):
            headers = (await client.get(path)).headers
            assert headers["access-control-allow-origin"] == GOOD
            assert headers["access-control-expose-headers"].split(", ") == list(EXPOSED_HEADERS)
            assert "Origin" in headers["vary"]
            assert "access-control-allow-credentials" not in headers


async def test_all_origins() -> None:
    router = Router(settings=AdminSettings(cors_origins=frozenset({"*"})))
    response = await preflight(router, "/v1/chat/completions", "https://any.test", "POST")
    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] == "*"


async def test_cors_is_off_unless_asked_for() -> None:
    router = Router()
    response = await preflight(router, "/v1/chat/completions", GOOD, "POST")
    assert error_of(response) == (405, "method_not_allowed")
    async with router.client(origin=GOOD) as client:
        answer = await client.get("/workers")
    for headers in (response.headers, answer.headers):
        assert not [name for name in headers if name.startswith("access-control")]


async def test_only_http_is_caught() -> None:
    """What is no request passes through: a server may send its start and its end."""
    sent: list[str] = []
    waiting = iter([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])

    async def receive() -> dict[str, str]:
        return next(waiting)

    async def send(message: object) -> None:
        assert isinstance(message, dict)
        sent.append(message["type"])

    await Router().app({"type": "lifespan", "asgi": {"version": "3.0"}}, receive, send)
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
