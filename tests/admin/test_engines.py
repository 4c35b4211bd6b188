"""What is asked of engines for one answer: models, descriptions, caches, loads."""

import asyncio

import orjson
import pytest

from sgl_router.admin.engines import MAX_AT_ONCE
from sgl_router.admin.models import MAX_TRIES
from sgl_router.core.worker import Health, Worker
from tests.admin.support import Router, error_of, up

ONE, TWO, THREE = "http://one:8000", "http://two:8000", "http://three:8000"


def models(*ids: str, owner: str = "one") -> bytes:
    data = [{"id": model, "owned_by": owner} for model in ids]
    return orjson.dumps({"object": "list", "data": data})


async def test_models_are_the_union_over_healthy_workers() -> None:
    router = Router(ONE, TWO, THREE, Worker("http://down", Health.DOWN))
    router.engines.answer(ONE, "/v1/models", models("a", "b"))
    router.engines.answer(TWO, "/v1/models", models("b", "c", owner="two"))
    router.engines.break_off(THREE, "/v1/models")
    async with router.client() as client:
        response = await client.get("/v1/models")
    assert response.status_code == 200
    assert response.json()["object"] == "list"
    listed = [(model["id"], model["owned_by"]) for model in response.json()["data"]]
    assert listed == [("a", "one"), ("b", "one"), ("c", "two")]
    assert {asked.url for asked in router.engines.asked} == {ONE, TWO, THREE}


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, b"[]"),
        (200, b"{"),
        (200, b"{}"),
        (200, b'{"data": 1}'),
        (200, b'{"data": null}'),
        (401, models("b")),
        (500, b""),
    ],
)
async def test_what_is_no_list_of_models_is_left_out(status: int, body: bytes) -> None:
    router = Router(ONE, TWO)
    router.engines.answer(ONE, "/v1/models", body, status)
    async with router.client() as client:
        assert error_of(await client.get("/v1/models")) == (502, "call_upstream_error")
        router.engines.answer(TWO, "/v1/models", models("a"))
        response = await client.get("/v1/models")
    assert [model["id"] for model in response.json()["data"]] == ["a"]


async def test_what_is_no_model_is_left_out() -> None:
    router = Router(ONE)
    router.engines.answer(ONE, "/v1/models", b'{"data": [1, {}, {"id": 2}, {"id": "a"}]}')
    async with router.client() as client:
        assert (await client.get("/v1/models")).json()["data"] == [{"id": "a"}]


PASSED_ON = ["/get_model_info", "/get_server_info", "/health_generate"]


@pytest.mark.parametrize("path", ["/v1/models", *PASSED_ON])
async def test_nobody_to_ask(path: str) -> None:
    router = Router(Worker(ONE), Worker(TWO, Health.DOWN))
    async with router.client() as client:
        assert error_of(await client.get(path)) == (503, "no_available_workers")
    assert not router.engines.asked


@pytest.mark.parametrize("path", PASSED_ON)
@pytest.mark.parametrize(
    ("status", "body", "content_type"),
    [
        (200, b'{"a":  1}', b"application/json"),
        (200, b"\xff\x00", b"application/octet-stream"),
        (503, b"not yet", b"text/plain; charset=latin-1"),
        (404, b"", b"text/html"),
    ],
)
async def test_an_engines_answer_is_passed_on(
    path: str, status: int, body: bytes, content_type: bytes
) -> None:
    router = Router(Worker(ONE, Health.DOWN), TWO)
    router.engines.answer(TWO, path, body, status, content_type)
    async with router.client() as client:
        response = await client.get(path)
    assert (response.status_code, response.content) == (status, body)
    assert response.headers.get_list("content-type") == [content_type.decode()]


async def test_an_answer_without_a_content_type_gets_none() -> None:
    router = Router(ONE)
    router.engines.answers[ONE, "/health_generate"] = (200, b"", b"")
    async with router.client() as client:
        assert "content-type" not in (await client.get("/health_generate")).headers


@pytest.mark.parametrize("path", PASSED_ON)
async def test_a_worker_that_cannot_be_reached_is_passed_over(path: str) -> None:
    router = Router(ONE, TWO, THREE)
    router.engines.break_off(ONE, path)
    router.engines.answer(TWO, path, b"two")
    async with router.client() as client:
        assert (await client.get(path)).content == b"two"
    assert [asked.url for asked in router.engines.asked] == [ONE, TWO]


async def test_not_everybody_is_asked_in_turn() -> None:
    urls = [f"http://engine-{number}" for number in range(MAX_TRIES + 2)]
    router = Router(*urls)
    for url in urls:
        router.engines.break_off(url, "/get_model_info")
    async with router.client() as client:
        assert error_of(await client.get("/get_model_info")) == (502, "call_upstream_error")
    assert len(router.engines.asked) == MAX_TRIES


@pytest.mark.parametrize("path", ["/v1/models", *PASSED_ON])
async def test_the_clients_key_is_passed_on_but_for_the_workers_own(path: str) -> None:
    router = Router(ONE, up(TWO, api_key="engine-key"))
    router.engines.break_off(ONE, path)
    async with router.client(authorization="Bearer mine") as client:
        await client.get(path)
    assert {(asked.url, asked.headers) for asked in router.engines.asked} == {
        (ONE, b"Authorization: Bearer mine\r\n"),
        (TWO, b"Authorization: Bearer engine-key\r\n"),
    }


async def test_caches_are_flushed() -> None:
    router = Router(ONE, up(TWO, api_key="engine-key"))
    for url in (ONE, TWO):
        router.engines.answer(url, "/flush_cache", b"Cache flushed.")
    async with router.client(authorization="Bearer mine") as client:
        response = await client.post("/flush_cache")
    body = response.json()
    assert response.status_code == 200
    assert isinstance(body.pop("message"), str)
    assert body == {
        "status": "success",
        "workers_flushed": 2,
        "total_http_workers": 2,
        "total_workers": 2,
    }
    assert router.flushed == list(router.registry)
    assert [(asked.method, asked.headers) for asked in router.engines.asked] == [
        (b"POST", b""),
        (b"POST", b"Authorization: Bearer engine-key\r\n"),
    ], "the key of the control plane is not for engines"


async def test_caches_that_are_not_flushed_are_named() -> None:
    router = Router(ONE, TWO, THREE)
    router.engines.answer(ONE, "/flush_cache", b"", 200)
    router.engines.answer(TWO, "/flush_cache", b"", 400)
    router.engines.break_off(THREE, "/flush_cache")
    async with router.client() as client:
        response = await client.post("/flush_cache")
    body = response.json()
    assert response.status_code == 206
    assert body["status"] == "partial_success"
    assert (body["workers_flushed"], body["total_workers"]) == (1, 3)
    assert body["successful"] == [ONE]
    assert [worker.url for worker in router.flushed] == [ONE]
    assert [failure["worker"] for failure in body["failed"]] == [TWO, THREE]
    assert all(failure.keys() == {"worker", "error"} for failure in body["failed"])


async def test_no_cache_is_flushed() -> None:
    router = Router(ONE, TWO)
    router.engines.answer(ONE, "/flush_cache", b"", 400)
    router.engines.break_off(TWO, "/flush_cache")
    async with router.client() as client:
        response = await client.post("/flush_cache")
    assert error_of(response) == (502, "call_upstream_error")
    for url in (ONE, TWO):
        assert url in response.json()["error"]["message"]
    assert not router.flushed


async def test_no_caches_to_flush() -> None:
    async with Router().client() as client:
        response = await client.post("/flush_cache")
    assert (response.status_code, response.json()["workers_flushed"]) == (200, 0)


@pytest.mark.parametrize(
    ("status", "body", "load"),
    [
        (200, b'[{"dp_rank": 0, "num_reqs": 3, "num_tokens": 77}]', 77),
        (200, b'[{"num_tokens": 70}, {"num_tokens": 7}]', 77),
        (200, b'[{"num_tokens": 0}]', 0),
        (200, b"[]", -1),
        (200, b"[77]", -1),
        (200, b'[{"num_tokens": -5}]', -1),
        (200, b'[{"num_tokens": 1.5}]', -1),
        (200, b'[{"num_tokens": 1}, {}]', -1),
        (200, b"{}", -1),
        (200, b"", -1),
        (404, b'[{"num_tokens": 77}]', -1),
    ],
)
async def test_loads(status: int, body: bytes, load: int) -> None:
    router = Router(ONE)
    router.begin_request()
    router.engines.answer(ONE, "/get_load", body, status)
    async with router.client() as client:
        response = await client.get("/get_loads")
    assert response.status_code == 200
    assert response.json() == {"workers": [{"worker": ONE, "load": load, "in_flight": 1}]}


async def test_an_engine_that_is_down_is_not_asked_for_its_load() -> None:
    router = Router(Worker(ONE, Health.DOWN))
    async with router.client() as client:
        (load,) = (await client.get("/get_loads")).json()["workers"]
    assert load["load"] == -1
    assert not router.engines.asked


async def test_engines_are_asked_at_once_but_not_all() -> None:
    router = Router(*(f"http://engine-{number}" for number in range(MAX_AT_ONCE + 9)))
    answer = router.engines.fetch
    full, waiting, most = asyncio.Event(), 0, 0

    async def fetch(worker: Worker, path: str, timeout_secs: float, headers: bytes = b"") -> object:
        nonlocal waiting, most
        waiting += 1
        most = max(most, waiting)
        if waiting == MAX_AT_ONCE:
            asyncio.get_running_loop().call_soon(full.set)  # after all that may begin
        await full.wait()
        waiting -= 1
        return await answer(worker, path, timeout_secs, headers)

    object.__setattr__(router.control, "fetch", fetch)
    async with router.client() as client:
        response = await client.get("/get_loads")
    urls = [worker["worker"] for worker in response.json()["workers"]]
    assert urls == [worker.url for worker in router.registry]
    assert most == MAX_AT_ONCE
