"""POST /abort_request: whom it reaches, and what is answered."""

import orjson
import pytest

from sgl_router.admin.control import AdminSettings
from sgl_router.core.worker import Health, Worker
from tests.admin.support import ADMIN_KEY, API_KEY, LOCAL, REMOTE, Router, error_of, up

ONE, TWO, THREE = "http://one:8000", "http://two:8000", "http://three:8000"
PATH = "/abort_request"


def taking(*workers: Worker | str, settings: AdminSettings | None = None) -> Router:
    """A router whose engines take what they are told."""
    router = Router(*workers, settings=settings)
    for worker in router.registry:
        router.engines.answer(worker.url, PATH, b"")
    return router


async def test_only_the_worker_that_has_the_request_is_told() -> None:
    two = up(TWO)
    router = taking(ONE, two, THREE)
    router.running["mine"] = two
    body = b'{ "rid":"mine" , "abort_all":false,"abort_message":"\\u00fc" }'
    async with router.client() as client:
        response = await client.post(
            PATH, content=body, headers={"content-type": "application/json"}
        )
    assert response.status_code == 200
    answer = response.json()
    assert answer.keys() == {"status", "message", "workers"}
    assert (answer["status"], answer["workers"]) == ("success", [TWO])
    (asked,) = router.engines.asked
    assert (asked.url, asked.path, asked.method, asked.body) == (TWO, PATH, b"POST", body)


@pytest.mark.parametrize("health", [Health.DOWN, Health.DRAINING])
async def test_the_worker_that_has_it_is_told_whatever_its_health(health: Health) -> None:
    one = Worker(ONE, health)
    router = taking(one, TWO)
    router.running["mine"] = one
    async with router.client() as client:
        response = await client.post(PATH, json={"rid": "mine"})
    assert (response.status_code, response.json()["workers"]) == (200, [ONE])


@pytest.mark.parametrize(
    "body",
    [
        {"rid": "unknown"},
        {"rid": "mine", "abort_all": True},
        {"abort_all": True},
        {"rid": "", "abort_all": True},
        {"rid": None, "abort_all": True},
    ],
)
async def test_otherwise_all_are_told_that_may_have_it(body: dict[str, object]) -> None:
    draining = up("http://draining")
    router = taking(draining, ONE, TWO, Worker("http://down", Health.DOWN), Worker("http://new"))
    router.running["mine"] = next(iter(router.registry))
    router.begin_request()
    router.registry.set_health(draining, Health.DRAINING)
    async with router.client() as client:
        response = await client.post(PATH, json=body)
    assert response.status_code == 200
    assert response.json()["workers"] == [draining.url, ONE, TWO]
    assert [asked.url for asked in router.engines.asked] == [draining.url, ONE, TWO]
    assert {orjson.dumps(orjson.loads(asked.body)) for asked in router.engines.asked} == {
        orjson.dumps(body)
    }


async def test_some_do_not_take_it() -> None:
    router = taking(ONE, TWO, THREE)
    router.engines.break_off(ONE, PATH)
    router.engines.answer(TWO, PATH, b"", 404)
    async with router.client() as client:
        response = await client.post(PATH, json={"rid": "unknown"})
    answer = response.json()
    assert (response.status_code, answer["status"]) == (200, "partial_success")
    assert answer["workers"] == [THREE]
    assert ONE in answer["message"]
    assert TWO in answer["message"]


async def test_nobody_takes_it() -> None:
    async with Router().client() as client:
        response = await client.post(PATH, json={"rid": "unknown"})
    assert error_of(response) == (404, "request_not_found")
    router = taking(ONE, TWO)
    router.engines.break_off(ONE, PATH)
    router.engines.answer(TWO, PATH, b"", 405)
    async with router.client() as client:
        response = await client.post(PATH, json={"abort_all": True})
    assert error_of(response) == (404, "request_not_found")
    assert TWO in response.json()["error"]["message"]


async def test_the_worker_that_has_it_does_not_take_it() -> None:
    one = up(ONE)
    router = taking(one, TWO)
    router.running["mine"] = one
    async with router.client() as client:
        router.engines.answer(ONE, PATH, b"", 404)
        response = await client.post(PATH, json={"rid": "mine"})
        assert error_of(response) == (404, "request_not_found")
        router.engines.break_off(ONE, PATH)
        response = await client.post(PATH, json={"rid": "mine"})
        assert error_of(response) == (502, "call_upstream_error")
    assert ONE in response.json()["error"]["message"]
    assert {asked.url for asked in router.engines.asked} == {ONE}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b'{"rid": ""}',
        b'{"rid": null}',
        b'{"abort_all": false}',
        b'{"rid": 7}',
        b'{"rid": "a", "abort_all": 1}',
    ],
)
async def test_what_names_no_request_is_refused(body: bytes) -> None:
    router = taking(ONE)
    async with router.client() as client:
        response = await client.post(
            PATH, content=body, headers={"content-type": "application/json"}
        )
    assert error_of(response) == (400, "bad_request")
    assert not router.engines.asked


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", None])
async def test_a_page_cannot_send_it_without_asking_first(content_type: str | None) -> None:
    """These a browser sends to another origin at once (Fetch standard, CORS-safelisted)."""
    router = taking(ONE)
    headers = {} if content_type is None else {"content-type": content_type}
    async with router.client() as client:
        response = await client.post(PATH, content=b'{"abort_all": true}', headers=headers)
    assert error_of(response) == (400, "bad_request")
    assert "expected application/json" in response.json()["error"]["message"]
    assert not router.engines.asked


async def test_the_data_planes_key_is_asked_for_and_passed_on() -> None:
    keys = AdminSettings(admin_key=b"other", api_key=API_KEY.encode())
    router = taking(ONE, up(TWO, api_key="engine-key"), settings=keys)
    async with router.client(REMOTE) as client:
        response = await client.post(PATH, json={"rid": "a"})
        assert error_of(response) == (401, "invalid_api_key")
        assert not router.engines.asked
        key = {"authorization": f"Bearer {API_KEY}"}
        response = await client.post(PATH, json={"rid": "a"}, headers=key)
    assert response.status_code == 200
    assert [asked.headers for asked in router.engines.asked] == [
        b"Authorization: Bearer %b\r\n" % API_KEY.encode(),
        b"Authorization: Bearer engine-key\r\n",
    ]


@pytest.mark.parametrize("api_key", [None, API_KEY.encode()])
async def test_everybodys_requests_are_stopped_with_the_admin_key_only(
    api_key: bytes | None,
) -> None:
    keys = AdminSettings(admin_key=ADMIN_KEY.encode(), api_key=api_key)
    router = taking(ONE, up(TWO, api_key="engine-key"), settings=keys)
    data, admin = ({"authorization": f"Bearer {key}"} for key in (API_KEY, ADMIN_KEY))
    async with router.client(REMOTE) as client:
        response = await client.post(PATH, json={"abort_all": True}, headers=data)
        assert error_of(response) == (401, "unauthorized")
        if api_key is not None:
            response = await client.post(PATH, json={"rid": "a"}, headers=admin)
            assert error_of(response) == (401, "invalid_api_key")
        assert not router.engines.asked
        response = await client.post(PATH, json={"abort_all": True}, headers=admin)
    assert response.status_code == 200
    assert [asked.headers for asked in router.engines.asked] == [
        b"",
        b"Authorization: Bearer engine-key\r\n",
    ], "the key of the control plane is not for engines"


@pytest.mark.parametrize("api_key", [None, API_KEY.encode()])
async def test_without_one_everybodys_are_stopped_from_this_machine_only(
    api_key: bytes | None,
) -> None:
    router = taking(ONE, settings=AdminSettings(api_key=api_key))
    body, data = {"abort_all": True}, {"authorization": f"Bearer {API_KEY}"}
    async with router.client(REMOTE) as client:
        assert error_of(await client.post(PATH, json=body, headers=data)) == (403, "forbidden")
        assert (await client.post(PATH, json={"rid": "a"}, headers=data)).status_code == 200
    async with router.client(LOCAL, x_forwarded_for=REMOTE) as client:
        assert error_of(await client.post(PATH, json=body, headers=data)) == (403, "forbidden")
    assert len(router.engines.asked) == 1
    async with router.client(LOCAL) as client:
        assert (await client.post(PATH, json=body)).status_code == 200
