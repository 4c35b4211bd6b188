"""A module as it is sent: as the whole body, or as a part of a form."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import orjson
from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from sgl_router.admin.plugin_schemas import whole_numbers
from sgl_router.admin.replies import bad_request
from sgl_router.admin.upload_budget import UploadShare
from sgl_router.errors import RequestError
from sgl_router.wasm.module import most_bytes

MAX_SETTINGS_BYTES = 128 * 1024
"""Of settings as JSON text: twice what the plugin's `config` may take of it."""

_MODULE, _SETTINGS = b"module", b"settings"

_SMALL_BYTES = 64 * 1024
"""Of a piece; smaller ones are put together, since each takes some memory of its own."""


@dataclass(frozen=True, slots=True)
class Upload:
    """What a client sent.

    Attributes:
        wasm: the module's bytes; neither empty nor more than `most_bytes` of them.
        settings: the JSON object; empty where there was none.
    """

    wasm: bytes
    settings: dict[str, Any]


class _Pieces:
    """Bytes as they come, in pieces that are copied once more, when all are there.

    Attributes:
        size: how many bytes they have.
    """

    def __init__(self) -> None:
        self.size = 0
        self._large: list[bytes] = []
        self._small = bytearray()

    def add(self, piece: bytes) -> None:
        self.size += len(piece)
        if len(piece) < _SMALL_BYTES:
            self._small += piece
            if len(self._small) < _SMALL_BYTES:
                return
            piece = b""
        if self._small:
            self._large.append(bytes(self._small))
            self._small.clear()
        if piece:
            self._large.append(piece)

    def joined(self) -> bytes:
        """All of it; there is nothing left then."""
        if self._small:
            self._large.append(bytes(self._small))
        whole = b"".join(self._large)  # lets go of the GIL where it is large
        self._large.clear()
        self._small.clear()
        return whole


async def read_upload(request: Request, share: UploadShare) -> Upload:
    """The module and its settings, out of the body and the query; `share` covers the body.

    Raises RequestError: 413 where the module is too large, 400 where it cannot be read, 503 where
    too much is being uploaded already.
    """
    share.cover(_declared_bytes(request))
    texts: list[bytes] = [text.encode() for text in _settings_in_query(request)]
    declared, options = parse_options_header(request.headers.get("content-type"))
    media_type = declared.lower()
    if media_type == b"multipart/form-data":
        parts = await _parts(request, share, options.get(b"boundary", b""))
        if _MODULE not in parts:
            raise bad_request(request, "the form has no part module, which is the module's file")
        module = parts[_MODULE]
        if _SETTINGS in parts:
            texts.append(parts[_SETTINGS].joined())
    elif media_type.startswith(b"multipart/"):
        message = f"Content-Type is {media_type.decode('latin-1')!a:.100}; of these, only "
        raise bad_request(request, message + "multipart/form-data is taken")
    else:
        module = _Pieces()
        await _read(request, share, module.add)
    wasm = await asyncio.to_thread(module.joined)  # on the event loop: 20 ms and more
    if not wasm:
        raise bad_request(request, "the module is empty; expected the bytes of a .wasm file")
    if len(wasm) > (most := most_bytes(wasm)):
        message = f"the module has {len(wasm):,} bytes; at most {most:,} are allowed"
        raise RequestError(413, "request_body_too_large", message)
    return Upload(wasm, _settings(request, texts))


def _settings_in_query(request: Request) -> list[str]:
    unknown = sorted({key for key in request.query_params if key != "settings"})
    if unknown:
        message = f"there is no parameter {unknown[0]!a:.100}; expected settings, or none"
        raise bad_request(request, message)
    return request.query_params.getlist("settings")


def _settings(request: Request, texts: list[bytes]) -> dict[str, Any]:
    """The one object; what is said of it never shows a value, which may be a key."""
    if not texts:
        return {}
    if len(texts) > 1:
        raise bad_request(request, f"settings are given {len(texts)} times; expected once")
    if len(texts[0]) > MAX_SETTINGS_BYTES:
        message = f"settings have {len(texts[0]):,} bytes; at most {MAX_SETTINGS_BYTES:,} are taken"
        raise bad_request(request, message)
    try:
        settings = orjson.loads(texts[0])
    except orjson.JSONDecodeError as error:
        raise bad_request(request, f"settings are not JSON: {error}") from error
    if not isinstance(settings, dict):
        message = f"settings are a JSON {type(settings).__name__}; expected an object"
        raise bad_request(request, message)
    return whole_numbers(settings)


def _declared_bytes(request: Request) -> int:
    """How many bytes the client says that it sends; 0 where it does not say."""
    declared = request.headers.get("content-length", "")
    return int(declared) if declared.isascii() and declared.isdigit() else 0


async def _read(request: Request, share: UploadShare, read: Callable[[bytes], None]) -> None:
    """Have the body read as it comes. Raises RequestError (503), and what `read` raises."""
    received = 0
    async for piece in request.stream():
        received += len(piece)
        share.cover(received)
        read(piece)


async def _parts(request: Request, share: UploadShare, boundary: bytes) -> dict[bytes, _Pieces]:
    """The form's parts by their names, read as they come. Raises RequestError."""
    if not boundary:
        raise bad_request(request, "Content-Type has no boundary, which separates a form's parts")
    try:
        form = _Form(boundary)
        await _read(request, share, form.read)
    except FormParserError as error:
        raise bad_request(request, f"the form cannot be read: {error!s:.200}") from error
    if not form.complete:
        raise bad_request(request, "the form is cut off: its last boundary is missing")
    return form.parts


class _Form:
    """A form (RFC 7578) of parts that are known, each of which is there once.

    Attributes:
        parts: their contents, by their names.
        complete: whether the form's end was found.
    """

    def __init__(self, boundary: bytes) -> None:
        """Raises FormParserError where the boundary cannot be one."""
        self.parts: dict[bytes, _Pieces] = {}
        self.complete = False
        self._field = b""
        self._value = b""
        self._disposition = b""
        self._name = b""
        self._content = _Pieces()
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._on_part_begin,
                "on_header_field": self._on_header_field,
                "on_header_value": self._on_header_value,
                "on_header_end": self._on_header_end,
                "on_headers_finished": self._on_headers_finished,
                "on_part_data": self._on_part_data,
                "on_part_end": self._on_part_end,
                "on_end": self._on_end,
            },
        )

    def read(self, piece: bytes) -> None:
        """Raises FormParserError."""
        self._parser.write(piece)

    def _on_part_begin(self) -> None:
        self._disposition = b""
        self._content = _Pieces()

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _on_header_end(self) -> None:
        if self._field.lower() == b"content-disposition":
            self._disposition = self._value
        self._field = self._value = b""

    def _on_headers_finished(self) -> None:
        kind, options = parse_options_header(self._disposition)
        self._name = options.get(b"name", b"")
        if kind.lower() != b"form-data" or self._name not in (_MODULE, _SETTINGS):
            shown = ascii(self._name.decode("latin-1"))
            raise FormParserError(f"it has a part {shown:.80}; expected module and settings")
        if self._name in self.parts:
            raise FormParserError(f"it has two parts {self._name.decode()}; expected one")

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._name == _SETTINGS and self._content.size + end - start > MAX_SETTINGS_BYTES:
            text = f"its settings have more than {MAX_SETTINGS_BYTES:,} bytes, the most that is "
            raise FormParserError(text + "taken")
        self._content.add(data[start:end])

    def _on_part_end(self) -> None:
        self.parts[self._name] = self._content

    def _on_end(self) -> None:
        self.complete = True
