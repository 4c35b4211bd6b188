"""`/plugins`: names in paths, and what comes of each change."""

import logging
from dataclasses import asdict, replace
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sgl_router.errors import PluginRefused
from sgl_router.wasm.refusals import Reason
from tests.admin.plugin_control import plugin, version
from tests.admin.support import Router, error_of

WASM = b"\0asm"
JSON = {"content-type": "application/json"}
GIVEN: dict[str, Any] = {"config": {"a": [1, None]}, "max_memory_bytes": 2**20}

SHARED = Router()
"""For names that are not there."""


def with_plugins(*names: str) -> Router:
    router = Router()
    for name in names:
        router.plugins.loaded[name] = plugin(name)
    return router


def shown(status: object) -> Any:
    """A dataclass as JSON has it."""
    return orjson.loads(orjson.dumps(status))


# ---- reading


async def test_the_listing() -> None:
    router = with_plugins("a", "b")
    async with router.client() as client:
        response = await client.get("/plugins")
        one = await client.get("/plugins/b")
    assert response.status_code == one.status_code == 200
    assert response.json() == {
        "plugins": [shown(router.plugins.loaded[name]) for name in "ab"],
        "total": 2,
    }
    assert one.json() == response.json()["plugins"][1]
    assert one.json()["current"]["sha256"] == plugin("b").current.sha256
    assert one.json()["quarantine"] == asdict(plugin("b").quarantine)


async def test_no_plugins() -> None:
    async with Router().client() as client:
        assert (await client.get("/plugins")).json() == {"plugins": [], "total": 0}


NAMES = ["nobody", "..%00", "%20", "a%25b", "%C3%A4%FF", "%F0%9F%92%A9", "a;b=c", "x" * 5000]
ESCAPED = ["a%2Fb", "a%2frollback", "mine%2Frollback", "mine%2Freload", "mine%0A", "%2F", "%0a"]


@pytest.mark.parametrize("name", NAMES + ESCAPED)
async def test_names_that_are_not_there(name: str) -> None:
    router = with_plugins("mine")
    async with router.client() as client:
        answers = [
            await client.get(f"/plugins/{name}"),
            await client.delete(f"/plugins/{name}"),
            await client.post(f"/plugins/{name}/rollback"),
            await client.post(f"/plugins/{name}/reload"),
        ]
        assert [error_of(answer) for answer in answers] == [(404, "plugin_not_found")] * 4
        assert all(len(answer.content) < 1000 for answer in answers)
        refused = await client.put(f"/plugins/{name}", content=WASM)
    assert refused.status_code == (201 if name == "nobody" else 400)
    assert {call[0] for call in router.plugins.calls} == {"put", "unload", "roll back", "reload"}
    assert router.plugins.loaded["mine"] == plugin("mine")


@pytest.mark.parametrize(
    "path",
    [
        "/plugins/",
        "/plugins//rollback",
        "/plugins/mine/",
        "/plugins/mine/rollback%0A",
        "/plugins/mine/roll%2fback",
        "/plugins%2Fmine",
        "/plugins%2Fmine%2Frollback",
        "/plugins/mine%2Frollback/x",
        "/plugins/mine/rollback/rollback",
        "/plugins%0A",
    ],
)
async def test_paths_that_are_no_plugins(path: str) -> None:
    router = with_plugins("mine")
    async with router.client() as client:
        for method in ("GET", "PUT", "POST", "DELETE"):
            response = await client.request(method, path)
            assert error_of(response) == (404, "unknown_url")
    assert not router.plugins.calls


@given(name=st.text(min_size=1, max_size=30))
@settings(deadline=None)
async def test_a_name_is_what_was_escaped(name: str) -> None:
    """Whatever the name, the control is asked for it, but for the two characters kept escaped."""
    path = "".join(f"%{byte:02X}" for byte in name.encode("utf-8", "replace"))
    SHARED.plugins.calls.clear()
    async with SHARED.client() as client:
        await client.post(f"/plugins/{path}/rollback")
    sent = name.encode("utf-8", "replace").decode()
    kept = sent.replace("/", "%2F").replace("\n", "%0A")
    assert SHARED.plugins.calls == [("roll back", kept)]


# ---- changes


async def test_a_plugin_that_is_refused() -> None:
    router = with_plugins("mine")
    reasons = [f"reason {number} \x1b with <b>" for number in range(200)]
    async with router.client() as client:
        for request in (
            client.build_request("PUT", "/plugins/mine", content=WASM),
            client.build_request("POST", "/plugins/mine/reload"),
        ):
            router.plugins.failure = PluginRefused(
                "mine", [Reason("import_unknown", reason) for reason in reasons]
            )
            response = await client.send(request)
            body = response.json()
            assert body.keys() == {"error", "reasons", "codes"}
            assert body["reasons"] == reasons
            assert body["codes"] == ["import_unknown"] * 200
            error = body["error"]
            assert (response.status_code, error["code"]) == (400, "plugin_refused")
            assert (error["type"], error["param"]) == ("invalid_request_error", None)
            assert reasons[0].split()[0] in error["message"]
    assert router.plugins.loaded["mine"] == plugin("mine")


async def test_reload() -> None:
    router = with_plugins("mine")
    bodies: list[object] = [None, {}, {"settings": None}, {"settings": {}}, {"settings": GIVEN}]
    async with router.client() as client:
        answers = [await client.post("/plugins/mine/reload")]
        answers += [await client.post("/plugins/mine/reload", json=body) for body in bodies]
    assert [answer.status_code for answer in answers] == [200] * 6
    assert answers[0].json().keys() == {"status", "plugin", "self_test"}
    settings = [call[2] for call in router.plugins.calls]
    assert settings == [None, None, None, None, {}, GIVEN]
    assert [answer.json()["status"] for answer in answers[-2:]] == ["unchanged", "replaced"]
    assert answers[-1].json()["plugin"]["current"]["settings"] == GIVEN


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"[]",
        b"1",
        b'{"settings": []}',
        b'{"settings": "{}"}',
        b'{"setings": {}}',
        b'{"settings": {"config": {"a": NaN}}}',
        b'{"settings": {"config": {"a": "\\ud800"}}}',
        b'{"settings": {"config": {"a": "\xff"}}}',
        b'{"settings": ' + b'{"a":' * 5000 + b"1" + b"}" * 5000 + b"}",
    ],
)
async def test_bodies_that_are_no_settings(content: bytes) -> None:
    router = with_plugins("mine")
    async with router.client() as client:
        response = await client.post("/plugins/mine/reload", content=content, headers=JSON)
    assert error_of(response) == (400, "bad_request")
    assert not router.plugins.calls


async def test_a_number_without_a_fraction_is_an_integer() -> None:
    router = with_plugins("mine")
    body = b'{"settings": {"inline_budget_ms": 5.0}}'
    async with router.client() as client:
        response = await client.post("/plugins/mine/reload", content=body, headers=JSON)
    assert response.status_code == 200
    assert '"inline_budget_ms":5}' in response.text


@pytest.mark.parametrize("content_type", ["text/plain", "multipart/form-data", None])
async def test_settings_for_a_reload_are_declared_as_json(content_type: str | None) -> None:
    router = with_plugins("mine")
    headers = {} if content_type is None else {"content-type": content_type}
    async with router.client() as client:
        response = await client.post("/plugins/mine/reload", content=b"{}", headers=headers)
    assert error_of(response) == (400, "bad_request")
    assert not router.plugins.calls


async def test_rollback() -> None:
    router = Router()
    old = version(b"old", {})
    router.plugins.loaded["mine"] = replace(plugin("mine"), previous=old)
    async with router.client() as client:
        response = await client.post("/plugins/mine/rollback")
        again = await client.post("/plugins/mine/rollback")
    assert response.status_code == 200
    assert response.json() == shown(router.plugins.loaded["mine"])
    assert response.json()["current"]["sha256"] == old.sha256
    assert error_of(again) == (409, "nothing_to_roll_back_to")


async def test_unloading() -> None:
    router = with_plugins("mine", "used")
    router.plugins.in_use["regular"] = "used"
    async with router.client() as client:
        response = await client.delete("/plugins/mine")
        used = await client.delete("/plugins/used")
        gone = await client.delete("/plugins/mine")
    assert (response.status_code, response.json()) == (200, {"status": "unloaded", "name": "mine"})
    assert error_of(used) == (409, "plugin_in_use")
    assert error_of(gone) == (404, "plugin_not_found")
    assert list(router.plugins.loaded) == ["used"]


async def test_changes_are_logged_and_settings_are_not(caplog: pytest.LogCaptureFixture) -> None:
    router = Router()
    caplog.set_level(logging.INFO, logger="sgl_router")
    params = {"settings": '{"config": {"key": "secret"}}'}
    async with router.client() as client:
        await client.put("/plugins/mine", content=WASM, params=params)
        await client.post("/plugins/mine/reload", json={"settings": {"config": {"k": "secret2"}}})
        await client.post("/plugins/mine/rollback")
        await client.delete("/plugins/mine")
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 4
    assert all("mine" in message and "127.0.0.1" in message for message in messages)
    assert "secret" not in caplog.text


async def test_an_unexpected_failure_is_a_500(caplog: pytest.LogCaptureFixture) -> None:
    router = Router()
    router.plugins.failure = ZeroDivisionError("the plan")
    async with router.client() as client:
        response = await client.put("/plugins/mine", content=WASM)
    assert error_of(response) == (500, "internal_error")
    assert "the plan" in caplog.text


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/plugins", "GET, HEAD"),
        ("/plugins/mine", "GET, HEAD, PUT, DELETE"),
        ("/plugins/mine/reload", "POST"),
        ("/policy", "GET, HEAD, PUT"),
        ("/shadow", "GET, HEAD, PUT, DELETE"),
        ("/shadow/promote", "POST"),
    ],
)
async def test_methods_that_a_path_does_not_take(path: str, allowed: str) -> None:
    async with SHARED.client() as client:
        response = await client.patch(path)
    assert error_of(response) == (405, "method_not_allowed")
    assert response.headers["allow"] == allowed
