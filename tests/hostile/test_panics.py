"""Plugins that lie about what they have left behind when they fail."""

from typing import Any

import pytest

from sgl_router.errors import DecisionError
from sgl_router.wasm.panics import MAX_PANIC_BYTES
from sgl_router.wasm.trap import MAX_FRAMES, MAX_NAME_CHARACTERS
from tests.wasm.guests import ANSWER_AT, Bench, custom, guest, leb128, text_at

PAGE = 65_536
AT = 20_000
NAMES_AT = 8  # of a module's bytes: after its header the sections begin


def panicking(extra: str, **parts: Any) -> bytes:
    """A guest that traps in each decision."""
    return guest(select_worker=f"unreachable (i32.const {ANSWER_AT})", extra=extra, **parts)


def exported(value: str) -> str:
    return f'(global (export "sgl_panic_message") {value})'


def failure(bench: Bench, wasm: bytes, **settings: Any) -> DecisionError:
    """Of a decision; the instance that has failed is not asked again."""
    instance = bench.instance(wasm, **settings)
    with pytest.raises(DecisionError) as caught:
        instance.select_worker(b"{}", 0, 0)
    assert caught.value.kind == "trap"
    assert instance.poisoned
    return caught.value


# ---- the panic


@pytest.mark.parametrize(
    "extra",
    [
        pytest.param(exported("i32 (i32.const -1)"), id="the-last-address-there-can-be"),
        pytest.param(exported("i32 (i32.const -1023)"), id="wraps-around"),
        pytest.param(exported("i32 (i32.const 0x7fffffff)"), id="two-gigabytes-on"),
        pytest.param(exported(f"i32 (i32.const {PAGE})"), id="the-end-of-memory"),
        pytest.param(exported("i32 (i32.const 0)"), id="nothing-there"),
        pytest.param(exported(f"i64 (i64.const {AT})"), id="i64"),
        pytest.param(exported("i64 (i64.const -1)"), id="i64-large"),
        pytest.param(exported("f32 (f32.const 20000)"), id="f32"),
        pytest.param(exported("f64 (f64.const nan)"), id="f64"),
        pytest.param(exported("v128 (v128.const i64x2 20000 0)"), id="v128"),
        pytest.param(exported("funcref (ref.null func)"), id="a-reference"),
        pytest.param(exported("externref (ref.null extern)"), id="a-reference-to-the-host"),
        pytest.param(
            "(elem declare func $f) (func $f)" + exported("funcref (ref.func $f)"), id="f"
        ),
        pytest.param('(func (export "sgl_panic_message") unreachable)', id="a-function"),
        pytest.param('(table (export "sgl_panic_message") 1 funcref)', id="a-table"),
        pytest.param('(export "sgl_panic_message" (memory 0))', id="the-memory"),
    ],
)
def test_no_panic_is_made_of_what_is_none(bench: Bench, extra: str) -> None:
    wasm = panicking(f"{extra} {text_at(AT, 'a text that nobody may see')}")
    assert failure(bench, wasm).words.panic is None


@pytest.mark.parametrize(
    ("text", "panic"),
    [
        (b"\xff\xfe", "\\ufffd\\ufffd"),
        (b"cut \xf0\x9f\x92", "cut \\ufffd"),
        (b"\x1b[2J\x1b]0;owned\x07", "\\x1b[2J\\x1b]0;owned\\x07"),
        (b"a\r\nERROR router: forged", "a\\r\\nERROR router: forged"),
        ("\u202egnp.exe".encode(), "\\u202egnp.exe"),
        (b"%s %d {0}", "%s %d {0}"),
    ],
)
def test_a_panic_is_escaped(bench: Bench, text: bytes, panic: str) -> None:
    extra = exported(f"i32 (i32.const {AT})") + text_at(AT, text)
    error = failure(bench, panicking(extra))
    assert error.words.panic == panic
    assert str(error).isprintable()
    assert str(error).isascii()


def test_a_panic_ends_with_the_memory(bench: Bench) -> None:
    extra = exported(f"i32 (i32.const {PAGE - 3})") + text_at(PAGE - 3, "end")
    assert failure(bench, panicking(extra)).words.panic == "end"


def test_a_panic_without_an_end_is_cut(bench: Bench) -> None:
    """The memory is full of it: 64 MiB."""
    fill = "(memory.fill (i32.const 0) (i32.const 120) (i32.const 0x4000000)) unreachable"
    wasm = guest(
        select_worker=fill,
        extra=exported("i32 (i32.const 1)"),
        memory='(memory (export "memory") 1024)',
    )
    error = failure(bench, wasm, max_memory_bytes=100 * 1024 * 1024)
    assert error.words.panic == "x" * MAX_PANIC_BYTES


# ---- the names of functions


def section(kind: int, content: bytes) -> bytes:
    return bytes([kind]) + leb128(len(content)) + content


def function_names(*names: bytes) -> bytes:
    """The part of a name section that names the first functions."""
    named = b"".join(leb128(index) + leb128(len(name)) + name for index, name in enumerate(names))
    return section(1, leb128(len(names)) + named)


def named(names: bytes, body: str = "unreachable") -> bytes:
    """A guest whose function 0 does `body` in each decision, with that name section alone."""
    call = f"(call 0) (i32.const {ANSWER_AT})"
    return unnamed(guest(select_worker=call, extra=f"(func {body})")) + custom("name", names)


def unnamed(wasm: bytes) -> bytes:
    """A module without its custom sections."""
    kept, at = wasm[:NAMES_AT], NAMES_AT
    while at < len(wasm):
        start, size, shift = at, 0, 0
        at += 1
        while True:
            size |= (wasm[at] & 0x7F) << shift
            shift += 7
            at += 1
            if wasm[at - 1] < 0x80:
                break
        at += size
        kept += wasm[start:at] if wasm[start] else b""
    return kept


@pytest.mark.parametrize("size", [10_000, 3_000_000])
def test_long_names_are_cut(bench: Bench, size: int) -> None:
    """Each of the frames has one; all of them together would be sixty megabytes."""
    error = failure(bench, named(function_names(b"x" * size), "(call 0)"))
    assert len(error.words.backtrace) == MAX_FRAMES
    assert error.words.backtrace[0].startswith("x" * MAX_NAME_CHARACTERS)
    assert all(len(frame) < 2 * MAX_NAME_CHARACTERS for frame in error.words.backtrace)
    assert error.words.backtrace[-1].startswith("function 0 at 0x")
    assert error.detail == "wasm trap: call stack exhausted"


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (b"\x1b[2J\n\x00", "\\x1b[2J\\n\\x00"),
        ("\u202e\U0001f4a9".encode(), "\\u202e\\U0001f4a9"),
        (b"%s{0}", "%s{0}"),
        (b"_ZN" + b"1a" * 2000, "_ZN"),
        (b"_ZN9999999999999999999999xE", "_ZN99"),
        (b"_ZN1_" + b"St" * 2000, "_ZN1_"),
        (b"_Z" + b"N1aI" * 500 + b"E" * 500, "_ZN1aI"),
        (b"", "function 0"),
        (b"\xff\xfe", ""),
    ],
)
def test_names_are_escaped(bench: Bench, name: bytes, shown: str) -> None:
    frame = failure(bench, named(function_names(name))).words.backtrace[0]
    assert frame.startswith(shown)
    assert frame.encode("ascii", "replace").decode().isprintable()


@pytest.mark.parametrize(
    "names",
    [
        b"\x01",
        b"\x01\xff\xff\xff\xff\x0f",
        section(1, leb128(2**31)),
        section(1, b"\x02\x00\x05ab"),
        section(1, leb128(1) + leb128(2**32 - 1) + b"\x01a"),
        function_names(b"good")[:-2],
        bytes(range(256)),
    ],
)
def test_a_section_of_nonsense_costs_the_names_only(bench: Bench, names: bytes) -> None:
    error = failure(bench, named(names))
    assert len(error.words.backtrace) == 2
    assert error.words.backtrace[0].startswith("function 0 at 0x")


def test_a_module_that_takes_the_drivers_name_hides_its_own_functions(bench: Bench) -> None:
    driver = b"sgl_router_driver"
    names = section(0, leb128(len(driver)) + driver) + function_names(b"hidden")
    assert failure(bench, named(names)).words.backtrace == ()


def test_a_long_name_of_the_module_is_nobodys(bench: Bench) -> None:
    names = section(0, leb128(90_000) + b"sgl_router_driver" + b"x" * (90_000 - 17))
    error = failure(bench, named(names + function_names(b"shown")))
    assert error.words.backtrace[0].startswith("shown at 0x")
