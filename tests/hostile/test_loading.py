"""Modules and settings that are refused; each case is named by its row of the catalogue.

Rows: 7 what grows without end, 10 size, 12 what is no module, 13 imports, 14 exports and memory, 36
settings. Names are in `test_names.py`, and what takes long to compile in `test_bombs.py`.
"""

from typing import Any

import orjson
import pytest
import wasmtime

from sgl_router.errors import PluginRefused
from sgl_router.wasm.engine import make_engine
from sgl_router.wasm.manifest import SECTION
from sgl_router.wasm.module import MAX_MODULE_BYTES
from tests.hostile.modules import GOOD, HEADER, LONG, sized, turning
from tests.hostile.outcomes import HOSTILE, REPEATED, Memory, refused, stand
from tests.wasm.guests import ONE_PAGE, Bench, assemble, guest, leb128, wasi

HUNDRED_MB = 100 * 1024 * 1024
UNBOUNDED = '(memory (export "memory") 1 65536)'

# Grows what it may, and traps unless it was told -1 at last and everything is still there.
MEMORY_BOMB = """
  (loop $more (br_if $more (i32.ne (memory.grow (i32.const {pages})) (i32.const -1))))
  (if (i32.gt_u (memory.size) (i32.const 16)) (then (unreachable)))
  (i32.store (i32.sub (i32.mul (memory.size) (i32.const 65536)) (i32.const 4)) (i32.const 1))"""
TABLE_BOMB = """
  (loop $more
    (br_if $more (i32.ne (table.grow $t (ref.null func) (i32.const {})) (i32.const -1))))
  (if (i32.ne (table.size $t) (i32.const 1)) (then (unreachable)))"""


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize(
    "parts",
    [
        pytest.param(
            {"select_worker": MEMORY_BOMB.format(pages=1), "memory": UNBOUNDED},
            id="7-memory-page-by-page",
        ),
        pytest.param(
            {"select_worker": MEMORY_BOMB.format(pages=65535), "memory": UNBOUNDED},
            id="7-memory-at-once",
        ),
        pytest.param(
            {"select_worker": MEMORY_BOMB.format(pages=-1), "memory": UNBOUNDED},
            id="7-memory-beyond-all",
        ),
        pytest.param(
            {"alloc": MEMORY_BOMB.format(pages=1), "memory": UNBOUNDED}, id="7-memory-in-alloc"
        ),
        pytest.param(
            {"select_worker": TABLE_BOMB.format(1), "extra": "(table $t 1 funcref)"},
            id="7-table-one-by-one",
        ),
        pytest.param(
            {"select_worker": TABLE_BOMB.format(-1), "extra": "(table $t 1 funcref)"},
            id="7-table-beyond-all",
        ),
    ],
)
async def test_what_grows_stops_growing(bench: Bench, parts: dict[str, str]) -> None:
    """The guest is told -1, and its decision is as good as any."""
    seat = await stand(bench, turning(**parts))
    before = Memory.now()
    for _ in range(REPEATED):
        seat.decides(LONG)
        seat.decides()
        seat.spares_its_neighbour()
    before.returned()


@pytest.mark.parametrize("bomb", [pytest.param(MEMORY_BOMB.format(pages=1), id="7-memory-in-init")])
async def test_what_grows_at_its_start(bench: Bench, bomb: str) -> None:
    seat = await stand(bench, guest(GOOD, init=bomb, memory=UNBOUNDED))
    seat.decides()
    seat.spares_its_neighbour()


@pytest.mark.parametrize(
    ("parts", "found"),
    [
        pytest.param(
            {"extra": "(table 10000000 funcref)"}, "max_memory_bytes", id="7-table-of-10^7"
        ),
        pytest.param({"extra": "(table 1 funcref) " * 100}, "100 tables", id="7-100-tables"),
        pytest.param({"extra": "(memory 1) " * 99}, "100 memories", id="7-100-memories"),
        pytest.param(
            {"memory": '(memory (export "memory") 65536)'},
            "max_memory_bytes",
            id="7-memory-of-4-GB",
        ),
    ],
)
async def test_more_than_allowed_from_the_start(
    bench: Bench, parts: dict[str, Any], found: str
) -> None:
    await refused(bench, guest(**parts), found)


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("count", [pytest.param(9_000, id="7-9,000-globals")])
async def test_many_globals(bench: Bench, count: int) -> None:
    """They are no part of memory, but of what an instance is: they go with it."""
    wasm = turning(select_worker="(unreachable)", extra="(global (mut i64) (i64.const 0)) " * count)
    (await stand(bench, wasm)).fails_alone("trap", "unreachable")


@pytest.mark.parametrize(
    "wasm",
    [
        pytest.param(b"", id="12-the-name-stays-free"),
        pytest.param(guest(init="(unreachable)"), id="9-the-name-stays-free"),
    ],
)
async def test_a_name_is_free_after_a_refusal(bench: Bench, wasm: bytes) -> None:
    """At once: also where whoever asked still holds the refusal."""
    for _ in range(3):
        with pytest.raises(PluginRefused):
            await bench.policy(wasm, HOSTILE)
        (await stand(bench, guest())).decides()
        assert bench.factory.unload_wasm_plugin(HOSTILE)


async def test_more_globals_than_any_policy_has(bench: Bench) -> None:
    """id: 7. Each instance would take megabytes for them, on top of its memory."""
    wasm = guest(extra="(global (mut i64) (i64.const 0)) " * 10_001)
    await refused(bench, wasm, "globals", "10,000")


def claims(number: int) -> bytes:
    """A module whose one section is as long as a file of 100 MB."""
    head = HEADER + bytes([number])
    return head + leb128(HUNDRED_MB - len(head) - 4)


@pytest.mark.parametrize(
    "wasm",
    [
        pytest.param(claims(11), id="10-data-of-100-MB"),
        pytest.param(claims(0), id="10-custom-section-of-100-MB"),
        pytest.param(b"", id="10-zeros-of-100-MB"),
        pytest.param(guest(), id="10-sound-but-for-100-MB-after-it"),
    ],
)
async def test_a_file_too_large(bench: Bench, wasm: bytes) -> None:
    await refused(bench, wasm, f"{MAX_MODULE_BYTES:,}", size=HUNDRED_MB)


@pytest.mark.parametrize(
    ("wasm", "found"),
    [
        pytest.param(claims(11), "malformed", id="10-data-that-is-not-there"),
        pytest.param(guest(extra='(data (i32.const 65535) "xx")'), "", id="10-data-out-of-bounds"),
        pytest.param(guest(extra='(data (i32.const -1) "x")'), "", id="10-data-at-minus-one"),
        pytest.param(HEADER + sized(11, leb128(2**32 - 1)), "malformed", id="10-2^32-segments"),
        pytest.param(HEADER + sized(3, leb128(2**32 - 1)), "malformed", id="10-2^32-functions"),
        pytest.param(guest() + sized(0, leb128(2**32 - 1)), "malformed", id="10-name-of-4-GB"),
        pytest.param(HEADER + b"\x01\xff\xff\xff\xff\xff\xff", "malformed", id="10-endless-number"),
    ],
)
async def test_what_is_not_where_it_should_be(bench: Bench, wasm: bytes, found: str) -> None:
    await refused(bench, wasm, found)


def artifact() -> bytes:
    """What wasmtime makes of a sound module for this very machine and engine."""
    return bytes(wasmtime.Module(make_engine(), guest()).serialize())


@pytest.mark.parametrize(
    ("wasm", "found"),
    [
        pytest.param(b'(module (func (export "init")))', "text", id="12-text"),
        pytest.param(b"\n  (module)", "text", id="12-text-after-white-space"),
        pytest.param(b"\0asm\x0d\0\x01\0", "component", id="12-component"),
        pytest.param(b"", "empty", id="12-empty"),
        pytest.param(HEADER, "select_worker", id="12-header-alone"),
        pytest.param(HEADER[:4], "malformed", id="12-half-a-header"),
        pytest.param(b"\0asm\x02\0\0\0", "malformed", id="12-version-2"),
        pytest.param(artifact(), "precompiled", id="12-precompiled"),
        pytest.param(b"\x7fELF\x02\x01\x01" + bytes(57), "ELF", id="12-elf"),
        pytest.param(b"<!DOCTYPE html><title>404</title>", "HTML", id="12-html"),
        pytest.param(b"#!/bin/sh\nexit 0\n", "script", id="12-script"),
        pytest.param(b"\x1f\x8b\x08\0" + bytes(60), "", id="12-gzip"),
        pytest.param(b"\x1b[2J\xff\xfe\0\0", "\\x1b", id="12-escapes"),
    ],
)
async def test_what_is_no_module(bench: Bench, wasm: bytes, found: str) -> None:
    await refused(bench, wasm, found)


IMPORTS = [
    pytest.param('(import "env" "now" (func (result i64)))', ("env.now", "function"), "13-unknown"),
    pytest.param('(import "env" "m" (memory 1))', ("env.m", "memory"), "13-memory"),
    pytest.param('(import "env" "g" (global i32))', ("env.g", "global"), "13-global"),
    pytest.param('(import "env" "t" (table 1 funcref))', ("env.t", "table"), "13-table"),
    pytest.param(wasi("random_get", "i64"), ("random_get", "(i64)"), "13-wrong-type"),
    pytest.param(
        '(import "wasi_snapshot_preview1" "poll_oneoff" (global i32))',
        ("poll_oneoff", "global"),
        "13-wrong-kind",
    ),
    pytest.param(wasi("fd_write", "i32 i32 i32 i32"), ("wasi:stdio",), "13-not-granted"),
    pytest.param(wasi("sock_send", "i32 i32 i32 i32 i32"), ("sock_send",), "13-socket"),
]
"""The import, what is said of it, and the case's name."""

GRANTED = ["wasi:random", "wasi:clocks"]


@pytest.mark.parametrize(
    ("field", "found"),
    [pytest.param(*row.values[:2], id=str(row.values[2])) for row in IMPORTS],
)
async def test_an_import(bench: Bench, field: str, found: tuple[str, ...]) -> None:
    await refused(bench, guest(imports=field), *found, allowed_syscalls=GRANTED)


@pytest.mark.parametrize("rows", [pytest.param(IMPORTS, id="13-all-in-one-report")])
async def test_all_imports_are_in_one_report(bench: Bench, rows: list[Any]) -> None:
    fields = " ".join(row.values[0] for row in rows)
    found = [part for row in rows for part in row.values[1]]
    await refused(bench, guest(imports=fields), *found, allowed_syscalls=GRANTED)


@pytest.mark.parametrize(
    "count", [pytest.param(1_000, id="13-1,000"), pytest.param(1_001, id="13-1,001")]
)
async def test_a_thousand_imports(bench: Bench, count: int) -> None:
    fields = " ".join(f'(import "env" "f{number}" (func))' for number in range(count))
    await refused(bench, guest(imports=fields), "import")


SOUND = {
    "init": '(func (export "init"))',
    "alloc": '(func (export "alloc") (param i32) (result i32) (i32.const 8))',
    "dealloc": '(func (export "dealloc") (param i32 i32))',
    "select_worker": '(func (export "select_worker") (param i32 i32) (result i32) (i32.const 8))',
    "memory": ONE_PAGE,
}


def exporting(**replaced: str) -> bytes:
    """A module of the right exports, but for those that are replaced."""
    return assemble(f"(module {' '.join((SOUND | replaced).values())})")


WRONG = {
    "init": '(func (export "init") (param i32))',
    "alloc": '(func (export "alloc") (param i64) (result i32) (i32.const 8))',
    "dealloc": '(func (export "dealloc") (param i32 i32) (result i32) (i32.const 8))',
    "select_worker": '(global (export "select_worker") i32 (i32.const 0))',
}


@pytest.mark.parametrize(
    ("replaced", "found"),
    [
        *[pytest.param({n: ""}, (n, "export"), id=f"14-no-{n}") for n in SOUND],
        *[pytest.param({n: f}, (n, "expected"), id=f"14-wrong-{n}") for n, f in WRONG.items()],
        pytest.param(
            {"memory": '(global (export "memory") i32 (i32.const 0))'},
            ("memory",),
            id="14-memory-is-a-global",
        ),
        pytest.param({"memory": "(memory 1)"}, ("memory",), id="14-memory-not-exported"),
        pytest.param(
            {"memory": '(memory (export "memory") 1 2 shared)'}, ("shared",), id="14-memory-shared"
        ),
        pytest.param(
            {"memory": '(memory (export "memory") i64 1)'}, ("64-bit",), id="14-memory-64-bit"
        ),
        pytest.param({"memory": f"{ONE_PAGE} (memory 1)"}, ("2 memories",), id="14-two-memories"),
        pytest.param({"memory": '(memory (export "memory") 0)'}, ("memory",), id="14-zero-pages"),
        pytest.param(
            {"memory": '(memory (export "memory") 17)'},
            ("1,114,112", "1,048,576", "max_memory_bytes", "-zstack-size"),
            id="14-too-many-pages",
        ),
    ],
)
async def test_an_export(bench: Bench, replaced: dict[str, str], found: tuple[str, ...]) -> None:
    await refused(bench, exporting(**replaced), *found)


@pytest.mark.parametrize("field", [pytest.param('(import "env" "m" (memory 1))', id="14-imported")])
async def test_an_imported_memory(bench: Bench, field: str) -> None:
    wasm = assemble(f'(module {field} (export "memory" (memory 0)))')
    await refused(bench, wasm, "env.m", "memory")


@pytest.mark.parametrize(
    "memory", [pytest.param('(memory (export "memory") i64 17)', id="14-all-in-one-report")]
)
async def test_everything_wrong_is_in_one_report(bench: Bench, memory: str) -> None:
    wasm = exporting(**WRONG, memory=memory)
    refusal = await refused(bench, wasm, *WRONG, "64-bit")
    assert len(refusal.reasons) >= len(WRONG) + 1


SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "weights": {"type": "object", "additionalProperties": {"type": "number", "minimum": 0}}
    },
    "additionalProperties": False,
}


def nested(levels: int) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for _ in range(levels):
        made = {"a": made}
    return made


def itself() -> dict[str, Any]:
    made: dict[str, Any] = {}
    made["weights"] = made
    return made


@pytest.mark.parametrize(
    ("config", "found"),
    [
        pytest.param({"a": "x" * 10_000_000}, "65,536", id="36-of-10-MB"),
        pytest.param([1], "list", id="36-list"),
        pytest.param(None, "NoneType", id="36-null"),
        pytest.param("{}", "str", id="36-string"),
        pytest.param({1: 2}, "not JSON", id="36-keys-that-are-numbers"),
        pytest.param({"a": {1}}, "not JSON", id="36-set"),
        pytest.param({"a": b"x"}, "not JSON", id="36-bytes"),
        pytest.param({"a": 2**70}, "not JSON", id="36-integer-of-70-bits"),
        pytest.param({"a": "\ud800"}, "not JSON", id="36-lone-surrogate"),
        pytest.param(nested(2_000), "not JSON", id="36-2,000-levels"),
        pytest.param(itself(), "not JSON", id="36-holds-itself"),
        pytest.param({"weights": {"http://a": -1}}, "weights", id="36-schema-range"),
        pytest.param({"weights": [1]}, "config.weights", id="36-schema-type"),
        pytest.param({"\x1b[31m\u202e": 1}, "\\x1b[31m\\u202e", id="36-schema-escapes"),
        pytest.param({"k" * 50_000: 1}, "config", id="36-schema-key-of-50-KB"),
    ],
)
async def test_a_config(bench: Bench, config: Any, found: str) -> None:
    wasm = guest(sections={SECTION: orjson.dumps({"config_schema": SCHEMA})})
    await refused(bench, wasm, "config", found, config=config)
