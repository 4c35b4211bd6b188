"""The manifest is put into a module, and nothing else of it changes."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sgl_router.devkit.manifest_section import with_manifest
from sgl_router.wasm.binary import MalformedModule, is_component, read_info
from sgl_router.wasm.manifest import SECTION
from tests.devkit.fake import SHIPPED

CORE, COMPONENT = b"\0asm\1\0\0\0", b"\0asm\x0d\0\1\0"


def number(value: int, width: int = 1) -> bytes:
    """Unsigned LEB128 of at least `width` bytes: toolchains pad sizes that they learn later."""
    groups = [value >> shift & 0x7F for shift in range(0, max(value.bit_length(), 7 * width), 7)]
    return bytes([group | 0x80 for group in groups[:-1]] + groups[-1:])


def section(identifier: int, content: bytes, width: int = 1) -> bytes:
    return bytes([identifier]) + number(len(content), width) + content


def custom(name: bytes, content: bytes, width: int = 1) -> bytes:
    return section(0, number(len(name)) + name + content, width)


names = st.one_of(st.binary(max_size=200), st.sampled_from([b"name", b"sgl-router.manifes"]))
widths = st.integers(1, 5)
customs = st.builds(custom, names, st.binary(max_size=300), widths)
manifests = st.builds(custom, st.just(SECTION.encode()), st.binary(max_size=300), widths)
others = st.builds(section, st.integers(1, 11), st.binary(max_size=300), widths)


def is_manifest(one: bytes) -> bool:
    after_size = one[1:].lstrip(bytes(range(0x80, 0x100)))[1:]
    name = SECTION.encode()
    return one[0] == 0 and after_size.startswith(number(len(name)) + name)


@given(
    st.lists(st.one_of(customs, manifests, others), max_size=8),
    st.sampled_from([CORE, COMPONENT]),
    st.binary(max_size=20_000),
)
@example([], CORE, bytes(127 - 21))
@example([], CORE, bytes(128 - 21))
@example([custom(b"sgl-router.manifes", b"t")], CORE, b"")
def test_other_sections_are_untouched(sections: list[bytes], head: bytes, manifest: bytes) -> None:
    made = with_manifest(head + b"".join(sections), manifest)
    kept = head + b"".join(one for one in sections if not is_manifest(one))
    assert made == kept + custom(SECTION.encode(), manifest)
    assert is_component(made) == (head == COMPONENT)


@given(st.lists(st.one_of(customs, manifests), max_size=8), st.binary(max_size=20_000))
def test_the_router_reads_it(sections: list[bytes], manifest: bytes) -> None:
    before = CORE + b"".join(sections)
    after = read_info(with_manifest(before, manifest))
    assert after.custom_sections.pop(SECTION) == manifest
    expected = read_info(before).custom_sections
    expected.pop(SECTION, None)
    assert after.custom_sections == expected


def test_a_real_module_stays_what_it_is() -> None:
    before, after = read_info(SHIPPED), read_info(with_manifest(SHIPPED, b"{}"))
    assert before.custom_sections.pop(SECTION) != after.custom_sections.pop(SECTION) == b"{}"
    assert before == after


@given(st.one_of(st.binary(max_size=60), st.binary(max_size=60).map(CORE.__add__)))
def test_whatever_the_bytes_are(wasm: bytes) -> None:
    try:
        made = with_manifest(wasm, b"{}")
    except MalformedModule:
        return
    assert with_manifest(made, b"{}") == made


@pytest.mark.parametrize(
    "wasm",
    [
        b"",
        b"\0asm",
        b"(module)",
        CORE + b"\0",
        CORE + b"\0\x80",
        CORE + b"\0\x80\x80\x80\x80\x80\0",
        CORE + b"\1\2\0",
        CORE + b"\0\0",
        CORE + b"\0\1\5",
        CORE + b"\0\1\x80\4name",
    ],
)
def test_what_is_no_module(wasm: bytes) -> None:
    with pytest.raises(MalformedModule):
        with_manifest(wasm, b"{}")
