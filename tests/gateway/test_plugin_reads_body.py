"""A plugin that reads the body, as one does unless its manifest declines, routes real requests.

It gives a request to the second worker where the body's model is `~`. That stands at the body's
end, so that no part of a body will do in place of all of it.
"""

import asyncio
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import orjson
import pytest

from sgl_router.gateway.upload import REPLAY_BYTES
from sgl_router.wasm.manifest import SECTION
from tests.gateway.inside import admission
from tests.gateway.support import (
    Client,
    EngineSocket,
    Placements,
    Request,
    ScriptedEngine,
    answering,
    connected,
    respond,
    running,
    settle,
    until,
    within,
)
from tests.wasm.guests import ANSWER_AT, ONE_PAGE, guest, text_at

SECOND_AT = 2048
MARK = "~"
LARGE = REPLAY_BYTES + REPLAY_BYTES // 2
"""More than is kept of a body that is passed on as it arrives."""

PIECE_BYTES = 100_000


def marked(memory: str = ONE_PAGE, needs: Sequence[str] = ()) -> bytes:
    """A plugin that chooses the second worker where there is the mark in its input."""
    return guest(
        select_worker=f"""
          (local $end i32) (local.set $end (i32.add (local.get $ptr) (local.get $len)))
          (block $nowhere (loop $next
            (br_if $nowhere (i32.ge_u (local.get $ptr) (local.get $end)))
            (if (i32.eq (i32.load8_u (local.get $ptr)) (i32.const {ord(MARK)}))
              (then (return (i32.const {SECOND_AT}))))
            (local.set $ptr (i32.add (local.get $ptr) (i32.const 1)))
            (br $next)))
          (i32.const {ANSWER_AT})""",
        extra=text_at(SECOND_AT, '{"selected_worker": 1}'),
        memory=memory,
        sections={SECTION: orjson.dumps({"needs": needs})},
    )


@pytest.fixture
def reader(tmp_path: Path) -> str:
    """The plugin's path."""
    path = tmp_path / "reader.wasm"
    path.write_bytes(marked())
    return str(path)


def body_of(size: int, model: str) -> bytes:
    """A chat request of about `size` bytes whose model comes last."""
    body = {"messages": [{"role": "user", "content": "x" * size}], "model": model}
    return orjson.dumps(body)


def framed(body: bytes, *, chunked: bool) -> tuple[bytes, list[bytes]]:
    """A request's head, and its body as it is sent, in pieces."""
    pieces = [body[i : i + PIECE_BYTES] for i in range(0, len(body), PIECE_BYTES)]
    framing = b"Content-Length: %d" % len(body)
    if chunked:
        framing = b"Transfer-Encoding: chunked"
        pieces = [b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces]
        pieces[-1] += b"0\r\n\r\n"
    return b"POST /v1/chat/completions HTTP/1.1\r\nHost: r\r\n%b\r\n\r\n" % framing, pieces


async def send(client: Client, body: bytes, *, chunked: bool) -> None:
    head, pieces = framed(body, chunked=chunked)
    for piece in (head, *pieces):
        await client.send(piece)


@pytest.mark.parametrize("chunked", [False, True], ids=["with its length", "chunked"])
@pytest.mark.parametrize("size", [10, LARGE])
async def test_it_decides_by_all_of_the_body(reader: str, size: int, chunked: bool) -> None:
    """One connection, several requests: each goes where its own body says, as it came."""
    first, second, placements = list[Request](), list[Request](), Placements()
    async with (
        ScriptedEngine(answering(respond(b"first"), first)) as one,
        ScriptedEngine(answering(respond(b"second"), second)) as two,
        running(one.url, two.url, policy=reader, placements=placements) as server,
        connected(server) as client,
    ):
        for model in ("m", MARK, MARK, "m"):
            await send(client, body_of(size, model), chunked=chunked)
            assert (await client.response()).body == (b"first" if model == "m" else b"second")
    assert [request.body for request in first] == [body_of(size, "m")] * 2
    assert [request.body for request in second] == [body_of(size, MARK)] * 2
    for request in first + second:
        assert request.head.chunked == chunked
        assert request.head.content_length == (None if chunked else len(request.body))
    assert [decision.failure for decision, _ in placements.done] == [None] * 4


@pytest.mark.parametrize("chunked", [False, True], ids=["with its length", "chunked"])
async def test_no_engine_hears_of_a_request_before_its_end(reader: str, chunked: bool) -> None:
    body = body_of(LARGE, MARK)
    head, pieces = framed(body, chunked=chunked)
    async with (
        ScriptedEngine(answering(respond(b"first"))) as one,
        ScriptedEngine(answering(respond(b"second"))) as two,
        running(one.url, two.url, policy=reader) as server,
        connected(server) as client,
        connected(server) as other,
    ):
        await client.send(head)
        for piece in pieces[:-1]:
            await client.send(piece)
        await client.send(pieces[-1][:-1])
        # A whole request of another client's is served meanwhile.
        await send(other, body_of(10, "m"), chunked=chunked)
        assert (await other.response()).body == b"first"
        await settle()
        assert (one.connections, two.connections) == (1, 0)
        await client.send(pieces[-1][-1:])
        assert (await client.response()).body == b"second"


async def test_a_request_without_a_body(reader: str) -> None:
    async with (
        ScriptedEngine(answering(respond(b"first"))) as one,
        ScriptedEngine(answering(respond(b"second"))) as two,
        running(one.url, two.url, policy=reader) as server,
        connected(server) as client,
    ):
        assert (await client.ask(b"GET", b"/v1/files")).body == b"first"
        assert (await client.ask(b"GET", b"/v1/~")).body == b"second", "by its path"


@pytest.mark.parametrize("chunked", [False, True], ids=["with its length", "chunked"])
@pytest.mark.parametrize("refusal", [b"", respond(b"busy", status=503)], ids=["closed", "503"])
async def test_a_large_body_is_sent_to_another_worker(
    reader: str, refusal: bytes, chunked: bool
) -> None:
    """All of it, as it is held anyway; what is passed on as it arrives is kept up to 1 MiB only."""
    seen: list[Request] = []

    async def refuses(socket: EngineSocket) -> None:
        request = await socket.request()
        assert request is not None
        seen.append(request)
        if refusal:
            await socket.send(refusal)

    async with (
        ScriptedEngine(answering(respond(b"first"), seen)) as one,
        ScriptedEngine(refuses) as two,
        running(one.url, two.url, policy=reader, retry_initial_backoff_ms=1) as server,
        connected(server) as client,
    ):
        await send(client, body_of(LARGE, MARK), chunked=chunked)
        # Asked again, it chooses the second one, which was tried; its fallback has the first left.
        assert (await client.response()).body == b"first"
    assert [request.body for request in seen] == [body_of(LARGE, MARK)] * 2
    assert [request.head.chunked for request in seen] == [chunked] * 2


async def test_a_client_that_leaves_within_its_body(reader: str) -> None:
    placements = Placements()
    async with (
        ScriptedEngine(answering(respond())) as one,
        running(one.url, policy=reader, placements=placements) as server,
    ):
        async with connected(server) as client:
            head, pieces = framed(body_of(LARGE, MARK), chunked=False)
            await client.send(head + pieces[0])
        await settle()
        async with connected(server) as client:
            await send(client, body_of(10, "m"), chunked=False)
            assert (await client.response()).status == 200
        assert one.connections == 1
    assert len(placements.done) == 1


@pytest.mark.parametrize("chunked", [False, True], ids=["with its length", "chunked"])
async def test_a_body_that_is_too_large(reader: str, chunked: bool) -> None:
    async with (
        ScriptedEngine(answering(respond())) as one,
        running(one.url, policy=reader, max_payload_size=PIECE_BYTES) as server,
        connected(server) as client,
    ):
        head, pieces = framed(body_of(LARGE, MARK), chunked=chunked)
        await client.send(head + pieces[0] + pieces[1])
        assert (await client.response()).status == 413
        assert one.connections == 0


@pytest.mark.parametrize("chunked", [False, True], ids=["with its length", "chunked"])
async def test_a_turn_that_comes_before_the_end_of_the_body(reader: str, chunked: bool) -> None:
    """Under a cap: who is admitted within its body is placed at the body's end, by all of it."""
    release = asyncio.Event()

    async def slow(socket: EngineSocket) -> None:
        while await socket.request() is not None:
            await within(release.wait())
            await socket.send(respond(b"first"))

    head, pieces = framed(body_of(LARGE, MARK), chunked=chunked)
    async with (
        ScriptedEngine(slow) as one,
        ScriptedEngine(answering(respond(b"second"))) as two,
        running(one.url, two.url, policy=reader, max_concurrent_requests=1) as server,
        connected(server) as busy,
        connected(server) as client,
    ):
        await send(busy, body_of(10, "m"), chunked=chunked)
        await until(lambda: admission(server) == (1, 0))
        await client.send(head + pieces[0])
        await until(lambda: admission(server) == (1, 1))
        release.set()
        assert (await busy.response()).body == b"first"
        await until(lambda: admission(server) == (1, 0))
        for piece in pieces[1:-1]:
            await client.send(piece)
        await settle()
        assert (one.connections, two.connections) == (1, 0)
        await client.send(pieces[-1])
        assert (await client.response()).body == b"second"


async def test_a_plugin_that_comes_into_use_before_a_retry_reads_the_body(reader: str) -> None:
    """The request was passed on as it came, by a policy that does not read it."""
    swapped, placements = asyncio.Event(), Placements()

    async def busy(socket: EngineSocket) -> None:
        await socket.request()
        await within(swapped.wait())
        await socket.send(respond(b"busy", status=503))

    async with (
        ScriptedEngine(answering(respond(b"first"))) as one,
        ScriptedEngine(answering(respond(b"second"))) as two,
        ScriptedEngine(busy) as three,
        running(
            one.url,
            two.url,
            three.url,
            policy=reader,
            placements=placements,
            retry_initial_backoff_ms=1,
        ) as server,
        connected(server) as client,
    ):
        await server.use_policy("round_robin")
        for first in (b"first", b"second"):
            assert (await client.post(body=body_of(10, MARK))).body == first
        await send(client, body_of(10, MARK), chunked=False)
        await until(lambda: three.connections)
        await server.use_policy("reader")
        swapped.set()
        assert (await client.response()).body == b"second"
    assert [decision.failure for decision, _ in placements.done] == [None] * 4


async def test_many_at_once(reader: str) -> None:
    """Bodies of many clients that come in turns are not mixed up."""
    placements = Placements()

    async def echo(socket: EngineSocket) -> None:
        while (request := await socket.request()) is not None:
            await socket.send(respond(request.body))

    async with (
        ScriptedEngine(echo) as one,
        ScriptedEngine(echo) as two,
        running(one.url, two.url, policy=reader, placements=placements) as server,
    ):

        async def ask(number: int) -> None:
            model = MARK if number % 3 == 0 else "m"
            body = body_of(1000 + number * 10_000, f"{model}{number}")
            head, pieces = framed(body, chunked=number % 2 == 0)
            async with connected(server) as client:
                for piece in (head, *pieces):
                    half = len(piece) // 2
                    for part in (piece[:half], piece[half:]):
                        await client.send(part)
                        await asyncio.sleep(0)
                assert (await client.response()).body == body

        await within(asyncio.gather(*map(ask, range(30))))
        placed = Counter(decision.worker.url for decision, _ in placements.done)
        assert placed == {one.url: 20, two.url: 10}


@pytest.mark.parametrize("chunked", [False, True], ids=["with its length", "chunked"])
async def test_one_that_asks_for_the_text_gets_it(tmp_path: Path, chunked: bool) -> None:
    """Of a text of more than 1 MB the beginning, which is where the mark is in the second one."""
    path = tmp_path / "texts.wasm"
    path.write_bytes(marked(memory='(memory (export "memory") 2)', needs=["request_text"]))
    placements = Placements()
    async with (
        ScriptedEngine(answering(respond(b"first"))) as one,
        ScriptedEngine(answering(respond(b"second"))) as two,
        running(one.url, two.url, policy=str(path), placements=placements) as server,
        connected(server) as client,
    ):
        for prompt, served_by in (("x", b"first"), (MARK, b"second")):
            body = orjson.dumps({"prompt": prompt + "x" * LARGE, "model": "m"})
            await send(client, body, chunked=chunked)
            assert (await client.response()).body == served_by
    assert [decision.failure for decision, _ in placements.done] == [None] * 2
