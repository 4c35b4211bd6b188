"""`/shadow`: a plugin that is tried beside the policy in use."""

import logging
from dataclasses import asdict

import pytest

from sgl_router.core.worker import Role
from tests.admin.plugin_control import BUILTIN, plugin, report
from tests.admin.support import Router, error_of

JSON = {"content-type": "application/json"}


def with_plugin() -> Router:
    router = Router()
    router.plugins.loaded["mine"] = plugin("mine")
    return router


async def test_no_shadow_run() -> None:
    async with with_plugin().client() as client:
        assert (await client.get("/shadow")).json() == {"shadow": None}
        stopped = await client.delete("/shadow")
        promoted = await client.post("/shadow/promote")
    assert (stopped.status_code, stopped.json()) == (200, {"shadow": None})
    assert error_of(promoted) == (409, "no_shadow")


@pytest.mark.parametrize(
    ("body", "share", "role"),
    [
        ({"plugin": "mine", "share": 0.25}, 0.25, "regular"),
        ({"plugin": "mine", "share": 1, "role": "decode"}, 1, "decode"),
        ({"plugin": "mine", "share": 1e-9, "role": "prefill"}, 1e-9, "prefill"),
    ],
)
async def test_a_shadow_run(body: dict[str, object], share: float, role: Role) -> None:
    router = with_plugin()
    async with router.client() as client:
        started = await client.put("/shadow", json=body)
        running = await client.get("/shadow")
        stopped = await client.delete("/shadow")
        after = await client.get("/shadow")
    expected = asdict(report("mine", share, role))
    assert [answer.status_code for answer in (started, running, stopped)] == [200] * 3
    assert [answer.json() for answer in (started, running, stopped)] == [{"shadow": expected}] * 3
    assert after.json() == {"shadow": None}
    assert router.plugins.calls == [("start shadow", "mine", share, role), ("stop shadow",)]


async def test_before_its_first_decision() -> None:
    router = with_plugin()
    fields = {**asdict(report("mine", 1, "regular")), "agreement": None, "decision_us": None}
    router.plugins.report = type(report("mine", 1, "regular"))(**fields)
    async with router.client() as client:
        shown = (await client.get("/shadow")).json()["shadow"]
    assert shown["agreement"] is None
    assert shown["decision_us"] is None


async def test_promotion() -> None:
    router = with_plugin()
    async with router.client() as client:
        await client.put("/shadow", json={"plugin": "mine", "share": 0.5})
        response = await client.post("/shadow/promote")
        assert response.json() == (await client.get("/policy")).json()
    assert response.status_code == 200
    assert [each["policy"] for each in response.json()["policies"]] == ["mine"]
    assert router.plugins.report is None


async def test_what_cannot_be_tried() -> None:
    router = with_plugin()
    async with router.client() as client:
        unknown = await client.put("/shadow", json={"plugin": BUILTIN, "share": 0.5})
        router.plugins.in_use["regular"] = "mine"
        in_use = await client.put("/shadow", json={"plugin": "mine", "share": 0.5})
    assert error_of(unknown) == (404, "plugin_not_found")
    assert error_of(in_use) == (409, "plugin_in_use")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b'{"plugin": "mine"}',
        b'{"share": 0.5}',
        b'{"plugin": "", "share": 0.5}',
        b'{"plugin": 1, "share": 0.5}',
        b'{"plugin": "mine", "share": null}',
        b'{"plugin": "mine", "share": 0}',
        b'{"plugin": "mine", "share": -0.1}',
        b'{"plugin": "mine", "share": 1.0001}',
        b'{"plugin": "mine", "share": true}',
        b'{"plugin": "mine", "share": "0.5"}',
        b'{"plugin": "mine", "share": NaN}',
        b'{"plugin": "mine", "share": 1e999}',
        b'{"plugin": "mine", "share": 0.5, "role": null}',
        b'{"plugin": "mine", "share": 0.5, "role": "both"}',
        b'{"plugin": "mine", "share": 0.5, "percent": 5}',
    ],
)
async def test_bodies_that_start_nothing(content: bytes) -> None:
    router = with_plugin()
    async with router.client() as client:
        response = await client.put("/shadow", content=content, headers=JSON)
    assert error_of(response) == (400, "bad_request")
    assert not router.plugins.calls


@pytest.mark.parametrize("path", ["/shadow/promote", "/plugins/mine/rollback"])
@pytest.mark.parametrize("origin", ["https://evil.test", "null", "http://127.0.0.1:30000"])
async def test_a_page_can_send_no_request_without_a_body(path: str, origin: str) -> None:
    """A browser asks nobody before it sends this: a POST without a body (Fetch standard)."""
    router = with_plugin()
    async with router.client(origin=origin) as client:
        for headers in ({}, {"content-type": "text/plain"}):
            assert error_of(await client.post(path, headers=headers)) == (403, "forbidden")
    assert not router.plugins.calls


async def test_changes_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="sgl_router")
    async with with_plugin().client() as client:
        await client.delete("/shadow")
        assert not caplog.records, "nothing has changed"
        await client.put("/shadow", json={"plugin": "mine", "share": 0.5})
        await client.delete("/shadow")
        await client.put("/shadow", json={"plugin": "mine", "share": 0.5})
        await client.post("/shadow/promote")
    assert len(caplog.records) == 4
    assert all("127.0.0.1" in record.getMessage() for record in caplog.records)
