"""Guests of the table ABI, version 1, and what the tests of it share.

`table_guest()` composes a plugin from parts, as `guest()` does for JSON. Its memory is a heap that
only grows and never gives the same bytes twice: what is allocated is filled with 0xAA, and what is
freed with 0xDD, so that what was not written, or not in time, is seen. It notes what it was called
with, for `Hosted` to read.
"""

import functools
from collections.abc import Iterable, Mapping
from math import nan
from struct import Struct
from typing import Any

import wasmtime
from xxhash import xxh3_64_intdigest

from sgl_router.core.registry import WorkerRegistry, WorkerView
from sgl_router.core.request import CHARACTERS_PER_TOKEN, RequestView
from sgl_router.core.worker import Health, Worker
from sgl_router.wasm.abi.table_v1 import RECORD_BYTES, UNKNOWN_AGE, TableEncoder
from sgl_router.wasm.calls import Calls
from sgl_router.wasm.engine import make_engine
from sgl_router.wasm.table_driver import TableDriver, table_driver_text
from tests.wasm.guests import assemble, custom, request

PAGE = 65_536
HEAP_AT = 4096
WORKER = Struct("<2I3i3fQ3I12x")
REQUEST = Struct("<4Q7I4x")
AGE = 9  # which of a worker's fields `metrics_age_ms` is
NO_NEEDS: frozenset[str] = frozenset()

BUMP = """
  (local $at i32) (local $end i32)
  (local.set $at (global.get $heap))
  (local.set $end (i32.add (local.get $at) (i32.and (i32.add (local.get $size) (i32.const 15))
    (i32.const -16))))
  (block $roomy (loop $grow
    (br_if $roomy (i32.le_u (local.get $end) (i32.mul (memory.size) (i32.const 65536))))
    (if (i32.eq (memory.grow (i32.const 1)) (i32.const -1)) (then (return (i32.const 0))))
    (br $grow)))
  (global.set $heap (local.get $end))
  (global.set $allocs (i32.add (global.get $allocs) (i32.const 1)))
  (memory.fill (local.get $at) (i32.const 0xAA) (local.get $size))
  (local.get $at)"""
FREE = """
  (global.set $frees (i32.add (global.get $frees) (i32.const 1)))
  (memory.fill (local.get $ptr) (i32.const 0xDD) (local.get $size))"""


def table_guest(
    select: str = "(i32.const 0)",
    *,
    alloc: str = BUMP,
    dealloc: str = FREE,
    memory: str = '(memory (export "memory") 1)',
    extra: str = "",
    sections: Mapping[str, bytes] | None = None,
) -> bytes:
    """A table plugin; each keyword replaces a part.

    Bodies see `$table`, `$count` and `$request` (`select`), `$size` (`alloc`), `$ptr` and `$size`
    (`dealloc`). `extra` is fields of the module.
    """
    noted = "".join(
        f'(global ${name} (export "{name}") (mut i32) (i32.const 0))'
        for name in ("table", "count", "request", "allocs", "frees", "calls")
    )
    text = f"""(module
  {memory}
  {noted}
  (global $heap (mut i32) (i32.const {HEAP_AT}))
  {extra}
  (func (export "init"))
  (func (export "alloc") (param $size i32) (result i32) {alloc})
  (func (export "dealloc") (param $ptr i32) (param $size i32) {dealloc})
  (func (export "sgl_table_v1_select") (param $table i32) (param $count i32) (param $request i32)
    (result i32)
    (global.set $table (local.get $table))
    (global.set $count (local.get $count))
    (global.set $request (local.get $request))
    (global.set $calls (i32.add (global.get $calls) (i32.const 1)))
    {select}))"""
    return assemble(text) + b"".join(custom(name, c) for name, c in (sections or {}).items())


@functools.cache
def engine() -> wasmtime.Engine:
    return make_engine()


@functools.cache
def driver_module() -> wasmtime.Module:
    return wasmtime.Module(engine(), table_driver_text())


@functools.cache
def compiled(wasm: bytes) -> wasmtime.Module:
    return wasmtime.Module(engine(), wasm)


class Hosted:
    """A guest with its driver, in a store of its own.

    Attributes:
        driver: of the guest.
    """

    def __init__(
        self,
        wasm: bytes,
        config: bytes = b"{}",
        memory_bytes: int = 16 * PAGE,
        calls: Calls | None = None,
    ) -> None:
        self.store = wasmtime.Store(engine())
        self.store.set_epoch_deadline(1 << 40)
        self.store.set_limits(memory_size=memory_bytes, instances=2, tables=1, memories=2)
        guest = wasmtime.Instance(self.store, compiled(wasm), [])
        self.exports = guest.exports(self.store)
        self.driver = TableDriver(
            self.store, driver_module(), self.exports, calls or Calls(), config=config
        )

    def number(self, name: str) -> int:
        """What the guest has noted, or any global that it exports."""
        found = self.exports[name]
        assert isinstance(found, wasmtime.Global)
        return int(found.value(self.store)) & 0xFFFFFFFF

    def read(self, at: int, size: int) -> bytes:
        memory = self.exports["memory"]
        assert isinstance(memory, wasmtime.Memory)
        found = bytes(memory.read(self.store, at, at + size))
        assert len(found) == size, "all of it is in the guest's memory"
        return found

    def records(self) -> list[bytes]:
        """The table that the last decision was taken on, a record for each worker."""
        table, count = self.number("table"), self.number("count")
        data = self.read(table, count * RECORD_BYTES)
        return [data[at : at + RECORD_BYTES] for at in range(0, len(data), RECORD_BYTES)]

    def request(self) -> tuple[int, ...]:
        """The fields of the request that the last decision was taken for."""
        return REQUEST.unpack(self.read(self.number("request"), REQUEST.size))

    def text(self) -> bytes:
        asked = self.request()
        return self.read(asked[4], asked[5])

    def prefix_hashes(self) -> list[int]:
        asked = self.request()
        data = self.read(asked[9], 8 * asked[10])
        return [int.from_bytes(data[at : at + 8], "little") for at in range(0, len(data), 8)]

    def decide(
        self, encoder: TableEncoder, workers: WorkerView, request: RequestView
    ) -> int | None:
        return self.driver.select(encoder.encode(self.driver, workers, request))


def plain_encoder() -> TableEncoder:
    """Of a plugin that needs nothing and does not read the body."""
    return TableEncoder(NO_NEEDS, 32 * 1024, reads_body=False)


def pool(workers: Iterable[tuple[bool, int]]) -> WorkerView:
    """Of each worker, whether it is healthy and its load."""
    registry = WorkerRegistry()
    for port, (healthy, load) in enumerate(workers, start=1):
        worker = Worker(f"http://10.0.0.1:{port}", Health.UP if healthy else Health.DOWN)
        worker.load = load
        registry.add(worker)
    return registry.view()


def golden_choice(wasm: bytes, given: Mapping[str, Any]) -> int | None:
    """What a table plugin chooses, where a JSON plugin would be given this input."""
    workers = pool((worker["healthy"], worker["load"]) for worker in given["workers"])
    asked = request(entropy=given["entropy"], now_ms=given["now_ms"])
    return Hosted(wasm).decide(plain_encoder(), workers, asked)


def record_of(
    worker: Worker, healthy: bool, request: RequestView, needs: frozenset[str] = NO_NEEDS
) -> bytes:
    """What stands in the table for a worker, put together without any haste."""
    metrics = worker.metrics if "engine_metrics" in needs else None
    prefix = request.prefix if "prefix_match" in needs else None
    kv_usage = None if metrics is None else metrics.kv_usage
    return WORKER.pack(
        int(worker.id[:8], 16),
        1 if healthy else 0,
        worker.load,
        -1 if metrics is None else metrics.running,
        -1 if metrics is None else metrics.queued,
        nan if kv_usage is None else kv_usage,
        nan if worker.ttft_ms is None else worker.ttft_ms,
        worker.weight,
        xxh3_64_intdigest(worker.url.encode()),
        UNKNOWN_AGE if metrics is None else max(0, request.now_ms - metrics.at_ms),
        worker.pending_tokens if "pending_tokens" in needs else 0,
        0 if prefix is None else prefix.of(worker) // CHARACTERS_PER_TOKEN,
    )
