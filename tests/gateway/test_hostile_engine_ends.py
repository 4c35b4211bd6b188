"""Engines that break off, answer too early, or never come to an end."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack
from socket import SHUT_WR, SO_SNDBUF, SOL_SOCKET, create_connection, create_server, socket

import orjson
import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from sgl_router.gateway import gateway, upstream
from tests.gateway.hostile import (
    POST,
    Seen,
    Stage,
    answers,
    inside,
    read_to_end,
    reset,
    saying,
    send,
    staged,
    until,
)
from tests.gateway.support import (
    EngineSocket,
    Request,
    ScriptedEngine,
    answering,
    connected,
    respond,
    running,
    within,
)

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
EVENTS = CHUNKED.replace(b"\r\nT", b"\r\nContent-Type: text/event-stream\r\nT")
EVENT = b'data: {"n": 1}\n\n'

ANSWERS = {
    "length": respond(b"all of it"),
    "chunked": CHUNKED + b"4;x=y\r\nall \r\n5\r\nof it\r\n0\r\nX-Trailer: y\r\n\r\n",
    "interim": b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + respond(b"all of it"),
    "connection": b"HTTP/1.1 200 OK\r\nServer: s\r\n\r\nall of it",
}


@pytest.fixture(scope="module")
async def stage() -> AsyncIterator[Stage]:
    async with staged() as made:
        yield made


async def ask(stage: Stage, *, http10: bool = False) -> tuple[list[Seen], bool]:
    """What a client makes of the answer, and whether its connection was reset."""
    request = POST.replace(b"Host: r\r\n", b"Host: r\r\nConnection: close\r\n")
    async with connected(stage.server) as client:
        await client.send(request.replace(b"HTTP/1.1", b"HTTP/1.0") if http10 else request)
        data, was_reset = await read_to_end(client)
    return answers(data), was_reset


# ---- engines that break off


@pytest.mark.parametrize("end", ["fin", "rst"])
@pytest.mark.parametrize("http10", [False, True], ids=["1.1", "1.0"])
@pytest.mark.parametrize("framing", ANSWERS)
async def test_an_answer_that_breaks_off_anywhere_is_never_complete(
    stage: Stage, framing: str, http10: bool, end: str
) -> None:
    """Whatever byte it breaks off at: the client gets the router's error, or cannot miss the cut.

    A body that lasts until the connection's end is complete wherever that is an orderly one.
    """
    said = ANSWERS[framing]
    begins = said.rindex(b"\r\n\r\n", 0, said.index(b"all")) + 4
    wrong = []
    for cut in range(len(said)):
        stage.says(said[:cut], end=end)
        seen, was_reset = await ask(stage, http10=http10)
        complete = len(seen) == 1 and seen[0].complete and not was_reset
        if complete and seen[0].status == 502:
            if end == "fin":  # a reset may overtake what was sent before it
                code = "call_upstream_protocol_error" if cut else "call_upstream_connect_error"
                assert orjson.loads(seen[0].body)["error"]["code"] == code
            continue
        if framing == "connection" and cut >= begins and end == "fin":
            assert complete and seen[0].body == said[begins:cut]
        elif complete:
            wrong.append((cut, seen))
        assert all(b"all of it".startswith(answer.body) for answer in seen)
    assert wrong == []
    stage.says(said)
    (whole,), _ = await ask(stage, http10=http10)
    assert whole.complete and whole.body == b"all of it"


@pytest.mark.parametrize("end", ["fin", "rst"])
async def test_a_stream_of_events_that_breaks_off_anywhere_ends_with_an_error(
    stage: Stage, end: str
) -> None:
    said = EVENTS + b"".join(b"%x\r\n%b\r\n" % (len(EVENT), EVENT) for _ in range(2))
    for cut in range(len(said)):
        stage.says(said[:cut], end=end)
        (seen,), was_reset = await ask(stage)
        assert seen.complete and not was_reset
        if cut < len(EVENTS):
            assert seen.status == 502
            continue
        assert seen.status == 200 and b"[DONE]" not in seen.body
        *before, last = seen.body.removesuffix(b"\n\n").split(b"\n\n")
        assert (
            orjson.loads(last.strip(b"\n").removeprefix(b"data: "))["error"]["type"]
            == "server_error"
        )
        got = b"\n\n".join(before).strip(b"\n")
        assert (EVENT * 2).startswith(got)


@pytest.mark.parametrize("end", ["fin", "rst"])
async def test_a_connection_that_closes_without_a_byte(stage: Stage, end: str) -> None:
    """It is tried on no other worker, as there is none; the client gets an error."""
    stage.says(end=end)
    (seen,), _ = await ask(stage)
    assert (seen.status, seen.complete) == (502, True)
    assert stage.engine.connections == 1


# ---- whatever an engine says

PIECES = st.one_of(
    st.sampled_from(
        [
            *(b"HTTP/1.1 200 OK\r\n", b"HTTP/1.0 200 OK\r\n", b"HTTP/1.1 100 Continue\r\n"),
            *(b"HTTP/1.1 204 No\r\n", b"Content-Length: 4\r\n", b"Content-Length: 0\r\n"),
            *(b"Transfer-Encoding: chunked\r\n", b"Connection: close\r\n", b"X: y\r\n"),
            *(b"\r\n", b"4\r\n", b"good", b"0\r\n", b"a;b\r\n", b"\n", b"\r", b" ", b"\x00"),
        ]
    ),
    st.binary(max_size=3),
)


@st.composite
def sayings(draw: st.DrawFn) -> bytes:
    """An answer, or pieces of some, with something put in, taken out or repeated."""
    whole = draw(st.sampled_from([*ANSWERS.values(), b"".join(draw(st.lists(PIECES)))]))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(whole)))
        to = draw(st.integers(at, len(whole)))
        whole = draw(
            st.sampled_from(
                [
                    whole[:at] + draw(PIECES) + whole[at:],
                    whole[:at] + whole[to:],
                    whole + whole[at:],
                ]
            )
        )
    return whole


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    """A loop for tests that are not coroutines themselves, as Hypothesis needs them."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as made:
        yield made


def test_a_client_never_sees_another_answer_than_the_engines(runner: asyncio.Runner) -> None:
    """What it takes for a complete answer is what another reader finds in the engine's bytes."""

    async def seen_through(stage: Stage, said: bytes, bytewise: bool) -> list[Seen]:
        stage.says(said, bytewise=bytewise)
        return (await ask(stage))[0]

    exits = AsyncExitStack()
    stage = runner.run(exits.enter_async_context(staged()))

    @settings(max_examples=400)
    @given(sayings(), st.booleans())
    def law(said: bytes, bytewise: bool) -> None:
        seen = runner.run(seen_through(stage, said, bytewise))
        assert len(seen) == 1, "one request has one answer"
        if seen[0].complete and seen[0].status != 502:
            first = answers(said, alone=False)[0]
            assert first.complete
            assert (seen[0].status, seen[0].body) == (first.status, first.body)

    try:
        law()
    finally:
        runner.run(exits.aclose())


# ---- answers that come early


@pytest.mark.parametrize("end", ["fin", "rst", "wait"])
@pytest.mark.parametrize("chunked", [False, True])
async def test_an_answer_to_half_a_request(stage: Stage, chunked: bool, end: str) -> None:
    """It is passed on; what is left of the body is not taken for the engine's next request."""

    async def script(socket: EngineSocket) -> None:
        await socket.reader.readuntil(b"half")
        await send(socket.writer, respond(b"enough", 413))
        if end == "rst":
            reset(socket.writer)
        elif end == "wait":
            assert b"/v1/next" not in await socket.reader.read()

    stage.plays(script)
    head = b"POST /v1/x HTTP/1.1\r\nHost: r\r\n"
    framing = (
        b"Transfer-Encoding: chunked\r\n\r\n4\r\n" if chunked else b"Content-Length: 8\r\n\r\n"
    )
    async with connected(stage.server) as client:
        await client.send(head + framing + b"half")
        response = await client.response()
        assert (response.status, response.body) == (413, b"enough")
        stage.plays(saying(respond(b"next"), end="wait"))
        await client.send(b"\r\n4\r\nrest\r\n0\r\n\r\n" if chunked else b"rest")
        assert (await client.ask(b"GET", b"/v1/next")).body == b"next"


async def test_an_answer_that_goes_on_beside_its_request(stage: Stage) -> None:
    """Each piece of the body is answered as it comes: both directions are open at once."""

    async def echo(socket: EngineSocket) -> None:
        await socket.reader.readuntil(b"\r\n\r\n")
        await socket.send(CHUNKED)
        for _ in range(5):
            piece = await socket.reader.readexactly(6)
            await socket.send(b"6\r\n%b\r\n" % piece)
        await socket.send(b"0\r\n\r\n")

    stage.plays(echo)
    async with connected(stage.server) as client:
        await client.send(b"POST /v1/x HTTP/1.1\r\nHost: r\r\nContent-Length: 30\r\n\r\n")
        for number in range(5):
            piece = b"piece%d" % number
            await client.send(piece)
            await within(client.reader.readuntil(piece))
        assert await within(client.reader.readuntil(b"0\r\n\r\n"))
        stage.plays(answering(respond(b"next")))
        assert (await client.post()).body == b"next"


async def test_a_body_goes_wrong_when_its_answer_has_begun(stage: Stage) -> None:
    """The answer ends with an error, and what follows the fault is not read as a request."""
    stage.plays(_answering_at_once)
    async with connected(stage.server) as client:
        await client.send(b"POST /v1/x HTTP/1.1\r\nHost: r\r\nTransfer-Encoding: chunked\r\n\r\n")
        await within(client.reader.readuntil(EVENT))
        await client.send(b"oops\r\nGET /v1/hidden HTTP/1.1\r\nHost: r\r\n\r\n")
        rest, _ = await read_to_end(client)
    assert b'"error"' in rest and b"HTTP/1.1" not in rest
    await until(lambda: not inside(stage.server).requests)
    assert stage.engine.connections == 1


async def _answering_at_once(socket: EngineSocket) -> None:
    await socket.reader.readuntil(b"\r\n\r\n")
    await socket.send(EVENTS + b"%x\r\n%b\r\n" % (len(EVENT), EVENT))
    await socket.reader.read()


async def test_an_engine_that_is_full_and_declines_holds_nobody_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It takes no more of the body, says 503, and another one gets all of it."""
    body = b"x" * 900_000
    held = asyncio.Event()
    made = upstream.EngineConnection.connection_made

    def with_little_room(self: upstream.EngineConnection, transport: asyncio.BaseTransport) -> None:
        if self.worker.url == full.url:
            transport.get_extra_info("socket").setsockopt(SOL_SOCKET, SO_SNDBUF, 4096)
        made(self, transport)

    def pause_writing(self: upstream.EngineConnection) -> None:
        pause(self)
        held.set()

    pause = upstream.EngineConnection.pause_writing
    monkeypatch.setattr(upstream.EngineConnection, "connection_made", with_little_room)
    monkeypatch.setattr(upstream.EngineConnection, "pause_writing", pause_writing)

    async def declines(socket: EngineSocket) -> None:
        await socket.reader.readuntil(b"\r\n\r\n")
        await within(held.wait())
        await socket.send(respond(b"", 503))
        await within(done.wait())

    seen: list[Request] = []
    done = asyncio.Event()
    async with (
        ScriptedEngine(declines) as full,
        ScriptedEngine(answering(respond(b"taken"), seen)) as free,
        running(full.url, free.url) as server,
        connected(server) as client,
    ):
        head = b"POST /v1/x HTTP/1.1\r\nHost: r\r\nContent-Length: %d\r\n\r\n" % len(body)
        sending = asyncio.ensure_future(client.send(head + body))
        assert (await client.response()).body == b"taken"
        await within(sending)
        done.set()
    assert [request.body for request in seen] == [body]


async def test_an_engine_that_speaks_first(stage: Stage) -> None:
    """A server of another protocol, which greets: its greeting is no answer."""

    async def greets(socket: EngineSocket) -> None:
        await socket.send(b"220 mail.example.com ESMTP\r\n")
        await socket.reader.read()

    stage.plays(greets)
    (seen,), _ = await ask(stage)
    assert seen.status == 502


# ---- engines that do not come to an end


async def test_a_head_that_trickles_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes of a head are no answer: what limits the time to its first byte limits this."""
    monkeypatch.setattr(gateway, "SWEEP_SECS", 0.01)
    closed = asyncio.Event()

    async def trickles(socket: EngineSocket) -> None:
        await socket.request()
        try:
            await socket.send(b"HTTP/1.1 200 OK\r\nX: ")
            while not socket.writer.is_closing():
                await send(socket.writer, b"y")
                await asyncio.sleep(0.001)
        finally:
            closed.set()

    async with (
        ScriptedEngine(trickles) as engine,
        ScriptedEngine(trickles) as other,
        running(engine.url, other.url, first_byte_timeout_secs=0.05) as server,
        connected(server) as client,
    ):
        response = await client.post()
        assert response.status == 504
        await within(closed.wait())
        assert engine.connections + other.connections == 1


@pytest.mark.parametrize(
    "answer", [EVENTS + b"%x\r\n%b\r\n" % (len(EVENT), EVENT), respond(b"x")[:-1]]
)
async def test_an_answer_that_stands_still(answer: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway, "SWEEP_SECS", 0.01)
    async with staged(stream_idle_timeout_secs=0.05) as stage:
        stage.says(answer, end="wait")
        (seen,), _ = await ask(stage)
    if answer.startswith(EVENTS):
        assert seen.complete and b'"call_upstream_timeout"' in seen.body
    else:
        assert not seen.complete


@pytest.mark.parametrize("unasked", [respond(b"evil"), b""], ids=["an answer", "the end"])
async def test_a_connection_is_not_used_on_which_something_has_come(unasked: bytes) -> None:
    """Also where the loop has not read it yet: it would be taken for the next client's answer."""
    loop = asyncio.get_running_loop()
    with create_server(("127.0.0.1", 0)) as listener, ExitStack() as stack:
        listener.setblocking(False)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        async with running(url) as server:
            client = stack.enter_context(create_connection(("127.0.0.1", server.port)))
            client.setblocking(False)
            client.send(POST)
            first = stack.enter_context(await answered(listener, b"one"))
            assert (await within(loop.sock_recv(client, 65_536))).endswith(b"one")
            client.send(POST)  # both are there when the loop looks again
            if unasked:
                first.send(unasked)
            else:
                first.shutdown(SHUT_WR)
            stack.enter_context(await answered(listener, b"two"))
            assert (await within(loop.sock_recv(client, 65_536))).endswith(b"two")


async def answered(listener: socket, body: bytes) -> socket:
    """An engine's next connection, on which one request has been answered."""
    loop = asyncio.get_running_loop()
    engine, _ = await within(loop.sock_accept(listener))
    assert await within(loop.sock_recv(engine, 65_536))
    await loop.sock_sendall(engine, respond(body))
    return engine
