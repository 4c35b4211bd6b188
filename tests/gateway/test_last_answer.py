"""Requests that are refused before they are complete: one answer, and nothing after it."""

import logging

import pytest

from tests.gateway.hostile import answers, read_to_end
from tests.gateway.support import connected, running

UPLOAD = (
    b"PATCH /v1/chat/completions HTTP/1.1\r\nHost: r\r\nExpect: 100-continue\r\n"
    b"Content-Length: 2\r\n\r\n{}"
)


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /v1/chat/completions HTTP/1.1\r\nHost: r\r\nConnection: close\r\n\r\nX",
        UPLOAD + b"\x00",
        UPLOAD + b"GARBAGE\r\n",
        UPLOAD + UPLOAD,
    ],
    ids=["a byte", "a zero", "a line", "another request"],
)
async def test_nothing_is_written_after_the_last_answer(
    sent: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        async with running() as server, connected(server) as client, connected(server) as other:
            await client.send(sent)
            got, reset = await read_to_end(client)
            metrics = (await other.ask(b"GET", b"/metrics")).body
    (answer,) = answers(got)
    assert (answer.status, answer.complete, reset) == (405, True, False)
    assert not caplog.records
    counted = [
        line for line in metrics.splitlines() if line.startswith(b"sgl_router_errors_total{")
    ]
    assert [line.rpartition(b" ")[2] for line in counted] == [b"1.0"]


@pytest.mark.parametrize("path", [b"/generate", b"/v1/chat/completions"])
@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"PUT", b"DELETE"])
async def test_a_method_that_is_refused_is_told_the_one_that_is_not(
    method: bytes, path: bytes
) -> None:
    async with running() as server, connected(server) as client:
        answer = await client.ask(method, path)
        assert (answer.status, answer.get(b"allow")) == (405, [b"POST"])
