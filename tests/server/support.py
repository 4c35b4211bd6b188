"""A router with plugins, asked through its control plane; each engine answers its own number."""

import asyncio
import gc
import threading
import weakref
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import orjson
import pytest

from sgl_router.admin.document import DocumentedApp
from sgl_router.policies import factory
from sgl_router.server import RouterServer, plugin_manager
from sgl_router.server.watch import FileWatch
from sgl_router.wasm.policy import WasmPolicy
from sgl_router.wasm.runtime import RuntimeOptions
from tests.gateway.support import (
    Listening,
    ScriptedEngine,
    answering,
    connected,
    respond,
    running,
    until,
)
from tests.server.watching import QUICK
from tests.wasm.guests import guest

JSON = b"Content-Type: application/json\r\n"
PATIENT = {"max_execution_time_ms": 5_000, "inline_budget_ms": 100}
"""Settings of plugins that do their work, for machines under load."""

Answer = tuple[int, Any]
"""A status, and what its body says."""


def choosing(index: int, **parts: Any) -> bytes:
    """A plugin that chooses the worker of this index, whatever it is asked."""
    return guest(f'{{"selected_worker": {index}}}', **parts)


@asynccontextmanager
async def engines(count: int = 2) -> AsyncIterator[list[str]]:
    """The URLs of engines of which each answers its index."""
    async with AsyncExitStack() as stack:
        yield [
            (await stack.enter_async_context(ScriptedEngine(answering(respond(b"%d" % i))))).url
            for i in range(count)
        ]


@asynccontextmanager
async def plugged(*urls: str, store: Path | str = "none", **settings: Any) -> AsyncIterator["Desk"]:
    """A router that compiles in this process and notices a changed file soon."""
    options = partial(RuntimeOptions, in_child=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(factory, "RuntimeOptions", options)
        patch.setattr(plugin_manager, "FileWatch", _Watch)
        patch.setattr(DocumentedApp, "openapi", lambda _self: {})  # takes longest, nobody asks
        async with running(*urls, plugin_store=str(store), **settings) as server:
            yield Desk(server, patch)


async def ask(
    router: Listening, method: str, path: str, body: object = None, wasm: bytes | None = None
) -> Answer:
    """One request to the control plane, on a connection of its own."""
    async with connected(router) as client:
        sent = wasm if wasm is not None else b"" if body is None else orjson.dumps(body)
        extra = JSON if wasm is None and sent else b""
        answer = await client.ask(method.encode(), path.encode(), sent, extra)
    return answer.status, orjson.loads(answer.body)


async def placed(router: Listening, body: bytes = b"{}") -> int:
    """Which engine a request comes to; it must be served."""
    async with connected(router) as client:
        answer = await client.post(body=body)
    assert answer.status == 200, answer
    return int(answer.body)


class _Watch(FileWatch):
    """A quick one, which counts how often it has looked at the files."""

    def __init__(self, *told: Any) -> None:
        super().__init__(*told, look_secs=0.05, **QUICK)
        self.looks = 0

    async def _look(self) -> None:
        await super()._look()
        self.looks += 1

    @property
    def rests(self) -> bool:
        """Whether nothing is being read or told."""
        return all(file.task is None for file in self._files.values())


class Desk:
    """Asks a router in this process.

    Attributes:
        server: the router.
    """

    def __init__(self, server: RouterServer, patch: pytest.MonkeyPatch) -> None:
        self.server = server
        self.port = server.port
        self._config = server._config
        self._built = 0
        self._versions: list[weakref.ref[Any]] = []
        plugins = server.factory.plugins
        self._build = plugins.build
        patch.setattr(plugins, "build", self._count)

    async def ask(self, method: str, path: str, body: object = None) -> Answer:
        return await ask(self, method, path, body)

    async def put(self, name: str, wasm: bytes, settings: Mapping[str, Any] = PATIENT) -> Answer:
        query = f"?settings={_quoted(settings)}" if settings else ""
        return await ask(self, "PUT", f"/plugins/{name}{query}", wasm=wasm)

    async def use(self, name: str) -> None:
        status, said = await self.ask("PUT", "/policy", {"policy": name})
        assert status == 200, said

    async def shown(self, name: str) -> Any:
        """The status of a plugin that is loaded."""
        status, said = await self.ask("GET", f"/plugins/{name}")
        assert status == 200, said
        return said

    async def shadow(self) -> Any:
        """The report, or None."""
        status, said = await self.ask("GET", "/shadow")
        assert status == 200, said
        return said["shadow"]

    async def placed(self, body: bytes = b"{}") -> int:
        return await placed(self, body)

    @property
    def tried(self) -> int:
        """How many modules have been looked into."""
        return self._built

    @property
    def alive(self) -> int:
        """How many of the versions that were made since the start are still there."""
        gc.collect()
        return sum(version() is not None for version in self._versions)

    async def _count(self, *arguments: Any) -> Any:
        self._built += 1
        version = await self._build(*arguments)
        self._versions.append(weakref.ref(version))
        return version

    @staticmethod
    def digest(wasm: bytes) -> str:
        return sha256(wasm).hexdigest()

    async def rejected(self, name: str, body: bytes) -> None:
        """Have the version that decides fail on such requests until it is rolled back."""
        for _ in range(10):
            if self.policy(name).rejected is not None:
                return
            await self.placed(body)
        raise AssertionError(await self.shown(name))

    def policy(self, name: str) -> WasmPolicy:
        policy = self.server.factory.create_by_name(name)
        assert isinstance(policy, WasmPolicy), name
        return policy

    async def looked(self, times: int = 3) -> None:
        """Wait until the files have been looked at so often, and nothing has come of it."""
        watch = self.server.plugins._watch
        assert isinstance(watch, _Watch)
        wanted = watch.looks + times
        await until(lambda: watch.looks >= wanted and watch.rests, lambda: watch.looks)

    async def stale(self, name: str, said: str) -> None:
        """Wait until a plugin's status says so of its file; "": that all is well."""
        policy = self.policy(name)
        await until(
            lambda: (
                said in policy.stale if said and policy.stale else policy.stale == (said or None)
            ),
            lambda: policy.stale,
        )

    async def reload(self, **settings: Any) -> None:
        """What SIGHUP does, with settings that have changed. Raises RouterError."""
        self._config = self._config.model_copy(update=settings)
        await self.server.reload(self._config)

    async def swapped(self, name: str, times: int) -> None:
        """Wait until another version has taken over so often, since the router has started."""
        policy = self.policy(name)
        await until(lambda: policy.swaps >= times, lambda: (policy.swaps, policy.stale))
        assert policy.swaps == times


def _quoted(settings: Mapping[str, Any]) -> str:
    return "".join(f"%{byte:02X}" for byte in orjson.dumps(dict(settings)))


class Traffic:
    """Requests one after the other, each of which must be served.

    Attributes:
        engines: which engine has answered each.
    """

    def __init__(self) -> None:
        self.engines: list[int] = []

    async def run(self, router: Listening) -> None:
        async with connected(router) as client:
            while True:
                answer = await client.post()
                assert answer.status == 200, answer
                self.engines.append(int(answer.body))

    async def more(self, count: int = 3) -> None:
        """Wait until so many more have been served."""
        wanted = len(self.engines) + count
        await until(lambda: len(self.engines) >= wanted, lambda: len(self.engines))


@contextmanager
def held(policy: WasmPolicy) -> Iterator[threading.Event]:
    """What is asked of the version that decides waits in its lane until the event is set."""
    policy.keep_aside(True)
    go = threading.Event()
    policy.current._lane.submit(lambda: go.wait, lambda _result: None, 60)
    try:
        yield go
    finally:
        go.set()


@asynccontextmanager
async def traffic(router: Listening) -> AsyncIterator[Traffic]:
    """Requests, as long as the context lasts; at its end all of them must have been served."""
    sent = Traffic()
    running = asyncio.ensure_future(sent.run(router))
    try:
        await sent.more(1)
        yield sent
        await sent.more()
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running
