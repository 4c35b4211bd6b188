"""WASI as guests see it: a function of the decision's input, and checked against their memory."""

import logging
import struct
from typing import Any

import pytest

from sgl_router.errors import DecisionError, PluginRefused
from sgl_router.wasm.grants import GROUPS
from sgl_router.wasm.instance import Instance
from sgl_router.wasm.wasi import MAX_RANDOM_BYTES
from sgl_router.wasm.wasi_output import MAX_OUTPUT_BYTES
from tests.wasm.guests import LOOP, ONE_PAGE, Bench, guest, text_at, wasi

GROUPS_BUT_FILES = [group for group in GROUPS if group != "wasi:filesystem"]
TYPES = {
    "clock_time_get": "i32 i64 i32",
    "clock_res_get": "i32 i32",
    "poll_oneoff": "i32 i32 i32 i32",
    "sched_yield": "",
    "random_get": "i32 i32",
    "fd_write": "i32 i32 i32 i32",
    "fd_read": "i32 i32 i32 i32",
    "fd_close": "i32",
    "fd_seek": "i32 i64 i32 i32",
    "fd_fdstat_get": "i32 i32",
    "fd_fdstat_set_flags": "i32 i32",
    "fd_prestat_get": "i32 i32",
    "fd_prestat_dir_name": "i32 i32 i32",
    "args_get": "i32 i32",
    "args_sizes_get": "i32 i32",
    "environ_get": "i32 i32",
    "environ_sizes_get": "i32 i32",
    "proc_exit": "i32",
}
BADF, FAULT, INVAL, SPIPE = 8, 21, 28, 70
OUT = 8  # guests store the errno at 0 and have the rest from here on
IMPORTS = "".join(
    wasi(name, params, "" if name == "proc_exit" else "(result i32)")
    for name, params in TYPES.items()
)


def calls(name: str, *arguments: int, before: str = "", shown: int = 40) -> str:
    """A body that makes one call and answers its errno and the memory after it, as digits."""
    types = TYPES[name].split()
    constants = " ".join(
        f"({kind}.const {value})" for kind, value in zip(types, arguments, strict=True)
    )
    return f"""{before} (i32.store (i32.const 0) (call ${name} {constants}))
               (call $hex (i32.const 0) (i32.const {OUT + shown}))"""


def granted(bench: Bench, body: str, **settings: Any) -> Instance:
    """An instance that may do everything but reach files."""
    wasm = guest(select_worker=body, imports=IMPORTS)
    return bench.instance(wasm, allowed_syscalls=GROUPS_BUT_FILES, **settings)


def answer(instance: Instance, *, now_ms: int = 0, entropy: int = 0) -> tuple[int, bytes]:
    """The errno of its call, and the memory from `OUT` on."""
    data = bytes.fromhex(instance.select_worker(b"{}", now_ms, entropy).decode())
    return int.from_bytes(data[:4], "little"), data[OUT:]


def test_each_function_of_the_harmless_groups_is_covered_here() -> None:
    assert TYPES.keys() == {name for group in GROUPS_BUT_FILES for name in GROUPS[group]}


def test_the_clock_is_the_decisions_time(bench: Bench) -> None:
    instance = granted(bench, calls("clock_time_get", 0, 0, OUT, shown=8))
    for now_ms in (1_795_366_034_123, 5):
        assert answer(instance, now_ms=now_ms) == (0, struct.pack("<Q", now_ms * 1_000_000))


def test_the_clock_never_says_nothing(bench: Bench) -> None:
    """Go's runtime dies of a clock at 0; there is no time yet where a plugin starts."""
    read = f"(drop (call $clock_time_get (i32.const 0) (i64.const 0) (i32.const {OUT})))"
    body = f"(call $hex (i32.const 0) (i32.const {OUT + 8}))"
    wasm = guest(select_worker=body, init=read, imports=IMPORTS)
    started = bench.instance(wasm, allowed_syscalls=GROUPS_BUT_FILES)
    assert answer(started) == (0, struct.pack("<Q", 1_000_000))
    deciding = granted(bench, calls("clock_time_get", 0, 0, OUT, shown=8))
    assert answer(deciding, now_ms=0) == (0, struct.pack("<Q", 1_000_000))


def test_the_clocks_resolution_is_a_millisecond(bench: Bench) -> None:
    found = answer(granted(bench, calls("clock_res_get", 0, OUT, shown=8)))
    assert found == (0, struct.pack("<Q", 1_000_000))


def test_yielding_does_nothing(bench: Bench) -> None:
    assert answer(granted(bench, calls("sched_yield")))[0] == 0


def test_randomness_is_a_function_of_the_entropy(bench: Bench) -> None:
    body = calls("random_get", OUT, 32, shown=32)
    instance, other = granted(bench, body), granted(bench, body)
    first = answer(instance, entropy=7)
    assert first[0] == 0
    assert answer(instance, entropy=7) == first == answer(other, entropy=7)
    assert answer(instance, entropy=8)[1] != first[1]


def test_randomness_goes_on_within_a_decision(bench: Bench) -> None:
    twice = f"(drop (call $random_get (i32.const {OUT}) (i32.const 16)))"
    body = calls("random_get", OUT + 16, 16, before=twice, shown=32)
    drawn = answer(granted(bench, body), entropy=7)[1]
    assert drawn[:16] != drawn[16:]


def test_randomness_is_bounded(bench: Bench) -> None:
    memory = ONE_PAGE.replace(" 1)", " 4)")
    for size, errno in ((MAX_RANDOM_BYTES, 0), (MAX_RANDOM_BYTES + 1, INVAL), (-1, INVAL)):
        body = calls("random_get", 65_536, size)
        wasm = guest(select_worker=body, imports=IMPORTS, memory=memory)
        instance = bench.instance(wasm, allowed_syscalls=GROUPS_BUT_FILES)
        assert answer(instance)[0] == errno


def vector(at: int, start: int, size: int) -> str:
    return (
        f"(i32.store (i32.const {at}) (i32.const {start}))"
        f"(i32.store (i32.const {at + 4}) (i32.const {size}))"
    )


def prints(text: str, fd: int = 1) -> Any:
    """What composes a guest that prints."""
    body = calls("fd_write", fd, 64, 1, OUT, before=vector(64, 2048, len(text)), shown=4)
    return {"select_worker": body, "imports": IMPORTS, "extra": text_at(2048, text)}


@pytest.mark.parametrize("fd", [1, 2])
def test_what_is_printed_is_logged_and_escaped(
    bench: Bench, caplog: pytest.LogCaptureFixture, fd: int
) -> None:
    caplog.set_level(logging.INFO)
    wasm = guest(**prints("hello\x1b[2J\n%s", fd))
    instance = bench.instance(wasm, name="talker", allowed_syscalls=GROUPS_BUT_FILES)
    assert answer(instance) == (0, struct.pack("<I", 12))
    first, second = (record.getMessage() for record in caplog.records)
    assert "talker" in first
    assert "talker" in second
    assert first.endswith("hello\\x1b[2J")
    assert second.endswith("%s")


def test_what_is_printed_is_bounded_for_each_decision(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    again = f"""(local $i i32) {vector(64, 2048, 100)} (loop $l
      (drop (call $fd_write (i32.const 1) (i32.const 64) (i32.const 1) (i32.const 8)))
      (local.set $i (i32.add (local.get $i) (i32.const 1)))
      (br_if $l (i32.lt_u (local.get $i) (i32.const 200))))"""
    parts = prints("x" * 100)
    body = again + parts["select_worker"]
    wasm = guest(**parts | {"select_worker": body})
    instance = bench.instance(wasm, allowed_syscalls=GROUPS_BUT_FILES, max_execution_time_ms=5000)
    for _ in range(2):
        caplog.clear()
        assert answer(instance) == (0, struct.pack("<I", 100)), "the guest does not notice"
        printed = sum(record.getMessage().count("x") for record in caplog.records)
        assert printed == MAX_OUTPUT_BYTES


@pytest.mark.parametrize(
    ("name", "arguments", "errno"),
    [
        ("fd_write", (0, 64, 0, 8), BADF),
        ("fd_write", (3, 64, 0, 8), BADF),
        ("fd_write", (-1, 64, 0, 8), BADF),
        ("fd_write", (1, 64, 65, 8), INVAL),
        ("fd_write", (1, 64, -1, 8), INVAL),
        ("fd_read", (1, 64, 1, 8), BADF),
        ("fd_read", (3, 64, 1, 8), BADF),
        ("fd_close", (1,), 0),
        ("fd_close", (3,), BADF),
        ("fd_seek", (1, 0, 0, 8), SPIPE),
        ("fd_seek", (3, 0, 0, 8), BADF),
        ("fd_fdstat_get", (3, 8), BADF),
        ("fd_fdstat_set_flags", (1, 0), 0),
        ("fd_fdstat_set_flags", (3, 0), BADF),
        ("fd_prestat_get", (3, 8), BADF),
        ("fd_prestat_dir_name", (3, 8, 4), BADF),
        ("args_get", (8, 8), 0),
        ("environ_get", (8, 8), 0),
        ("poll_oneoff", (64, 128, 0, 8), INVAL),
        ("poll_oneoff", (64, 128, 65, 8), INVAL),
        ("poll_oneoff", (64, 128, -1, 8), INVAL),
    ],
)
def test_the_errno(bench: Bench, name: str, arguments: tuple[int, ...], errno: int) -> None:
    assert answer(granted(bench, calls(name, *arguments)))[0] == errno


def test_stdin_is_empty(bench: Bench) -> None:
    dirty = "(i32.store (i32.const 8) (i32.const -1))"
    instance = granted(bench, calls("fd_read", 0, 64, 1, OUT, before=dirty, shown=4))
    assert answer(instance) == (0, bytes(4))


def test_stdout_is_a_character_device(bench: Bench) -> None:
    instance = granted(bench, calls("fd_fdstat_get", 1, OUT, shown=24))
    assert answer(instance) == (0, b"\x02" + bytes(23))


@pytest.mark.parametrize("name", ["args_sizes_get", "environ_sizes_get"])
def test_arguments_and_environment_are_empty(bench: Bench, name: str) -> None:
    dirty = f"(i64.store (i32.const {OUT}) (i64.const -1))"
    instance = granted(bench, calls(name, OUT, OUT + 4, before=dirty, shown=8))
    assert answer(instance) == (0, bytes(8))


def test_sleeping_returns_at_once_with_every_event(bench: Bench) -> None:
    clock, read = 0, 1
    subscriptions = struct.pack("<QB7xIxxxxQQH6x", 0xA1, clock, 0, 10**18, 0, 0)
    subscriptions += struct.pack("<QB7xI28x", 0xB2, read, 0)
    wasm = guest(
        select_worker=calls("poll_oneoff", 2048, OUT + 8, 2, OUT, shown=72),
        imports=IMPORTS,
        extra=text_at(2048, subscriptions),
    )
    errno, data = answer(bench.instance(wasm, allowed_syscalls=GROUPS_BUT_FILES))
    assert errno == 0
    assert struct.unpack_from("<I", data) == (2,)
    assert struct.unpack_from("<QHB", data, 8) == (0xA1, 0, clock)
    assert struct.unpack_from("<QHB", data, 40) == (0xB2, 0, read)


@pytest.mark.parametrize(
    ("timeout_ns", "flags", "then_ns"),
    [
        (10**9, 0, 8_000_000 + 10**9),
        (9_000_000, 1, 9_000_000),
        (3, 1, 8_000_000),
        (2**64 - 1, 0, 2**63 - 1),
    ],
    ids=["for a while", "until then", "until a time that is over", "for ever"],
)
def test_after_it_slept_the_clock_says_that_the_time_has_passed(
    bench: Bench, timeout_ns: int, flags: int, then_ns: int
) -> None:
    """A runtime sleeps until its clock says so: Go's would for ever."""
    subscription = struct.pack("<QB7xIxxxxQQH6x", 1, 0, 0, timeout_ns, 0, flags)
    sleep = f"(drop (call $poll_oneoff (i32.const 2048) (i32.const {OUT + 64}) (i32.const 1)"
    body = calls("clock_time_get", 1, 0, OUT, before=f"{sleep} (i32.const {OUT})))", shown=8)
    wasm = guest(select_worker=body, imports=IMPORTS, extra=text_at(2048, subscription))
    instance = bench.instance(wasm, allowed_syscalls=GROUPS_BUT_FILES)
    assert answer(instance, now_ms=8) == (0, struct.pack("<Q", then_ns))
    assert answer(instance, now_ms=8) == (0, struct.pack("<Q", then_ns)), "each call begins anew"


@pytest.mark.parametrize("beyond", [-1, 65_535, 65_536, 0x80000000])
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("clock_time_get", (0, 0, "?")),
        ("clock_res_get", (0, "?")),
        ("random_get", ("?", 8)),
        ("poll_oneoff", ("?", 0, 1, 0)),
        ("poll_oneoff", (0, "?", 1, 0)),
        ("poll_oneoff", (0, 64, 1, "?")),
        ("fd_write", (1, "?", 1, 0)),
        ("fd_write", (1, 64, 1, "?")),
        ("fd_read", (0, 0, 0, "?")),
        ("fd_fdstat_get", (1, "?")),
        ("args_sizes_get", ("?", 0)),
        ("args_sizes_get", (0, "?")),
        ("environ_sizes_get", ("?", 0)),
        ("environ_sizes_get", (0, "?")),
    ],
)
def test_a_pointer_beyond_memory_is_a_fault(
    bench: Bench,
    caplog: pytest.LogCaptureFixture,
    name: str,
    arguments: tuple[int | str, ...],
    beyond: int,
) -> None:
    filled = (beyond if value == "?" else int(value) for value in arguments)
    instance = granted(bench, calls(name, *filled))
    assert answer(instance)[0] == FAULT
    assert not instance.poisoned
    assert not caplog.records, "nothing was raised"


@pytest.mark.parametrize(
    ("start", "size"), [(-1, 1), (65_530, 7), (0x80000000, 1), (0, -1), (0, 65_537), (65_537, 0)]
)
def test_a_text_beyond_memory_is_a_fault(bench: Bench, start: int, size: int) -> None:
    body = calls("fd_write", 1, 64, 1, OUT, before=vector(64, start, size))
    assert answer(granted(bench, body))[0] == FAULT


@pytest.mark.parametrize("code", [0, 1, -1])
@pytest.mark.parametrize("after", [LOOP, "(unreachable)", "(i32.const 1024)"])
def test_to_exit_is_a_failure_whatever_the_code_and_what_follows(
    bench: Bench, code: int, after: str
) -> None:
    body = f"(call $proc_exit (i32.const {code})) {after}"
    instance = granted(bench, body, max_execution_time_ms=20)
    with pytest.raises(DecisionError, match="proc_exit") as caught:
        instance.select_worker(b"{}", 0, 0)
    assert caught.value.kind == "trap"
    assert f"({code})" in caught.value.detail
    assert instance.poisoned


@pytest.mark.parametrize("after", [LOOP, ""])
def test_to_exit_after_the_decision_fails_it_too(bench: Bench, after: str) -> None:
    wasm = guest(dealloc=f"(call $proc_exit (i32.const 0)) {after}", imports=IMPORTS)
    instance = bench.instance(wasm, allowed_syscalls=GROUPS_BUT_FILES, max_execution_time_ms=20)
    with pytest.raises(DecisionError, match="proc_exit"):
        instance.select_worker(b"{}", 0, 0)
    assert instance.poisoned


async def test_to_exit_at_the_start_is_refused(bench: Bench) -> None:
    wasm = guest(imports=IMPORTS, init="(call $proc_exit (i32.const 0))")
    with pytest.raises(PluginRefused, match="proc_exit"):
        await bench.policy(wasm, allowed_syscalls=GROUPS_BUT_FILES)
    assert bench.factory.list_wasm_plugins() == []


def test_calls_work_in_the_start_function(bench: Bench) -> None:
    wasm = guest(
        imports=IMPORTS,
        extra="(func $start (drop (call $random_get (i32.const 8) (i32.const 32)))) (start $start)",
        select_worker="(call $hex (i32.const 0) (i32.const 40))",
    )
    instances = [bench.instance(wasm, allowed_syscalls=GROUPS_BUT_FILES) for _ in range(2)]
    drawn = [answer(instance)[1] for instance in instances]
    assert drawn[0] == drawn[1] != bytes(32)
