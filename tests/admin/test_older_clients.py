"""The paths of before `/workers`: plain text, 200."""

import pytest

from sgl_router.core.worker import Health
from tests.admin.support import Router, error_of

ONE, TWO = "http://one:8000", "http://two:8000"


async def test_the_urls_are_listed() -> None:
    async with Router(ONE, TWO).client() as client:
        response = await client.get("/list_workers")
    assert (response.status_code, response.json()) == (200, {"urls": [ONE, TWO]})


@pytest.mark.parametrize("url", [ONE, ONE + "/"])
async def test_adding_and_removing(url: str) -> None:
    router = Router()
    async with router.client() as client:
        added = await client.post("/add_worker", params={"url": url})
        (worker,) = router.registry
        assert (worker.url, worker.health) == (ONE, Health.UNKNOWN)
        removed = await client.post("/remove_worker", params={"url": url})
    assert (added.status_code, removed.status_code) == (200, 200)
    assert added.headers["content-type"] == "text/plain; charset=utf-8"
    assert removed.headers["content-type"] == "text/plain; charset=utf-8"
    assert not len(router.registry)


async def test_the_url_need_not_be_encoded() -> None:
    router = Router()
    async with router.client() as client:
        assert (await client.post(f"/add_worker?url={ONE}")).status_code == 200
    assert router.registry.get(ONE) is not None


async def test_a_worker_is_added_once() -> None:
    router = Router(ONE)
    async with router.client() as client:
        response = await client.post("/add_worker", params={"url": ONE})
    assert error_of(response) == (409, "worker_already_exists")
    assert len(router.registry) == 1


async def test_removing_twice_succeeds() -> None:
    router = Router(ONE, TWO)
    async with router.client() as client:
        for _ in range(2):
            response = await client.post("/remove_worker", params={"url": ONE})
            assert response.status_code == 200
    assert [worker.url for worker in router.registry] == [TWO]


async def test_a_worker_in_use_is_drained() -> None:
    router = Router(ONE)
    decision = router.begin_request()
    async with router.client() as client:
        for _ in range(2):
            assert (await client.post("/remove_worker", params={"url": ONE})).status_code == 200
        assert decision.worker.health is Health.DRAINING
        assert (await client.get("/list_workers")).json() == {"urls": [ONE]}
        router.end_request(decision)
        assert (await client.get("/list_workers")).json() == {"urls": []}


@pytest.mark.parametrize("path", ["/add_worker", "/remove_worker"])
async def test_what_is_no_worker(path: str) -> None:
    router = Router(TWO)
    async with router.client() as client:
        for query in ("", "?url=", "?url=one:8000", "?uri=http://one", "?url=%ff"):
            response = await client.post(path + query)
            assert error_of(response) == (400, "bad_request")
            assert "--" not in response.json()["error"]["message"]
    assert len(router.registry) == 1


@pytest.mark.parametrize("path", ["/add_worker", "/remove_worker"])
async def test_asking_changes_nothing(path: str) -> None:
    router = Router(TWO)
    async with router.client() as client:
        response = await client.get(path, params={"url": TWO})
    assert error_of(response) == (405, "method_not_allowed")
    assert response.headers["allow"] == "POST"
    assert len(router.registry) == 1
