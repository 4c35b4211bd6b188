"""All uploads together: how much of them is taken, and when there is room again."""

import asyncio
import gc
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgl_router.admin.control import AdminSettings
from sgl_router.admin.upload_budget import MAX_UPLOADS_BYTES, UploadBudget
from sgl_router.errors import PluginRefused, RequestError
from sgl_router.wasm.module import MAX_COMPONENT_BYTES
from sgl_router.wasm.refusals import Reason
from sgl_router.wasm.status import PutResult
from tests.admin.plugin_control import FakePlugins
from tests.admin.support import ADMIN_KEY, Router, error_of
from tests.gateway.support import until

LIMIT = 1000
FORM = {"content-type": "multipart/form-data; boundary=xx"}


@given(st.lists(st.tuples(st.integers(0, 3), st.none() | st.integers(0, LIMIT + 100))))
def test_what_the_shares_have_and_what_is_left_is_the_limit(
    steps: list[tuple[int, int | None]],
) -> None:
    budget = UploadBudget(LIMIT)
    shares = [budget.share() for _ in range(4)]
    sizes = [0] * 4
    for which, size in steps:
        if size is None:
            shares[which].release()
            sizes[which] = 0
            continue
        fits = sum(sizes) - sizes[which] + size <= LIMIT or size <= sizes[which]
        try:
            shares[which].cover(size)
        except RequestError as error:
            assert not fits
            assert (error.status, error.code) == (503, "too_many_uploads")
            assert error.retry_after_secs
        else:
            assert fits
            sizes[which] = max(size, sizes[which])
        assert budget.left == LIMIT - sum(sizes)
    for share in shares:
        share.release()
    assert budget.left == LIMIT


def test_two_of_the_largest_fit() -> None:
    assert MAX_UPLOADS_BYTES > 2 * MAX_COMPONENT_BYTES


class Held(FakePlugins):
    """Loads a plugin when the test says so.

    Attributes:
        begun: set when one is to be loaded.
        open: set by the test.
    """

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.open = asyncio.Event(), asyncio.Event()

    async def put_plugin(self, name: str, wasm: bytes, settings: Mapping[str, Any]) -> PutResult:
        self.begun.set()
        await self.open.wait()
        return await super().put_plugin(name, wasm, settings)


class Uploads:
    """A router whose uploads may have `LIMIT` bytes together.

    Attributes:
        budget: what is left of them.
        plugins: what they are loaded into.
    """

    def __init__(self, client: httpx.AsyncClient, budget: UploadBudget, plugins: Held) -> None:
        self._client = client
        self.budget = budget
        self.plugins = plugins

    async def put(
        self, name: str, content: bytes | AsyncIterator[bytes], **headers: str
    ) -> httpx.Response:
        named = {key.replace("_", "-"): value for key, value in headers.items()}
        return await self._client.put(f"/plugins/{name}", content=content, headers=named)


@pytest.fixture
async def uploads(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Uploads]:
    budget = UploadBudget(LIMIT)
    monkeypatch.setattr("sgl_router.admin.plugins.UploadBudget", lambda: budget)
    router = Router()
    plugins = Held()
    router.control = replace(router.control, plugins=plugins)
    async with router.client() as client:
        yield Uploads(client, budget, plugins)


async def slowly(begun: asyncio.Event, go_on: asyncio.Event) -> AsyncIterator[bytes]:
    begun.set()
    yield b"\0asm"
    await go_on.wait()
    yield bytes(6)


async def test_a_length_that_is_declared_is_held_from_the_start(uploads: Uploads) -> None:
    uploads.plugins.open.set()
    begun, go_on = asyncio.Event(), asyncio.Event()
    body = slowly(begun, go_on)
    first = asyncio.create_task(uploads.put("one", body, content_length="900"))
    await begun.wait()
    refused = await uploads.put("two", bytes(200))
    assert error_of(refused) == (503, "too_many_uploads")
    assert int(refused.headers["retry-after"]) > 0
    message = refused.json()["error"]["message"]
    assert "900" in message
    assert "200" in message
    assert (await uploads.put("three", bytes(100))).status_code == 201
    go_on.set()
    assert (await first).status_code == 201
    assert uploads.budget.left == LIMIT
    assert (await uploads.put("two", bytes(200))).status_code == 201


async def test_what_is_refused_is_not_read(uploads: Uploads) -> None:
    begun = asyncio.Event()
    body = slowly(begun, asyncio.Event())
    refused = await uploads.put("one", body, content_length=str(LIMIT + 1))
    assert error_of(refused) == (503, "too_many_uploads")
    assert not begun.is_set()


@pytest.mark.parametrize("headers", [{}, {"content_type": FORM["content-type"]}])
async def test_without_a_length_what_has_come_counts(
    uploads: Uploads, headers: dict[str, str]
) -> None:
    sent = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal sent
        yield b'--xx\r\nContent-Disposition: form-data; name="module"\r\n\r\n'
        for _ in range(100):
            sent += 100
            yield bytes(100)

    refused = await uploads.put("one", body(), **headers)
    assert error_of(refused) == (503, "too_many_uploads")
    assert sent <= LIMIT + 100
    assert uploads.budget.left == LIMIT


@pytest.mark.parametrize(
    ("body", "headers", "failure", "status"),
    [
        (b"", {}, None, 400),
        (b"--xx", FORM, None, 400),
        (b"\0asm", {"content-type": "multipart/mixed"}, None, 400),
        (b"\0asm", {}, PluginRefused("one", [Reason("file_empty", "it is")]), 400),
        (b"\0asm", {}, RequestError(503, "too_many_changes", "16"), 503),
        (b"\0asm", {}, RuntimeError("a bug"), 500),
    ],
)
async def test_what_is_refused_leaves_nothing_taken(
    uploads: Uploads,
    body: bytes,
    headers: dict[str, str],
    failure: Exception | None,
    status: int,
) -> None:
    uploads.plugins.open.set()
    uploads.plugins.failure = failure
    assert (await uploads.put("one", body, **headers)).status_code == status
    assert uploads.budget.left == LIMIT


async def test_who_leaves_while_sending_leaves_nothing_taken(uploads: Uploads) -> None:
    begun = asyncio.Event()
    sending = asyncio.create_task(uploads.put("one", slowly(begun, asyncio.Event())))
    await begun.wait()
    assert uploads.budget.left < LIMIT
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    assert uploads.budget.left == LIMIT


@pytest.mark.parametrize("failure", [None, RequestError(503, "too_many_changes", "16")])
async def test_what_is_loaded_counts_although_the_client_has_gone(
    uploads: Uploads, failure: Exception | None, caplog: pytest.LogCaptureFixture
) -> None:
    loading = asyncio.create_task(uploads.put("one", bytes(900)))
    await uploads.plugins.begun.wait()
    loading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await loading
    assert error_of(await uploads.put("two", bytes(200))) == (503, "too_many_uploads")
    uploads.plugins.failure = failure
    uploads.plugins.open.set()
    await until(lambda: uploads.budget.left == LIMIT)
    assert (await uploads.put("two", bytes(200))).status_code == 201
    assert uploads.plugins.loaded.keys() == ({"two"} if failure else {"one", "two"})
    gc.collect()
    assert not caplog.records, "nobody is told, and that is no bug"


async def test_without_the_key_nothing_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    budget = UploadBudget(LIMIT)
    monkeypatch.setattr("sgl_router.admin.plugins.UploadBudget", lambda: budget)
    router = Router(settings=AdminSettings(admin_key=ADMIN_KEY.encode()))
    async with router.client() as client:
        refused = await client.put("/plugins/one", content=bytes(LIMIT + 1))
    assert error_of(refused) == (401, "unauthorized")
    assert budget.left == LIMIT
