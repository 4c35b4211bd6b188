"""Texts as the table encoding tells of them: by their hashes, which are xxh3-64."""

from xxhash import xxh3_64, xxh3_64_intdigest

PREFIX_BYTES = 256
"""One more hash for each of so many bytes of text."""

HASH_BYTES = 8


def hash_of(text: str | None) -> int:
    """Of a name; 0 where there is none."""
    return 0 if text is None else xxh3_64_intdigest(text.encode("utf-8", "replace"))


def prefix_hashes(text: bytes) -> bytes:
    """Of the first 256 bytes, of the first 512, and so on."""
    hashed = xxh3_64()
    hashes = bytearray()
    for end in range(PREFIX_BYTES, len(text) + 1, PREFIX_BYTES):
        hashed.update(text[end - PREFIX_BYTES : end])
        hashes += hashed.intdigest().to_bytes(HASH_BYTES, "little")
    return bytes(hashes)


def cut(text: str, limit: int) -> bytes:
    """The text in UTF-8, within `limit` bytes."""
    data = text[:limit].encode("utf-8", "replace")
    if len(data) <= limit:
        return data
    return data[:limit].decode("utf-8", "ignore").encode("utf-8")
