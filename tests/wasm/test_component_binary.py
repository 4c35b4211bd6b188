"""Reading components: it agrees with what they say, and no bytes whatever harm it."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sgl_router.wasm import component_binary
from sgl_router.wasm.abi.component_v1 import INTERFACE
from sgl_router.wasm.binary import MalformedModule, Reader
from sgl_router.wasm.component_binary import MAX_NAME_BYTES, read_component
from tests.wasm.component_guests import component
from tests.wasm.guests import assemble, custom, leb128

HEADER = b"\0asm\x0d\0\x01\0"
OUTER = """
  (core module $one (table 7 funcref) (func) (func) (global i32 (i32.const 1)))
  (core instance (instantiate $one)) (core instance $two (instantiate $one))
  (component $inner (core module $m (table 9 externref) (func)) (core instance (instantiate $m)))
  (instance (instantiate $inner))
  (core instance (export "x" (func $two "f")))
"""
SOUND = component(
    outer=OUTER.replace("(func) (func)", '(func (export "f")) (func)'),
    sections={"sgl-router.manifest": b"{}", "other": b"\xff"},
)


def section(number: int, content: bytes) -> bytes:
    return bytes([number]) + leb128(len(content)) + content


def test_all_that_it_declares() -> None:
    info = read_component(SOUND)
    assert info.exports == {INTERFACE: "instance"}
    assert not info.imports
    assert info.custom_sections["sgl-router.manifest"] == b"{}"
    assert info.custom_sections["other"] == b"\xff"
    assert [memory.minimum for memory in info.memories] == [2]
    assert sorted(table.minimum for table in info.tables) == [7, 9]
    assert info.instances == 4
    assert info.most_definitions == 6


def test_imports_and_exports_of_each_kind() -> None:
    text = """(component
      (import "f" (func $f (param "x" string)))
      (import "i" (instance $i (export "g" (func))))
      (import "c" (component $c))
      (import "m" (core module $m))
      (import "t" (type $t (sub resource)))
      (import "e" (type $e (eq $t)))
      (export "f2" (func $f)) (export "i2" (instance $i)) (export "c2" (component $c))
      (export "m2" (core module $m)) (export "t2" (type $t))
      (export "f3" (func $f) (func (param "x" string))))"""
    info = read_component(assemble(text))
    kinds = {"f": "function", "i": "instance", "c": "component", "m": "core module", "t": "type"}
    assert info.imports == kinds | {"e": "type"}
    assert info.exports == {f"{name}2": kind for name, kind in kinds.items()} | {"f3": "function"}


LIFT, LOWER, UTF16, MEMORY, REALLOC, POST, ASYNC = 0, 1, 1, 3, 4, 5, 6


def canonical(*entries: list[int]) -> bytes:
    return HEADER + section(8, leb128(len(entries)) + b"".join(bytes(e) for e in entries))


def test_lift_and_lower_are_no_builtins() -> None:
    """Each is read to its end: else what follows would be taken for something else."""
    data = canonical(
        [LIFT, 0, 7, 4, MEMORY, 2, REALLOC, 3, UTF16, POST, 4, 9],
        [LOWER, 0, 7, 2, MEMORY, 2, UTF16],
        [LIFT, 0, 2, 0, 4],
        [2, 5],
    )
    assert read_component(data).builtins == {"resource.new"}
    assert not read_component(SOUND).builtins


@given(st.integers(5, 255), st.binary(max_size=20))
def test_a_builtin_that_is_not_known(code: int, rest: bytes) -> None:
    data = canonical([3, 0], [code, *rest], [4, 0])
    assert read_component(data).builtins == {"resource.drop", f"number {code:#x}"}


@pytest.mark.parametrize("code", [LIFT, LOWER])
@given(option=st.integers(ASYNC, 255))
def test_an_option_that_is_not_known(code: int, option: int) -> None:
    data = canonical([code, 0, 0, 2, UTF16, option])
    assert read_component(data).builtins == {f"the option {option:#x}"}


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (HEADER + section(8, leb128(300_000)), "module_too_complex"),
        (canonical([LIFT, 0, 0, *leb128(300_000)]), "module_too_complex"),
        (canonical([LIFT, 1, 0, 0, 0]), "module_malformed"),
        (HEADER + section(8, b"\2\2\0"), "module_malformed"),
    ],
)
def test_canonical_functions_that_are_none(data: bytes, code: str) -> None:
    with pytest.raises(MalformedModule) as caught:
        read_component(data)
    assert caught.value.code == code


def test_of_two_sections_with_one_name_the_first() -> None:
    assert read_component(HEADER + custom("a", b"1") + custom("a", b"2")).custom_sections == {
        "a": b"1"
    }


def test_custom_sections_within_are_not_its_own() -> None:
    nested = section(4, HEADER + custom("sgl-router.manifest", b"{}"))
    assert not read_component(HEADER + nested).custom_sections


def test_cut_off_anywhere() -> None:
    sound = 0
    for end in range(len(SOUND)):
        try:
            read_component(SOUND[:end])
        except MalformedModule:
            continue
        sound += 1
    assert 8 < sound < len(SOUND) / 10  # the ends of sections


@given(st.binary(max_size=200))
@example(b"")
@example(b"\x04\x80\x80\x80\x80\x80\x80")
def test_any_bytes(data: bytes) -> None:
    for content in (data, HEADER + data, HEADER + section(4, HEADER + data)):
        try:
            read_component(content)
        except MalformedModule:
            continue


@given(st.integers(0, len(SOUND) - 1), st.integers(0, 255))
def test_any_byte_changed(at: int, byte: int) -> None:
    changed = SOUND[:at] + bytes([byte]) + SOUND[at + 1 :]
    try:
        info = read_component(changed)
    except MalformedModule:
        return
    assert len(info.tables) <= len(SOUND)


def name_section(*names: bytes) -> bytes:
    entries = b"".join(b"\0" + leb128(len(name)) + name for name in names)
    return custom("name", section(1, leb128(len(names)) + entries))


def core_module(*sections: bytes) -> bytes:
    return section(1, b"\0asm\x01\0\0\0" + b"".join(sections))


def test_the_name_of_a_function_is_bounded() -> None:
    read_component(HEADER + core_module(name_section(b"x" * MAX_NAME_BYTES)))
    with pytest.raises(MalformedModule, match="name of a function") as caught:
        read_component(HEADER + core_module(name_section(b"x" * (MAX_NAME_BYTES + 1))))
    assert caught.value.code == "module_too_complex"


def test_names_that_cannot_be_read_are_not_its_fault() -> None:
    read_component(HEADER + core_module(custom("name", b"\1\x0a\2\0\xff")))


def test_what_the_host_would_keep_for_its_instances_is_bounded() -> None:
    many = core_module(section(3, leb128(50_000) + b"\0" * 50_000))
    instances = section(2, leb128(100) + b"\0\0\0" * 100)
    with pytest.raises(MalformedModule, match="in all its instances"):
        read_component(HEADER + many + instances)


def test_nothing_is_read_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """However deep: each section's header is read once."""
    reads = 0
    part = Reader.part

    def counted(self: Reader, size: int) -> Reader:
        nonlocal reads
        reads += 1
        return part(self, size)

    monkeypatch.setattr(Reader, "part", counted)
    nested = HEADER
    for _ in range(component_binary.MAX_DEPTH):
        nested = HEADER + section(0, b"\1x") + section(4, nested)
    read_component(nested)
    assert reads == 2 * component_binary.MAX_DEPTH
