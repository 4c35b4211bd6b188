"""Liveness, readiness and metrics."""

import pytest

from sgl_router.core.worker import Health, Worker
from tests.admin.support import Router

ONE, TWO = "http://one:8000", "http://two:8000"


@pytest.mark.parametrize("path", ["/health", "/liveness"])
async def test_the_process_is_alive(path: str) -> None:
    router = Router(Worker(ONE, Health.DOWN))
    router.draining = True
    async with router.client() as client:
        response = await client.get(path)
        head = await client.head(path)
    assert (response.status_code, response.text) == (200, "OK")
    assert response.headers["content-type"] == "text/plain; charset=utf-8"
    assert (head.status_code, head.content) == (200, b"")


async def test_ready() -> None:
    async with Router(ONE, TWO, Worker("http://three", Health.DOWN)).client() as client:
        response = await client.get("/readiness")
    assert response.status_code == 200
    assert response.json() == {"status": "ready", "healthy_workers": 2, "total_workers": 3}


async def test_not_ready_where_asking_says_so() -> None:
    router = Router(ONE)
    router.ready = False
    async with router.client() as client:
        assert (await client.get("/readiness")).status_code == 503


async def test_not_ready_before_it_stops() -> None:
    router = Router(ONE)
    router.draining = True
    async with router.client() as client:
        response = await client.get("/readiness")
    assert response.status_code == 503
    assert response.json() == {"status": "not ready", "reason": "draining"}


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("*/*", "text/plain; version=0.0.4; charset=utf-8"),
        (
            "application/openmetrics-text;version=1.0.0",
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
        ),
    ],
)
async def test_metrics_in_the_format_asked_for(accept: str, content_type: str) -> None:
    async with Router().client(accept=accept) as client:
        response = await client.get("/metrics")
    assert response.status_code == 200
    assert response.headers.get_list("content-type") == [content_type]
    assert response.content
