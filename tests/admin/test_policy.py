"""`/policy`: which policy decides."""

import logging

import pytest

from sgl_router.errors import PluginRefused
from sgl_router.wasm.refusals import Reason
from tests.admin.plugin_control import BUILTIN, plugin
from tests.admin.support import Router, error_of

JSON = {"content-type": "application/json"}
REASONS = [Reason("file_empty", "one"), Reason("router_stopping", "two")]


def with_plugin() -> Router:
    """A plugin, and two roles in use."""
    router = Router()
    router.plugins.loaded["mine"] = plugin("mine")
    router.plugins.in_use = {"prefill": BUILTIN, "decode": BUILTIN}
    return router


async def test_which_policy_is_in_use() -> None:
    router = with_plugin()
    router.plugins.in_use["decode"] = "mine"
    async with router.client() as client:
        response = await client.get("/policy")
    assert response.status_code == 200
    assert response.json() == {
        "policies": [
            {
                "role": "prefill",
                "policy": BUILTIN,
                "kind": "builtin",
                "version": None,
                "fallback": BUILTIN,
            },
            {
                "role": "decode",
                "policy": "mine",
                "kind": "plugin",
                "version": "v1",
                "fallback": "power_of_two",
            },
        ]
    }


@pytest.mark.parametrize(
    ("body", "in_use"),
    [
        ({"policy": "mine"}, {"prefill": "mine", "decode": "mine"}),
        ({"policy": "mine", "role": None}, {"prefill": "mine", "decode": "mine"}),
        ({"policy": "mine", "role": "decode"}, {"prefill": BUILTIN, "decode": "mine"}),
    ],
)
async def test_another_policy(
    body: dict[str, object], in_use: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    router = with_plugin()
    caplog.set_level(logging.INFO, logger="sgl_router")
    async with router.client() as client:
        response = await client.put("/policy", json=body)
        assert response.json() == (await client.get("/policy")).json()
    assert response.status_code == 200
    assert {each["role"]: each["policy"] for each in response.json()["policies"]} == in_use
    assert router.plugins.calls == [("use", "mine", body.get("role"))]
    (record,) = caplog.records
    assert "mine" in record.getMessage()


async def test_a_policy_that_there_is_not() -> None:
    router = with_plugin()
    async with router.client() as client:
        response = await client.put("/policy", json={"policy": "nobody"})
    assert error_of(response) == (404, "policy_not_found")


async def test_a_policy_that_is_refused() -> None:
    router = with_plugin()
    router.plugins.failure = PluginRefused("mine", REASONS)
    async with router.client() as client:
        response = await client.put("/policy", json={"policy": "mine"})
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "plugin_refused"
    assert response.json()["reasons"] == ["one", "two"]
    assert response.json()["codes"] == ["file_empty", "router_stopping"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b'"mine"',
        b'{"policy": null}',
        b'{"policy": ""}',
        b'{"policy": 1}',
        b'{"policy": "mine", "role": "all"}',
        b'{"policy": "mine", "role": ["decode"]}',
        b'{"policy": "mine", "rolle": "decode"}',
        b'{"policy": "' + b"x" * 300 + b'"}',
    ],
)
async def test_bodies_that_name_no_policy(content: bytes) -> None:
    router = with_plugin()
    async with router.client() as client:
        response = await client.put("/policy", content=content, headers=JSON)
    assert error_of(response) == (400, "bad_request")
    assert not router.plugins.calls


async def test_a_body_is_declared_as_json() -> None:
    router = with_plugin()
    headers = {"content-type": "text/plain"}
    async with router.client() as client:
        response = await client.put("/policy", content=b'{"policy": "mine"}', headers=headers)
    assert error_of(response) == (400, "bad_request")
    assert "application/json" in response.json()["error"]["message"]
    assert not router.plugins.calls
