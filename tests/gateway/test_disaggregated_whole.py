"""Requests that have no two halves: a decode engine makes the whole answer."""

import pytest

from tests.gateway.pairs import ENGINES, PREFILLED, decoding, pairs
from tests.gateway.support import Request, answering, free_url, respond

MULTIPART = (
    b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
    b"RIFF\x00\xff\x00}\r\n--b--\r\n"
)


@ENGINES
@pytest.mark.parametrize(
    ("method", "path", "body", "kind"),
    [
        (b"POST", b"/tokenize", b'{"prompt":  "a"}', b"application/json"),
        (b"POST", b"/v1/embeddings", b'{"input": ["a", "b"],  "model": "m"}', b"application/json"),
        (b"GET", b"/v1/models/x", b"", b""),
        (b"GET", b"/v1/responses/x", b"", b""),
        (b"POST", b"/v1/audio/transcriptions", MULTIPART, b"multipart/form-data; boundary=b"),
    ],
)
async def test_they_go_whole_to_a_decode_engine(
    pd_engine: str, method: bytes, path: bytes, body: bytes, kind: bytes
) -> None:
    prefilled: list[Request] = []
    decoded: list[Request] = []
    async with pairs(
        [answering(respond(PREFILLED), prefilled)], [decoding(decoded)], pd_engine=pd_engine
    ) as (_, client):
        for _ in range(2):
            line = b"Content-Type: %b\r\n" % kind if kind else b""
            answer = await client.ask(method, path, body, line)
            assert (answer.status, answer.body) == (200, b"decoded")
    assert not prefilled
    for request in decoded:
        assert (request.head.method, request.head.path) == (method, path.decode())
        assert request.body == body
        assert request.head.get(b"content-type") == (kind or None)
    assert len(decoded) == 2


@ENGINES
async def test_they_need_no_prefill_engine(pd_engine: str) -> None:
    async with pairs([free_url()], [decoding()], pd_engine=pd_engine) as (_, client):
        assert (await client.post(b"/v1/embeddings", b'{"input": "a"}')).body == b"decoded"


@ENGINES
async def test_an_object_that_is_empty_has_no_halves_either(pd_engine: str) -> None:
    seen: list[Request] = []
    async with pairs(
        [answering(respond(PREFILLED), seen)], [decoding(seen)], pd_engine=pd_engine
    ) as (_, client):
        answer = await client.post(b"/generate", b"{}")
        assert (answer.status, answer.error_code) == (400, "invalid_json")
    assert not seen
