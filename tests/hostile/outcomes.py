"""The standard outcome of a hostile plugin: what its failure costs, and what it must not.

At load it is refused in words, and whatever served before goes on serving. At a decision the
request is served by the fallback policy, the failure has its kind and is counted, the instance
is thrown away, the next decision is sound again, other plugins do not notice, and memory returns.
"""

import gc
import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sgl_router.core.decision import Decision
from sgl_router.core.request import RequestView
from sgl_router.core.worker import Worker
from sgl_router.errors import DecisionError, PluginRefused
from sgl_router.policies import WasmPolicyConfig
from sgl_router.wasm.config import MAX_INLINE_BUDGET_MS
from sgl_router.wasm.policy import WasmPolicy
from tests.core import dispatching
from tests.hostile import inside
from tests.hostile.modules import LONG, SHORT
from tests.wasm.guests import Bench, guest

HOSTILE, NEIGHBOUR = "hostile", "neighbour"
BY_NEIGHBOUR, BY_FALLBACK = 1, 2
CUT = "…"
"""Marks where a text has been cut; all else that is told of a guest is ASCII."""

MAX_REFUSAL_CHARACTERS = 8_000
REPEATED = 5
"""How often a case is repeated to see memory return. Few: in a row with sound decisions, so many
failures must not yet switch the plugin off."""

LEAKED_ADDRESSES = 4 << 30
"""An instance that is not freed keeps this much of the address space at least: its memory's
reservation (wasmtime's `memory_reservation` on 64 bits)."""

LEAKED_BYTES = 16 << 20


@dataclass(frozen=True)
class Memory:
    """What this process has, in bytes."""

    addresses: int
    resident: int

    @classmethod
    def now(cls) -> "Memory":
        gc.collect()
        pages = Path("/proc/self/statm").read_text("ascii").split()
        return cls(int(pages[0]) * 4096, int(pages[1]) * 4096)

    def returned(self) -> None:
        """Nothing has been kept since."""
        after = Memory.now()
        assert after.addresses - self.addresses < LEAKED_ADDRESSES
        assert after.resident - self.resident < LEAKED_BYTES


class Stand:
    """A router with three workers whose policy is a plugin that turns, and another plugin in it.

    The plugin's sound decisions go to the first worker, the other plugin's to the second, and the
    fallback's to the third. (At load a plugin is tried out on two.)
    """

    def __init__(self, plugin: WasmPolicy, neighbour: WasmPolicy) -> None:
        fallback = dispatching.Scripted("fallback", BY_FALLBACK)
        self.plugin = plugin
        self.router = dispatching.Bench(plugin, fallback, workers=3)
        self.beside = dispatching.Bench(neighbour, fallback, workers=3)

    def dispatch(self, body: bytes, excluded: frozenset[Worker] = frozenset()) -> Decision:
        """One decision from beginning to end; no load is left counted."""
        request = RequestView("id", "/v1/completions", body)
        request.excluded = excluded
        decision = self.router.dispatcher.dispatch(request)
        assert sum(self.router.loads()) == 1
        self.router.complete(decision)
        assert sum(self.router.loads()) == 0
        return decision

    def index(self, decision: Decision) -> int:
        return self.router.workers.index(decision.worker)

    def decides(self, body: bytes = SHORT, *, by: int = 0) -> None:
        """The plugin itself decides, and well."""
        decision = self.dispatch(body)
        assert decision.failure is None
        assert decision.policy is self.plugin
        assert self.index(decision) == by

    def falls_back(
        self, kind: str, body: bytes = LONG, excluded: frozenset[Worker] = frozenset()
    ) -> DecisionError:
        """A decision that the plugin fails: the request is served, and nobody else notices."""
        counted = inside.failures(self.plugin).get(kind, 0)
        decision = self.dispatch(body, excluded)
        assert self.index(decision) == BY_FALLBACK
        assert decision.policy.name == "fallback"
        failure = decision.failure
        assert failure is not None
        assert (failure.policy, failure.kind) == (self.plugin.name, kind)
        assert failure.detail.replace(CUT, "").isascii()
        assert failure.detail.isprintable()
        assert inside.failures(self.plugin)[kind] == counted + 1
        self.spares_its_neighbour()
        return failure

    def spares_its_neighbour(self) -> None:
        """The other plugin decides as ever."""
        decision = self.beside.dispatch(SHORT)
        self.beside.complete(decision)
        assert decision.failure is None
        assert decision.worker is self.beside.workers[BY_NEIGHBOUR]

    def fails_alone(
        self, kind: str, named: str = "", body: bytes = LONG, *, thrown_away: bool = True
    ) -> None:
        """The whole standard outcome of a failed decision; `named` stands in what is told of it."""
        self.decides()
        kept = inside.state(self.plugin)
        alive = inside.living(self.plugin)
        failure = self.falls_back(kind, body)
        assert named in failure.detail
        if thrown_away:
            assert [what() for what in alive] == [None, None]
        assert inside.state(self.plugin) == kept
        self.decides()
        before = Memory.now()
        for _ in range(REPEATED):
            self.falls_back(kind, body)
            self.decides()
        before.returned()


async def stand(bench: Bench, wasm: bytes, **settings: Any) -> Stand:
    """A stand with a plugin of this module, whose decisions are all taken on the event loop."""
    limit_ms = settings.get("max_execution_time_ms", MAX_INLINE_BUDGET_MS)
    settings.setdefault("inline_budget_ms", min(limit_ms, MAX_INLINE_BUDGET_MS))
    neighbour = await neighbour_in(bench)
    return Stand(await bench.policy(wasm, HOSTILE, **settings), neighbour)


async def refused(
    bench: Bench, wasm: bytes, *named: str, size: int | None = None, **settings: Any
) -> PluginRefused:
    """A plugin that is refused: in words, which hold each of `named`, and at nobody's cost.

    Args:
        size: what the module's file is made to have, in bytes, without writing them.
    """
    neighbour = await neighbour_in(bench)
    config = bench.config(wasm, HOSTILE, **settings)
    if size is not None:
        os.truncate(config.module_path, size)
    before = Memory.now()
    refusal = await _refusal(bench, config)
    _says(refusal, named)
    before.returned()
    assert bench.factory.list_wasm_plugins() == [NEIGHBOUR]
    assert bench.factory.create_by_name(HOSTILE) is None
    Stand(neighbour, neighbour).spares_its_neighbour()
    return refusal


async def _refusal(bench: Bench, config: WasmPolicyConfig) -> PluginRefused:
    """Why a plugin is not loaded, without the frames that the error has passed through."""
    try:
        await bench.factory.load_wasm_plugin(config)
    except PluginRefused as error:
        error.__cause__ = error.__context__ = None
        return error.with_traceback(None)
    raise AssertionError("it was loaded")


def _says(refusal: PluginRefused, named: Collection[str]) -> None:
    text = str(refusal)
    assert refusal.plugin == HOSTILE
    assert HOSTILE in text
    assert text.isprintable()
    assert len(text) < MAX_REFUSAL_CHARACTERS
    for part in named:
        assert part in text


async def neighbour_in(bench: Bench) -> WasmPolicy:
    """The other plugin, which is loaded once, before the hostile one, and decides well."""
    found = bench.factory.create_by_name(NEIGHBOUR)
    if isinstance(found, WasmPolicy):
        return found
    return await bench.policy(guest(f'{{"selected_worker": {BY_NEIGHBOUR}}}'), NEIGHBOUR)
