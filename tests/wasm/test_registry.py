"""Builds that take turns: who waits for the compiler of components holds nobody else up."""

import asyncio
import gc
import threading
from collections.abc import AsyncIterator

import pytest
import wasmtime
from wasmtime.component import Component

from sgl_router.errors import PluginRefused
from sgl_router.wasm.component import ComponentRuntime
from sgl_router.wasm.policy import WasmPolicy
from tests.wasm.component_guests import component
from tests.wasm.guests import Bench, guest

MANY = 10
"""More than there are threads."""


class SlowCompiler:
    """Compiles components when the test says so.

    Attributes:
        busy: set when one is compiled.
        open: set by the test; the one that is compiled goes on.
        compiled: how many were begun.
        most: of them at the same time.
        fails: whether it says that the component is not valid.
    """

    fails = False

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.busy = asyncio.Event()
        self.open = threading.Event()
        self.compiled = self.most = 0
        self._now = 0
        self._loop = asyncio.get_running_loop()
        self._compile = ComponentRuntime.compile
        self._lock = threading.Lock()
        slow = self

        def held(runtime: ComponentRuntime, wasm: bytes, digest: str) -> Component:
            return slow._held(runtime, wasm, digest)

        patch.setattr(ComponentRuntime, "compile", held)

    def _held(self, runtime: ComponentRuntime, wasm: bytes, digest: str) -> Component:
        with self._lock:
            self.compiled += 1
            self._now += 1
            self.most = max(self.most, self._now)
        self._loop.call_soon_threadsafe(self.busy.set)
        try:
            assert self.open.wait(60)
            if self.fails:
                raise wasmtime.WasmtimeError("no")
            return self._compile(runtime, wasm, digest)
        finally:
            with self._lock:
                self._now -= 1


@pytest.fixture
async def slow(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[SlowCompiler]:
    compiler = SlowCompiler(monkeypatch)
    yield compiler
    compiler.open.set()


def loads(bench: Bench, wasm: bytes) -> list[asyncio.Task[None]]:
    """As many loads of it, under names of their own."""
    configs = [bench.config(wasm, f"c{number}") for number in range(MANY)]
    return [asyncio.create_task(bench.factory.load_wasm_plugin(config)) for config in configs]


async def test_core_modules_do_not_wait_for_components(bench: Bench, slow: SlowCompiler) -> None:
    waiting = loads(bench, component())
    await slow.busy.wait()
    await asyncio.wait_for(bench.policy(guest(), "core"), 60)
    assert await asyncio.wait_for(asyncio.to_thread(int, "1"), 60) == 1, "there are threads left"
    assert not any(task.done() for task in waiting)
    assert bench.factory.list_wasm_plugins() == ["core"]
    slow.open.set()
    await asyncio.gather(*waiting)
    assert (slow.compiled, slow.most) == (MANY, 1)
    assert len(bench.factory.list_wasm_plugins()) == MANY + 1


@pytest.mark.parametrize("fails", [False, True])
async def test_who_gives_up_while_waiting_leaves_his_turn_to_the_next(
    bench: Bench, slow: SlowCompiler, fails: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """The one that is compiled when its load is given up keeps its turn until it has ended."""
    waiting = loads(bench, component())
    await slow.busy.wait()
    for task in waiting:
        task.cancel()
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert all(isinstance(result, asyncio.CancelledError) for result in results)
    after = asyncio.create_task(bench.policy(component(), "after"))
    await asyncio.wait_for(bench.policy(guest(), "core"), 60)  # as far as it comes by itself
    assert slow.compiled == 1
    slow.fails = fails
    slow.open.set()
    (result,) = await asyncio.gather(after, return_exceptions=True)
    assert isinstance(result, PluginRefused if fails else WasmPolicy)
    assert (slow.compiled, slow.most) == (2, 1)
    assert sorted(bench.factory.list_wasm_plugins()) == ["after", "core"][fails:]
    gc.collect()
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_what_fails_gives_its_turn_back(bench: Bench, slow: SlowCompiler) -> None:
    slow.open.set()
    slow.fails = True
    for wasm in component(), b"nothing":
        results = await asyncio.gather(*loads(bench, wasm), return_exceptions=True)
        assert all(isinstance(result, PluginRefused) for result in results)
    slow.fails = False
    await asyncio.gather(*loads(bench, component()))
    assert len(bench.factory.list_wasm_plugins()) == MANY
