"""What a guest that failed has left for its author: its panic, its output, and where it was."""

import logging
from typing import Any

import pytest
import wasmtime
from hypothesis import given
from hypothesis import strategies as st
from wasmtime import _ffi

from sgl_router.errors import DecisionError, PluginRefused
from sgl_router.wasm.calls import PublicCalls
from sgl_router.wasm.instance import Instance
from sgl_router.wasm.runtime import RuntimeOptions, WasmRuntime
from sgl_router.wasm.trap import MAX_FRAMES, backtrace_of, cause_of, readable_name
from sgl_router.wasm.wasi_output import MAX_OUTPUT_BYTES, MAX_OUTPUT_LINES
from tests.wasm.guests import ANSWER_AT, LOOP, Bench, guest, request, text_at, view, wasi
from tests.wasm.table_guests import table_guest

PANIC_AT = 20_000
GLOBAL = f'(global (export "sgl_panic_message") i32 (i32.const {PANIC_AT}))'
GRANTS = ("wasi:stdio", "wasi:environ")
IMPORTS = wasi("fd_write", "i32 i32 i32 i32", "(result i32)") + wasi("proc_exit", "i32", "")
SAID_AT = 4096


def failing(bench: Bench, wasm: bytes, **settings: Any) -> DecisionError:
    """The failure of a guest's first decision."""
    return failure_of(bench.instance(wasm, **settings))


def failure_of(instance: Instance) -> DecisionError:
    with pytest.raises(DecisionError) as caught:
        instance.select_worker(b"{}", 0, 0)
    return caught.value


def functions(failure: DecisionError) -> list[str]:
    """Of its backtrace, without where in the module they are."""
    return [frame.partition(" at 0x")[0] for frame in failure.words.backtrace]


NESTED = """
  (func $my_crate::inner unreachable)
  (func $my_crate::outer::h0123456789abcdef (call $my_crate::inner))"""
CALL_NESTED = f"(call $my_crate::outer::h0123456789abcdef) (i32.const {ANSWER_AT})"


def says(*texts: str, fd: int = 2) -> str:
    """A body that writes each text at once, and data for it must be at `SAID_AT` (`written`)."""
    body, at = "", SAID_AT
    for text in texts:
        body += f"""(i32.store (i32.const 64) (i32.const {at}))
          (i32.store (i32.const 68) (i32.const {len(text.encode())}))
          (drop (call $fd_write (i32.const {fd}) (i32.const 64) (i32.const 1) (i32.const 72)))"""
        at += len(text.encode())
    return body


def talker(*texts: str, end: str = "unreachable", **parts: Any) -> bytes:
    """A guest that writes each text, and then does what `end` says."""
    return guest(
        select_worker=says(*texts) + f"{end} (i32.const {ANSWER_AT})",
        imports=IMPORTS,
        extra=text_at(SAID_AT, "".join(texts)),
        **parts,
    )


# ---- the backtrace


def test_a_trap_tells_the_functions_that_were_under_way(bench: Bench) -> None:
    failure = failing(bench, guest(select_worker=CALL_NESTED, extra=NESTED))
    assert functions(failure)[:2] == ["my_crate::inner", "my_crate::outer"]
    assert len(failure.words.backtrace) == 3, "the export, which has no name; not the driver"
    assert functions(failure)[2].startswith("function ")
    assert failure.detail == "wasm trap: wasm `unreachable` instruction executed"
    assert "my_crate::inner" in failure.where
    assert "my_crate::inner" not in str(failure)


def test_offsets_are_those_of_the_module(bench: Bench) -> None:
    wasm = guest(select_worker=CALL_NESTED, extra=NESTED)
    offsets = [int(frame.rpartition("0x")[2], 16) for frame in failing(bench, wasm).words.backtrace]
    unreachable, call = 0x00, 0x10
    assert [wasm[offset] for offset in offsets[:2]] == [unreachable, call]


@pytest.mark.parametrize("called", ["alloc", "dealloc", "select_worker"])
def test_of_the_drivers_frames_none_is_told(bench: Bench, called: str) -> None:
    parts: dict[str, Any] = {called: "unreachable"}
    wasm = guest(**parts)
    failure = bench.instance(wasm)
    try:
        failure.select_worker(b"{}", 0, 0)
        told = failure.late_failure
    except DecisionError as error:
        told = error
    assert told is not None
    assert len(told.words.backtrace) == 1


async def test_a_table_plugins_trap_tells_the_same(bench: Bench) -> None:
    extra = "(func $my_crate::inner unreachable)"
    wasm = table_guest("(call $my_crate::inner) (i32.const 0)", extra=extra)
    with pytest.raises(PluginRefused) as caught:
        await bench.policy(wasm)
    (reason,) = caught.value.reasons
    assert "my_crate::inner at 0x" in reason
    assert "decide" not in reason


def test_a_guest_that_overruns_its_time_is_told_where(bench: Bench) -> None:
    extra = f"(func $my_crate::spins {LOOP})"
    body = f"(call $my_crate::spins) (i32.const {ANSWER_AT})"
    failure = failing(
        bench, guest(select_worker=body, extra=extra), max_execution_time_ms=20, inline_budget_ms=20
    )
    assert failure.kind == "timeout"
    assert functions(failure)[0] == "my_crate::spins"


def test_an_endless_recursion_is_told_in_part(bench: Bench) -> None:
    extra = "(func $my_crate::again (call $my_crate::again))"
    body = f"(call $my_crate::again) (i32.const {ANSWER_AT})"
    failure = failing(bench, guest(select_worker=body, extra=extra))
    assert functions(failure) == ["my_crate::again"] * MAX_FRAMES
    assert failure.detail == "wasm trap: call stack exhausted"


def test_what_fails_without_a_trap_has_no_backtrace(bench: Bench) -> None:
    failure = failing(bench, guest(select_worker="(i32.const -1)"))
    assert (failure.kind, failure.words.backtrace, failure.where) == ("bad_output", (), "")


def test_wasmtimes_own_classes_come_to_the_same(bench: Bench) -> None:
    wasm = guest(select_worker=CALL_NESTED, extra=NESTED + GLOBAL + text_at(PANIC_AT, "no"))
    runtime = WasmRuntime(RuntimeOptions(in_child=False, calls=PublicCalls))
    try:
        other = Bench(bench.folder, runtime, bench.factory)
        assert failing(other, wasm).words == failing(bench, wasm).words
    finally:
        runtime.close()


@pytest.mark.parametrize(
    ("name", "readable"),
    [
        ("core::panicking::panic::h0123456789abcdef", "core::panicking::panic"),
        ("<a as b>::c::h0123456789abcdef", "<a as b>::c"),
        ("a::h0123456789abcdeg", "a::h0123456789abcdeg"),
        ("_ZN4core9panicking5panic17h0123456789abcdefE", "core::panicking::panic"),
        ("ZN4core9panicking5panicE", "core::panicking::panic"),
        ("_ZN3fooE.llvm.9D1CF6E", "foo"),
        (
            "_ZN33_$LT$a..B$u20$as$u20$b..Debug$GT$3fmt17h0123456789abcdefE",
            "<a::B as b::Debug>::fmt",
        ),
        ("_ZN99xE", "_ZN99xE"),
        ("_ZNE", "_ZNE"),
        ("_ZN0E", "_ZN0E"),
        ("_RNvCs1234_7mycrate3foo", "_RNvCs1234_7mycrate3foo"),
        ("main.selectWorker", "main.selectWorker"),
        ("", ""),
    ],
)
def test_names_as_their_author_wrote_them(name: str, readable: str) -> None:
    assert readable_name(name) == readable


@given(st.text() | st.from_regex(r"_ZN(\d{1,3}[a-z.$]{0,9}){0,5}E", fullmatch=True))
def test_any_name_is_shown_somehow(name: str) -> None:
    assert len(readable_name(name)) <= len(name)


@pytest.mark.parametrize("code", wasmtime.TrapCode)
def test_each_cause_has_its_words(code: wasmtime.TrapCode) -> None:
    """wasmtime ends the process over a code that it does not know, so that all are tried."""
    trap = wasmtime.Trap._from_ptr(_ffi.wasmtime_trap_new_code(code.value))
    assert cause_of(trap) == trap.message
    assert backtrace_of(trap) == ()


def test_a_trap_of_no_code_has_its_own_words() -> None:
    assert cause_of(wasmtime.Trap("one\ntwo\x1b")) == "two\\x1b"
    assert cause_of(wasmtime.Trap("")) == "Trap"


# ---- the panic


def panicking(text: str | bytes, **parts: Any) -> bytes:
    extra = GLOBAL + text_at(PANIC_AT, text)
    return guest(select_worker=f"unreachable (i32.const {ANSWER_AT})", extra=extra, **parts)


def test_a_panic_is_told_with_the_trap(bench: Bench) -> None:
    failure = failing(bench, panicking("panicked at src/lib.rs:7:9:\nno such worker"))
    assert failure.words.panic == "panicked at src/lib.rs:7:9:\\nno such worker"
    assert str(failure).endswith("it said: panicked at src/lib.rs:7:9:\\nno such worker")


def test_a_panic_in_init_is_told_too(bench: Bench) -> None:
    wasm = guest(init="unreachable", extra=GLOBAL + text_at(PANIC_AT, "not today"))
    with pytest.raises(DecisionError) as caught:
        bench.instance(wasm)
    assert caught.value.words.panic == "not today"


def test_a_panic_that_was_written_in_the_call_is_told(bench: Bench) -> None:
    """The global may change: it is read after the trap."""
    extra = f"""(global $at (export "sgl_panic_message") (mut i32) (i32.const 0))
      {text_at(PANIC_AT, "late")}"""
    body = f"(global.set $at (i32.const {PANIC_AT})) unreachable"
    assert failing(bench, guest(select_worker=body, extra=extra)).words.panic == "late"


@pytest.mark.parametrize("text", ["", "  \n "])
def test_a_guest_that_trapped_without_a_panic_said_nothing(bench: Bench, text: str) -> None:
    assert failing(bench, panicking(text)).words.panic is None


def test_a_panic_is_of_a_trap_only(bench: Bench) -> None:
    extra = GLOBAL + text_at(PANIC_AT, "an old one")
    failure = failing(bench, guest(select_worker="(i32.const -1)", extra=extra))
    assert failure.words.panic is None


# ---- the output


def test_what_was_printed_in_the_call_is_told(bench: Bench) -> None:
    failure = failing(bench, talker("one\n", "two\x1b[2J"), allowed_syscalls=GRANTS)
    assert failure.words.output == "one\ntwo\\x1b[2J"
    assert failure.words.panic is None


def test_what_was_printed_before_is_not(bench: Bench) -> None:
    second = "(if (i32.eqz (global.get $calls)) (then (global.set $calls (i32.const 1)) %s))"
    body = second % (says("first") + f"(return (i32.const {ANSWER_AT}))") + "unreachable"
    wasm = guest(select_worker=body, imports=IMPORTS, extra=text_at(SAID_AT, "first"))
    instance = bench.instance(wasm, allowed_syscalls=GRANTS)
    instance.select_worker(b"{}", 0, 0)
    assert failure_of(instance).words.output is None


def test_of_much_that_was_printed_the_end_is_told(bench: Bench) -> None:
    """The log has the beginning: the reason stands at the end."""
    failure = failing(bench, talker("x" * 6000, "\nthe reason"), allowed_syscalls=GRANTS)
    assert failure.words.output is not None
    assert failure.words.output.endswith("xxx\nthe reason")
    assert len(failure.words.output) == MAX_OUTPUT_BYTES


@pytest.mark.parametrize(
    ("printed", "panic"),
    [
        ("deciding\npanic: boom [recovered]\n\ngoroutine 1", "panic: boom [recovered]"),
        ("fatal error: all goroutines are asleep", "fatal error: all goroutines are asleep"),
        ("abort: no table in index.ts(3:9)", "abort: no table in index.ts(3:9)"),
        ("do not panic: all is well", None),
    ],
)
def test_a_runtime_that_prints_its_panic_has_said_it(
    bench: Bench, printed: str, panic: str | None
) -> None:
    assert failing(bench, talker(printed), allowed_syscalls=GRANTS).words.panic == panic


def test_who_exits_has_said_why_last(bench: Bench) -> None:
    wasm = talker("loading\n", "no table\n", end="(call $proc_exit (i32.const 2))" + LOOP)
    failure = failing(bench, wasm, allowed_syscalls=GRANTS)
    assert failure.kind == "trap"
    assert "proc_exit(2)" in failure.detail
    assert failure.words.panic == "no table"
    assert failure.words.backtrace


# ---- the log


def printed_lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    lines = [record.getMessage() for record in caplog.records]
    return [line.removeprefix("plugin plugin: ") for line in lines]


def test_lines_are_logged_whole_in_however_many_pieces_they_come(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    wasm = talker("pa", "nic: ", "bo\u00f6m\r\n\n", "goroutine", " 1", end="")
    bench.instance(wasm, allowed_syscalls=GRANTS).select_worker(b"{}", 0, 0)
    assert printed_lines(caplog) == ["panic: bo\\xf6m", "goroutine 1"]


def test_stdout_and_stderr_have_lines_of_their_own(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    body = says("one ", fd=1) + says("one ", fd=2) + f"(i32.const {ANSWER_AT})"
    wasm = guest(select_worker=body, imports=IMPORTS, extra=text_at(SAID_AT, "one "))
    instance = bench.instance(wasm, allowed_syscalls=GRANTS)
    instance.select_worker(b"{}", 0, 0)
    assert printed_lines(caplog) == ["one ", "one "]


def test_so_many_lines_are_logged_for_a_call(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    instance = bench.instance(talker("x\n" * 1000, end=""), allowed_syscalls=GRANTS)
    for _ in range(2):
        caplog.clear()
        instance.select_worker(b"{}", 0, 0)
        assert printed_lines(caplog) == ["x"] * MAX_OUTPUT_LINES


async def test_the_warning_has_cause_panic_and_backtrace_in_one_line(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    policy = await bench.policy(on_odd_entropy())
    with pytest.raises(DecisionError):
        policy.select_worker(view(True), request(entropy=9))
    (line,) = [line for line in map(str, printed_lines(caplog)) if "trap" in line]
    assert "unreachable" in line
    assert "it said: by request" in line
    assert "my_crate::inner at 0x" in line
    assert "\n" not in line


def on_odd_entropy() -> bytes:
    """A guest that panics where the request's entropy ends in 9."""
    last = "(i32.load8_u (i32.add (local.get $ptr) (i32.sub (local.get $len) (i32.const 2))))"
    return guest(
        select_worker=f"(if (i32.eq {last} (i32.const 57)) (then (call $my_crate::inner)))"
        f"(i32.const {ANSWER_AT})",
        extra=f"(func $my_crate::inner unreachable) {GLOBAL} {text_at(PANIC_AT, 'by request')}",
    )


# ---- what is shown


async def test_what_is_shown_of_the_last_failure(bench: Bench) -> None:
    policy = await bench.policy(on_odd_entropy())
    assert policy.status(0, []).last_failure_detail is None
    with pytest.raises(DecisionError) as caught:
        policy.select_worker(view(True), request(entropy=9))
    status = policy.status(0, [])
    shown = status.last_failure_detail
    assert shown is not None
    assert (shown.kind, shown.detail) == ("trap", caught.value.detail)
    assert (shown.panic, shown.output) == ("by request", None)
    assert shown.backtrace == list(caught.value.words.backtrace)
    assert status.last_failure == str(caught.value)


async def test_a_plugin_that_fails_when_tried_out_is_refused_with_its_words(bench: Bench) -> None:
    with pytest.raises(PluginRefused) as caught:
        await bench.policy(guest(select_worker=CALL_NESTED, extra=NESTED + GLOBAL + NOT_READY))
    (reason,) = caught.value.reasons
    assert "it said: not ready" in reason
    assert "my_crate::inner at 0x" in reason


NOT_READY = text_at(PANIC_AT, "not ready")
