"""Puts a plugin's manifest into its module, byte by byte and without a toolchain.

A core module and a component are alike in this: eight bytes, then sections, each with an id and a
size (WebAssembly core specification, section 5.5.2; component model, Binary.md).
"""

from sgl_router.wasm.binary import MAGIC, MalformedModule, Reader
from sgl_router.wasm.manifest import SECTION

_HEADER_BYTES = 8
_CUSTOM = 0


def with_manifest(wasm: bytes, manifest: bytes) -> bytes:
    """The same module with this manifest at its end, in place of those that it has.

    All other sections stay byte for byte. Raises MalformedModule where the bytes are no sections.
    """
    if wasm[:4] != MAGIC or len(wasm) < _HEADER_BYTES:
        raise MalformedModule("it has no header of a WebAssembly module")
    name = SECTION.encode("ascii")
    kept = []
    reader = Reader(wasm, _HEADER_BYTES, len(wasm))
    while reader.pos < reader.end:
        start = reader.pos
        kind, body = reader.byte(), reader.part(reader.u32())
        if kind != _CUSTOM or body.take(body.u32()) != name:
            kept.append(wasm[start : reader.pos])
    content = _leb128(len(name)) + name + manifest
    section = bytes([_CUSTOM]) + _leb128(len(content)) + content
    return wasm[:_HEADER_BYTES] + b"".join(kept) + section


def _leb128(value: int) -> bytes:
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
