"""A module as it is sent: as the whole body, or as a part of a form."""

from dataclasses import dataclass
from typing import Any

import orjson
from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from sgl_router.admin.plugin_schemas import whole_numbers
from sgl_router.admin.replies import bad_request
from sgl_router.errors import RequestError
from sgl_router.wasm.module import most_bytes

MAX_SETTINGS_BYTES = 128 * 1024
"""Of settings as JSON text: twice what the plugin's `config` may take of it."""

_MODULE, _SETTINGS = b"module", b"settings"


@dataclass(frozen=True, slots=True)
class Upload:
    """What a client sent.

    Attributes:
        wasm: the module's bytes; neither empty nor more than `most_bytes` of them.
        settings: the JSON object; empty where there was none.
    """

    wasm: bytes
    settings: dict[str, Any]


async def read_upload(request: Request) -> Upload:
    """The module and its settings, out of the body and the query.

    Raises RequestError: 413 where the module is too large, 400 where it cannot be read.
    """
    texts: list[bytes] = [text.encode() for text in _settings_in_query(request)]
    declared, options = parse_options_header(request.headers.get("content-type"))
    media_type = declared.lower()
    if media_type == b"multipart/form-data":
        parts = await _parts(request, options.get(b"boundary", b""))
        if _MODULE not in parts:
            raise bad_request(request, "the form has no part module, which is the module's file")
        wasm = parts[_MODULE]
        if _SETTINGS in parts:
            texts.append(parts[_SETTINGS])
    elif media_type.startswith(b"multipart/"):
        message = f"Content-Type is {media_type.decode('latin-1')!a:.100}; of these, only "
        raise bad_request(request, message + "multipart/form-data is taken")
    else:
        wasm = await request.body()
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


async def _parts(request: Request, boundary: bytes) -> dict[bytes, bytes]:
    """The form's parts by their names, read as they come. Raises RequestError."""
    if not boundary:
        raise bad_request(request, "Content-Type has no boundary, which separates a form's parts")
    try:
        form = _Form(boundary)
        async for piece in request.stream():
            form.read(piece)
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
        self.parts: dict[bytes, bytes] = {}
        self.complete = False
        self._field = b""
        self._value = b""
        self._disposition = b""
        self._name = b""
        self._content: list[bytes] = []
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
        self._content = []

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
        self._content.append(data[start:end])

    def _on_part_end(self) -> None:
        self.parts[self._name] = b"".join(self._content)

    def _on_end(self) -> None:
        self.complete = True
