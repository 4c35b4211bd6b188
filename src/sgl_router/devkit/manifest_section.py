"""Puts a plugin's manifest into its module, byte by byte and without a toolchain.

A core module and a component are alike in this: eight bytes, then sections, each with an id and a
size (WebAssembly core specification, section 5.5.2; component model, Binary.md).
"""

from collections.abc import Iterator

from sgl_router.wasm.binary import MAGIC, MalformedModule
from sgl_router.wasm.manifest import SECTION

_HEADER_BYTES = 8
_CUSTOM = 0
_MOST_BYTES_OF_A_NUMBER = 5


def with_manifest(wasm: bytes, manifest: bytes) -> bytes:
    """The same module with this manifest at its end, in place of those that it has.

    All other sections stay byte for byte. Raises MalformedModule where the bytes are no sections.
    """
    kept = [
        wasm[start:end]
        for start, content, end in _sections(wasm)
        if wasm[start] != _CUSTOM or _name_at(wasm, content, end) != SECTION.encode("ascii")
    ]
    name = SECTION.encode("ascii")
    content = _leb128(len(name)) + name + manifest
    section = bytes([_CUSTOM]) + _leb128(len(content)) + content
    return wasm[:_HEADER_BYTES] + b"".join(kept) + section


def _sections(wasm: bytes) -> Iterator[tuple[int, int, int]]:
    """Where each section starts, where its content does, and where it ends."""
    if wasm[:4] != MAGIC or len(wasm) < _HEADER_BYTES:
        raise MalformedModule("it has no header of a WebAssembly module")
    start = _HEADER_BYTES
    while start < len(wasm):
        size, content = _u32(wasm, start + 1, len(wasm))
        end = content + size
        if end > len(wasm):
            raise MalformedModule(f"the section at byte {start} is longer than the module")
        yield start, content, end
        start = end


def _name_at(wasm: bytes, start: int, end: int) -> bytes:
    """A custom section's name."""
    size, content = _u32(wasm, start, end)
    if content + size > end:
        raise MalformedModule(f"the name of the custom section at byte {start} is longer than that")
    return wasm[content : content + size]


def _u32(wasm: bytes, start: int, end: int) -> tuple[int, int]:
    """An unsigned number in LEB128, and where it ends."""
    value = 0
    for index, byte in enumerate(wasm[start : min(end, start + _MOST_BYTES_OF_A_NUMBER)]):
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, start + index + 1
    raise MalformedModule(f"the number at byte {start} has no end")


def _leb128(value: int) -> bytes:
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
