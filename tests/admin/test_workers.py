"""`/workers`: what the peers' clients send, and what they get."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sgl_router.admin.schemas import MAX_LABELS
from sgl_router.core.worker import Circuit, Health, Worker
from tests.admin.support import Router, up, workers_error_of

ONE, TWO = "http://one:8000", "http://two:8000"
JSON = {"content-type": "application/json"}


async def test_the_listing_has_the_shape_of_the_peers() -> None:
    prefill = up(
        ONE,
        role="prefill",
        model_id="llama",
        labels={"zone": "a"},
        priority=7,
        cost=2.5,
        weight=3.0,
        api_key="engine-secret",
        bootstrap_port=8998,
    )
    router = Router(prefill, Worker(TWO))
    async with router.client() as client:
        response = await client.get("/workers")
        single = await client.get(f"/workers/{prefill.id}")
    assert response.status_code == 200
    first, second = response.json()["workers"]
    assert first == {
        "id": prefill.id,
        "url": ONE,
        "model_id": "llama",
        "worker_type": "prefill",
        "is_healthy": True,
        "status": "ready",
        "circuit": "closed",
        "load": 0,
        "priority": 7,
        "cost": 2.5,
        "weight": 3.0,
        "labels": {"zone": "a"},
        "bootstrap_port": 8998,
    }
    assert single.json() == first
    assert (second["url"], second["model_id"], second["worker_type"]) == (TWO, "unknown", "regular")
    assert response.json()["total"] == 2
    assert response.json()["stats"] == {
        "prefill_count": 1,
        "decode_count": 0,
        "regular_count": 1,
    }
    assert "engine-secret" not in response.text


@pytest.mark.parametrize(
    ("health", "status", "healthy"),
    [
        (Health.UNKNOWN, "pending", False),
        (Health.UP, "ready", True),
        (Health.DOWN, "not_ready", False),
        (Health.DRAINING, "draining", False),
    ],
)
async def test_health_in_the_words_of_the_peers(health: Health, status: str, healthy: bool) -> None:
    async with Router(Worker(ONE, health)).client() as client:
        (worker,) = (await client.get("/workers")).json()["workers"]
    assert (worker["status"], worker["is_healthy"]) == (status, healthy)


async def test_an_open_breaker_is_listed() -> None:
    router = Router(ONE)
    (worker,) = router.registry
    router.registry.set_circuit(worker, Circuit.OPEN)
    async with router.client() as client:
        (listed,) = (await client.get("/workers")).json()["workers"]
    assert (listed["circuit"], listed["is_healthy"]) == ("open", True)


async def test_load_is_listed() -> None:
    router = Router(ONE)
    router.begin_request()
    async with router.client() as client:
        assert (await client.get("/workers")).json()["workers"][0]["load"] == 1


async def test_adding() -> None:
    router = Router()
    async with router.client() as client:
        response = await client.post("/workers", json={"url": ONE + "/"})
        added = response.json()
        listed = await client.get(response.headers["location"])
    (worker,) = router.registry
    assert response.status_code == 202
    assert added.keys() == {"status", "worker_id", "url", "location", "message"}
    assert (added["status"], added["worker_id"], added["url"]) == ("accepted", worker.id, ONE)
    assert added["location"] == response.headers["location"] == f"/workers/{worker.id}"
    assert listed.json()["status"] == "pending"
    fresh = Worker(ONE)
    for attribute in ("role", "model_id", "labels", "priority", "cost", "weight", "api_key"):
        assert getattr(worker, attribute) == getattr(fresh, attribute)


async def test_adding_with_everything() -> None:
    router = Router()
    spec = {
        "url": ONE,
        "worker_type": "decode",
        "model_id": "llama",
        "labels": {"zone": "ä"},
        "priority": 9,
        "cost": 0.5,
        "weight": 4,
        "api_key": "engine-secret",
        "bootstrap_port": 8998,
    }
    async with router.client() as client:
        response = await client.post("/workers", json=spec)
    (worker,) = router.registry
    assert response.status_code == 202
    assert "engine-secret" not in response.text
    assert (worker.role, worker.model_id, worker.labels) == ("decode", "llama", {"zone": "ä"})
    assert (worker.priority, worker.cost, worker.weight) == (9, 0.5, 4)
    assert (worker.api_key, worker.bootstrap_port) == ("engine-secret", 8998)


async def test_null_is_as_absent() -> None:
    router = Router()
    keys = ("worker_type", "model_id", "labels", "priority", "cost", "weight", "api_key")
    spec = {"url": ONE, "bootstrap_port": None, **dict.fromkeys(keys)}
    async with router.client() as client:
        assert (await client.post("/workers", json=spec)).status_code == 202
    (worker,) = router.registry
    assert (worker.role, worker.priority, worker.api_key) == ("regular", 50, None)


async def test_a_number_without_a_fraction_is_an_integer() -> None:
    router = Router()
    body = b'{"url": "http://one:8000", "priority": 7.0, "bootstrap_port": 8e3}'
    async with router.client() as client:
        response = await client.post("/workers", content=body, headers=JSON)
        listed = (await client.get(response.headers["location"])).text
    assert '"priority":7,' in listed
    assert '"bootstrap_port":8000}' in listed


async def test_unknown_is_no_model() -> None:
    router = Router()
    async with router.client() as client:
        await client.post("/workers", json={"url": ONE, "model_id": "unknown"})
    (worker,) = router.registry
    assert worker.model_id is None
    assert not router.registry.models


async def test_unknown_keys_are_ignored_and_named() -> None:
    router = Router()
    spec = {"url": ONE, "weigth": 3, "runtime": "sglang", "a" * 500: 1}
    body = b'{"url": "http://three"' + b"".join(b', "k%d": 1' % i for i in range(40)) + b"}"
    async with router.client() as client:
        response = await client.post("/workers", content=_dumps(spec), headers=JSON)
        many = await client.post("/workers", content=body, headers=JSON)
    message = response.json()["message"]
    assert response.status_code == 202
    assert "weigth" in message
    assert "runtime" in message
    assert len(message) < 300
    assert len(many.json()["message"]) < 300


@pytest.mark.parametrize("again", [ONE, ONE + "/", "HTTP://ONE:8000"])
async def test_a_url_is_added_once(again: str) -> None:
    router = Router(ONE)
    async with router.client() as client:
        response = await client.post("/workers", json={"url": again})
    assert workers_error_of(response) == (409, "WORKER_ALREADY_EXISTS")
    assert len(router.registry) == 1


SHARED = Router(TWO)
"""For requests that leave nothing behind; a test that fails may spoil it for those after it."""


@pytest.mark.parametrize(
    "spec",
    [
        {},
        [],
        "http://one",
        None,
        {"url": None},
        {"url": 1},
        {"url": ""},
        {"url": "one:8000"},
        {"url": "ftp://one"},
        {"url": "http://user:secret@one"},
        {"url": "http://one/" + "a" * 2048},
        {"url": "http://one\r\nX: y"},
        {"url": ONE, "worker_type": "encode"},
        {"url": ONE, "model_id": ""},
        {"url": ONE, "model_id": "a" * 257},
        {"url": ONE, "model_id": "\ud800"},
        {"url": ONE, "labels": {"a": 1}},
        {"url": ONE, "labels": {"": "a"}},
        {"url": ONE, "labels": {"a" * 129: "a"}},
        {"url": ONE, "labels": {"a": "b" * 1025}},
        {"url": ONE, "labels": {"a": "\ud800"}},
        {"url": ONE, "labels": {str(i): "" for i in range(MAX_LABELS + 1)}},
        {"url": ONE, "priority": -1},
        {"url": ONE, "priority": "1"},
        {"url": ONE, "priority": True},
        {"url": ONE, "priority": 1.5},
        {"url": ONE, "priority": float("inf")},
        {"url": ONE, "priority": 2**32},
        {"url": ONE, "cost": -1},
        {"url": ONE, "cost": float("nan")},
        {"url": ONE, "weight": float("inf")},
        {"url": ONE, "api_key": ""},
        {"url": ONE, "api_key": "secret key"},
        {"url": ONE, "api_key": "secret\r\nX: y"},
        {"url": ONE, "api_key": "secret" * 1000},
        {"url": ONE, "bootstrap_port": 0},
        {"url": ONE, "\ud800": 1},
        {"url": ONE, "bootstrap_port": 65536},
    ],
)
async def test_what_is_not_added(spec: Any) -> None:
    async with SHARED.client() as client:
        response = await client.post("/workers", content=_dumps(spec), headers=JSON)
    assert workers_error_of(response) == (400, "BAD_REQUEST")
    message = response.json()["error"]
    assert "--" not in message, "no option of a command line would help"
    assert "secret" not in message
    assert len(message) < 1000
    assert [worker.url for worker in SHARED.registry] == [TWO]


@pytest.mark.parametrize(
    "body", [b"", b"{", b'{"url": ', b"\xff\xfe", b"[" * 100_000, b'{"priority": 1' + b"0" * 5000]
)
async def test_what_is_not_json(body: bytes) -> None:
    (worker,) = SHARED.registry
    async with SHARED.client() as client:
        for response in (
            await client.post("/workers", content=body, headers=JSON),
            await client.patch(f"/workers/{worker.id}", content=body, headers=JSON),
        ):
            assert workers_error_of(response) == (400, "BAD_REQUEST")


@pytest.mark.parametrize("content_type", [None, "text/plain", "application/x-www-form-urlencoded"])
async def test_a_body_must_say_that_it_is_json(content_type: str | None) -> None:
    """A page of another origin may send everything else without asking."""
    router = Router(TWO)
    (worker,) = router.registry
    headers = {"content-type": content_type} if content_type else {}
    body = _dumps({"url": ONE, "weight": 9})
    async with router.client() as client:
        for response in (
            await client.post("/workers", content=body, headers=headers),
            await client.patch(f"/workers/{worker.id}", content=body, headers=headers),
        ):
            assert workers_error_of(response) == (400, "BAD_REQUEST")
    assert [w.url for w in router.registry] == [TWO]
    assert worker.weight == 1


async def test_a_charset_makes_no_difference() -> None:
    router = Router()
    headers = {"content-type": "Application/JSON; charset=utf-8"}
    async with router.client() as client:
        response = await client.post("/workers", content=_dumps({"url": ONE}), headers=headers)
    assert response.status_code == 202


async def test_changing() -> None:
    router = Router(up(ONE, labels={"zone": "a", "rack": "1"}))
    (worker,) = router.registry
    view = router.registry.view()
    update = {"priority": 1, "cost": 3, "weight": 0.5, "labels": {"zone": "b", "rack": None}}
    async with router.client() as client:
        response = await client.patch(f"/workers/{worker.id}", json=update)
        listed = (await client.get(f"/workers/{worker.id}")).json()
    assert response.status_code == 202
    assert response.json().keys() == {"status", "worker_id", "message"}
    assert (response.json()["status"], response.json()["worker_id"]) == ("accepted", worker.id)
    assert (listed["priority"], listed["cost"], listed["weight"]) == (1, 3.0, 0.5)
    assert listed["labels"] == {"zone": "b"}
    assert router.registry.view() is not view, "what was made of the old view is out of date"


async def test_what_is_absent_stays() -> None:
    router = Router(up(ONE, labels={"a": "b"}, priority=1, cost=2.0, weight=3.0, model_id="m"))
    (worker,) = router.registry
    async with router.client() as client:
        for update in ({}, {"priority": None, "labels": None}, {"url": TWO, "model_id": "n"}):
            response = await client.patch(f"/workers/{worker.id}", json=update)
            assert response.status_code == 202
    assert (worker.url, worker.model_id, worker.labels) == (ONE, "m", {"a": "b"})
    assert (worker.priority, worker.cost, worker.weight) == (1, 2.0, 3.0)
    assert "model_id" in response.json()["message"]


async def test_a_change_is_made_whole_or_not_at_all() -> None:
    there = {str(i): "" for i in range(MAX_LABELS)}
    router = Router(up(ONE, labels=there))
    (worker,) = router.registry
    async with router.client() as client:
        for update in (
            {"weight": 2, "labels": {"one more": ""}},
            {"weight": 2, "priority": -1},
            {"weight": 2, "labels": {"0": 1}},
        ):
            response = await client.patch(f"/workers/{worker.id}", json=update)
            assert workers_error_of(response) == (400, "BAD_REQUEST")
    assert (worker.weight, worker.labels) == (1.0, there)


@pytest.mark.parametrize(
    "worker_id", ["nobody", "00000000-0000-0000-0000-000000000000", "%00", "%ff", "a" * 5000]
)
async def test_nobody(worker_id: str) -> None:
    path = f"/workers/{worker_id}"
    async with SHARED.client() as client:
        for response in (
            await client.get(path),
            await client.patch(path, json={"weight": 2}),
            await client.delete(path),
        ):
            assert workers_error_of(response) == (404, "WORKER_NOT_FOUND")
            assert len(response.content) < 500
    assert [worker.url for worker in SHARED.registry] == [TWO]


async def test_an_idle_worker_is_removed_at_once() -> None:
    router = Router(ONE, TWO)
    worker = next(iter(router.registry))
    async with router.client() as client:
        response = await client.delete(f"/workers/{worker.id}")
        again = await client.delete(f"/workers/{worker.id}")
    assert response.status_code == 202
    assert response.json()["worker_id"] == worker.id
    assert workers_error_of(again) == (404, "WORKER_NOT_FOUND")
    assert [w.url for w in router.registry] == [TWO]


async def test_a_worker_in_use_is_drained() -> None:
    router = Router(ONE)
    first, second = router.begin_request(), router.begin_request()
    path = f"/workers/{first.worker.id}"
    async with router.client() as client:
        assert (await client.delete(path)).status_code == 202
        assert (await client.get(path)).json()["status"] == "draining"
        again = await client.post("/workers", json={"url": ONE})
        assert workers_error_of(again) == (409, "WORKER_ALREADY_EXISTS")
        router.end_request(first)
        assert (await client.delete(path)).status_code == 202
        assert (await client.get(path)).json()["load"] == 1
        assert router.drained == [first.worker], "once"
        router.end_request(second)
        assert workers_error_of(await client.get(path)) == (404, "WORKER_NOT_FOUND")
        assert (await client.post("/workers", json={"url": ONE})).status_code == 202


@settings(max_examples=20)
@given(
    labels=st.dictionaries(st.text(min_size=1, max_size=20), st.text(max_size=20), max_size=5),
    update=st.dictionaries(
        st.text(min_size=1, max_size=20), st.none() | st.text(max_size=20), max_size=5
    ),
)
async def test_labels_come_back_as_they_were_given(
    labels: dict[str, str], update: dict[str, str | None]
) -> None:
    async with SHARED.client() as client:
        added = await client.post("/workers", json={"url": ONE, "labels": labels})
        path = added.headers["location"]
        assert (await client.get(path)).json()["labels"] == labels
        await client.patch(path, json={"labels": update})
        merged = {k: v for k, v in {**labels, **update}.items() if v is not None}
        assert (await client.get(path)).json()["labels"] == merged
        await client.delete(path)


def _dumps(value: Any) -> bytes:
    """As JSON, with what `orjson` refuses to write: NaN and lone surrogates."""
    return json.dumps(value).encode("ascii")
