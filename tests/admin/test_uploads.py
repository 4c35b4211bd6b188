"""A module that is sent to `/plugins`: as the body or in a form, with its settings."""

import tracemalloc
from collections.abc import AsyncIterator
from typing import Any

import httpx
import orjson
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sgl_router.admin.uploads import MAX_SETTINGS_BYTES
from sgl_router.wasm.module import MAX_COMPONENT_BYTES, MAX_MODULE_BYTES
from tests.admin.plugin_control import SELF_TEST, FakePlugins
from tests.admin.support import Router, error_of

WASM = b"\0asm\r\n--\x01\xff\r\n"
FORM = {"content-type": "multipart/form-data; boundary=xx"}
GIVEN: dict[str, Any] = {"config": {"ä": [1, 2.5, None, "+&="]}, "max_memory_bytes": 2**20}

SHARED = Router()
"""For requests that leave nothing behind; a test that fails may spoil it for those after it."""


def forgotten() -> FakePlugins:
    """The shared router's plugins, where nothing has been asked for yet."""
    SHARED.plugins.loaded.clear()
    SHARED.plugins.calls.clear()
    return SHARED.plugins


@pytest.mark.parametrize(
    "content_type",
    [
        None,
        "application/wasm",
        "application/octet-stream",
        "application/x-www-form-urlencoded",
        "application/json",
        "nonsense",
        "",
    ],
)
async def test_the_body_is_the_module(content_type: str | None) -> None:
    plugins = forgotten()
    headers = {} if content_type is None else {"content-type": content_type}
    async with SHARED.client() as client:
        response = await client.put("/plugins/mine", content=WASM, headers=headers)
    assert plugins.calls == [("put", "mine", WASM, {})]
    assert response.status_code == 201
    assert response.json() == {
        "status": "loaded",
        "plugin": orjson.loads(orjson.dumps(plugins.loaded["mine"])),
        "self_test": orjson.loads(orjson.dumps(SELF_TEST)),
    }


async def test_loaded_replaced_unchanged() -> None:
    forgotten()
    async with SHARED.client() as client:
        answers = [
            await client.put("/plugins/mine", content=content)
            for content in (WASM, WASM, WASM + b"2")
        ]
        listed = (await client.get("/plugins/mine")).json()
    told = [(answer.status_code, answer.json()["status"]) for answer in answers]
    assert told == [(201, "loaded"), (200, "unchanged"), (200, "replaced")]
    assert answers[-1].json()["plugin"] == listed


async def test_settings_in_the_query() -> None:
    plugins = forgotten()
    async with SHARED.client() as client:
        params = {"settings": orjson.dumps(GIVEN).decode()}
        response = await client.put("/plugins/mine", content=WASM, params=params)
    assert response.status_code == 201
    assert plugins.calls == [("put", "mine", WASM, GIVEN)]


async def test_a_form() -> None:
    plugins = forgotten()
    async with SHARED.client() as client:
        files = {"module": ("x.wasm", WASM, "application/wasm")}
        data = {"settings": orjson.dumps(GIVEN).decode()}
        response = await client.put("/plugins/mine", files=files, data=data)
        alone = await client.put("/plugins/mine", files=files)
    assert (response.status_code, alone.status_code) == (201, 200)
    assert plugins.calls == [("put", "mine", WASM, GIVEN), ("put", "mine", WASM, {})]


async def test_a_number_without_a_fraction_is_an_integer() -> None:
    plugins = forgotten()
    params = {"settings": '{"max_memory_bytes": 65536.0, "config": {"a": 1.0}}'}
    async with SHARED.client() as client:
        response = await client.put("/plugins/mine", content=WASM, params=params)
    assert response.status_code == 201
    settings = plugins.calls[0][3]
    assert orjson.dumps(settings) == b'{"max_memory_bytes":65536,"config":{"a":1.0}}'


async def test_settings_beside_a_form() -> None:
    forgotten()
    async with SHARED.client() as client:
        files = {"module": ("x.wasm", WASM, "application/wasm")}
        response = await client.put("/plugins/mine?settings={}", files=files)
    assert response.status_code == 201


@given(wasm=st.binary(min_size=1, max_size=200) | st.text("\r\n-x", min_size=1).map(str.encode))
@settings(deadline=None)
async def test_a_form_keeps_every_byte(wasm: bytes) -> None:
    plugins = forgotten()
    async with SHARED.client() as client:
        response = await client.put("/plugins/mine", files={"module": ("m", wasm)})
    assert response.status_code == 201
    assert plugins.calls == [("put", "mine", wasm, {})]


def part(name: str, content: bytes, more: str = "") -> bytes:
    head = f'--xx\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'
    return head.encode() + content + b"\r\n"


END = b"--xx--\r\n"


@pytest.mark.parametrize(
    "body",
    [
        part("module", WASM) + END,
        part("module", WASM, '; filename="m.wasm"') + END,
        part("module", WASM, "\r\nContent-Type: application/wasm") + END,
        part("module", WASM).replace(b"Content-Disposition", b"content-DISPOSITION") + END,
        part("module", WASM).replace(b'"module"', b"module") + END,
        part("module", WASM) + END + b"epilogue",
        part("settings", b"{}") + part("module", WASM) + END,
    ],
)
async def test_forms_that_are_taken(body: bytes) -> None:
    plugins = forgotten()
    async with SHARED.client() as client:
        response = await client.put("/plugins/mine", content=body, headers=FORM)
    assert response.status_code == 201
    assert plugins.calls == [("put", "mine", WASM, {})]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"--xx",
        b"nonsense",
        END,
        part("module", b"") + END,
        part("module", WASM),
        part("module", WASM) + b"--xx",
        part("module", WASM) + b"--yy--\r\n",
        part("module", WASM) * 2 + END,
        part("module", WASM) + part("settings", b"{}") * 2 + END,
        part("module", WASM) + part("name", b"other") + END,
        part("module", WASM) + b"--xx\r\n\r\nnameless\r\n" + END,
        part("Module", WASM) + END,
        part("", WASM) + END,
        part("settings", b"{}") + END,
        part("module", WASM) + part("settings", b"") + END,
        part("module", WASM) + part("settings", b"\xff") + END,
        part("module", WASM).replace(b"form-data", b"attachment") + END,
        part("module", WASM, "\r\nX: " + "y" * 10_000) + END,
        part("module", WASM, "\r\nX: y" * 100) + END,
        b"--xx\r\n\x00: \xff\r\n\r\n" + WASM + END,
        part("settings", b" " * MAX_SETTINGS_BYTES + b"{}") + part("module", WASM) + END,
    ],
)
async def test_forms_that_are_refused(body: bytes) -> None:
    plugins = forgotten()
    async with SHARED.client() as client:
        response = await client.put("/plugins/mine", content=body, headers=FORM)
    assert error_of(response) == (400, "bad_request")
    assert not plugins.calls


async def test_settings_that_are_too_long_are_refused_as_they_come() -> None:
    plugins = forgotten()
    sent = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal sent
        yield part("settings", b"").removesuffix(b"\r\n")
        for _ in range(100):
            sent += 10_000
            yield b" " * 10_000
        yield b"{}\r\n" + part("module", WASM) + END

    async with SHARED.client() as client:
        response = await client.put("/plugins/mine", content=body(), headers=FORM)
    assert error_of(response) == (400, "bad_request")
    assert f"{MAX_SETTINGS_BYTES:,}" in response.json()["error"]["message"]
    assert sent <= MAX_SETTINGS_BYTES + 10_000
    assert not plugins.calls


async def test_settings_may_be_as_long_as_that() -> None:
    plugins = forgotten()
    text = b"{}".ljust(MAX_SETTINGS_BYTES)
    async with SHARED.client() as client:
        body = part("settings", text) + part("module", WASM) + END
        response = await client.put("/plugins/mine", content=body, headers=FORM)
    assert response.status_code == 201
    assert plugins.calls == [("put", "mine", WASM, {})]


@pytest.mark.parametrize("form", [True, False])
@given(sizes=st.lists(st.sampled_from([1, 7, 65_535, 65_536, 65_537, 200_000]), min_size=1))
@settings(deadline=None, max_examples=30)
async def test_a_module_in_pieces_of_any_size(form: bool, sizes: list[int]) -> None:
    plugins = forgotten()
    pieces = [bytes([number % 251]) * size for number, size in enumerate(sizes)]
    assume(sum(sizes) <= MAX_MODULE_BYTES)

    async def body() -> AsyncIterator[bytes]:
        if form:
            yield part("module", b"").removesuffix(b"\r\n")
        for piece in pieces:
            yield piece
        if form:
            yield b"\r\n" + END

    async with SHARED.client() as client:
        headers = FORM if form else {}
        response = await client.put("/plugins/mine", content=body(), headers=headers)
    assert response.status_code == 201
    assert plugins.calls == [("put", "mine", b"".join(pieces), {})]


async def test_a_form_takes_no_more_memory_for_looking_like_boundaries() -> None:
    """The parser hands such bytes on one by one."""
    forgotten()
    wasm = b"\r\n--" * 50_000
    body = part("module", wasm) + END
    async with SHARED.client() as client:
        tracemalloc.start()
        try:
            response = await client.put("/plugins/mine", content=body, headers=FORM)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert response.status_code == 201
    assert peak < 6 * len(wasm)


@pytest.mark.parametrize(
    "content_type",
    [
        "multipart/form-data",
        "multipart/form-data; boundary=",
        'multipart/form-data; boundary=""',
        f"multipart/form-data; boundary={'x' * 5000}",
        "multipart/mixed; boundary=xx",
        "Multipart/Related; boundary=xx",
        "multipart/",
    ],
)
async def test_types_of_forms_that_are_refused(content_type: str) -> None:
    plugins = forgotten()
    body = part("module", WASM) + END
    async with SHARED.client() as client:
        headers = {"content-type": content_type}
        response = await client.put("/plugins/mine", content=body, headers=headers)
    assert error_of(response) == (400, "bad_request")
    assert not plugins.calls


@given(body=st.lists(st.sampled_from([part("module", WASM), END, b"--xx", b"\r\n", b"x"])))
@settings(deadline=None)
async def test_any_body_is_a_form_or_refused(body: list[bytes]) -> None:
    plugins = forgotten()
    async with SHARED.client() as client:
        response = await client.put("/plugins/mine", content=b"".join(body), headers=FORM)
    assert response.status_code in (201, 400)
    assert bool(plugins.calls) == (response.status_code == 201)


async def test_an_empty_body() -> None:
    plugins = forgotten()
    async with SHARED.client() as client:
        assert error_of(await client.put("/plugins/mine")) == (400, "bad_request")
    assert not plugins.calls


@pytest.mark.parametrize("form", [True, False])
async def test_how_large_a_module_may_be(form: bool) -> None:
    forgotten()
    async with SHARED.client() as client:

        async def put(size: int) -> httpx.Response:
            wasm = bytes(size)
            if form:
                return await client.put("/plugins/mine", files={"module": ("m", wasm)})
            return await client.put("/plugins/mine", content=wasm)

        assert (await put(MAX_MODULE_BYTES)).status_code == 201
        refused = await put(MAX_MODULE_BYTES + 1)
    assert error_of(refused) == (413, "request_body_too_large")
    assert f"{MAX_MODULE_BYTES:,}" in refused.json()["error"]["message"]


@pytest.mark.parametrize("form", [True, False])
async def test_a_component_may_be_larger(form: bool) -> None:
    """What it is shows in its first eight bytes."""
    plugins = forgotten()
    component = b"\0asm\x0d\0\x01\0"
    async with SHARED.client() as client:

        async def put(size: int) -> httpx.Response:
            wasm = component + bytes(size - len(component))
            if form:
                return await client.put("/plugins/mine", files={"module": ("m", wasm)})
            return await client.put("/plugins/mine", content=wasm)

        assert (await put(MAX_MODULE_BYTES + 1)).status_code == 201
        assert len(plugins.calls) == 1
        refused = await put(MAX_COMPONENT_BYTES + 1)
    assert error_of(refused) == (413, "request_body_too_large")
    assert f"{MAX_COMPONENT_BYTES:,}" in refused.json()["error"]["message"]


@pytest.mark.parametrize(
    "text",
    ["", "[]", "null", "1", '"{}"', "{", "{}{}", '{"a": NaN}', '{"a": Infinity}', "{'a': 1}", "{]"],
)
async def test_settings_that_are_no_json_object(text: str) -> None:
    plugins = forgotten()
    async with SHARED.client() as client:
        form = part("module", WASM) + part("settings", text.encode()) + END
        answers = [
            await client.put("/plugins/mine", content=WASM, params={"settings": text}),
            await client.put("/plugins/mine", content=form, headers=FORM),
        ]
    assert [error_of(answer) for answer in answers] == [(400, "bad_request")] * 2
    assert not plugins.calls


async def test_where_settings_are_not_json() -> None:
    text = '{"config": {"key": "secret",]}'
    async with SHARED.client() as client:
        response = await client.put("/plugins/mine", content=WASM, params={"settings": text})
    message = response.json()["error"]["message"]
    assert str(text.index("]") + 1) in message, "the column"
    assert "secret" not in message


@pytest.mark.parametrize(
    ("query", "form"), [("settings={}&settings={}", False), ("settings={}", True)]
)
async def test_settings_are_given_once(query: str, form: bool) -> None:
    plugins = forgotten()
    body = part("module", WASM) + part("settings", b"{}") + END if form else WASM
    async with SHARED.client() as client:
        headers = FORM if form else {}
        response = await client.put(f"/plugins/mine?{query}", content=body, headers=headers)
    assert error_of(response) == (400, "bad_request")
    assert not plugins.calls


@pytest.mark.parametrize("query", ["setting={}", "settings={}&name=b", "=", f"{'x' * 3000}=1"])
async def test_parameters_that_there_are_not(query: str) -> None:
    plugins = forgotten()
    async with SHARED.client() as client:
        response = await client.put(f"/plugins/mine?{query}", content=WASM)
    assert error_of(response) == (400, "bad_request")
    assert len(response.content) < 300
    assert not plugins.calls
