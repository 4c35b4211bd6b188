"""What the callbacks of one turn of the loop write goes out at its end: all of it, in order."""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgl_router.gateway.connection import LARGE_BYTES, Connection, Outbox


class Wire:
    """A transport that remembers what it was asked for."""

    def __init__(self) -> None:
        self.calls: list[bytes] = []
        self.taken = b""
        self.closed = False
        self.raises = False

    def write(self, data: bytes) -> None:
        self.writelines([data])

    def writelines(self, pieces: list[bytes]) -> None:
        if self.raises:
            raise RuntimeError("no more")
        assert not self.closed, "nothing is written to a connection that is closed"
        self.calls.append(b"".join(pieces))
        self.taken += self.calls[-1]

    def get_write_buffer_size(self) -> int:
        return 0

    def close(self) -> None:
        self.closed = True

    abort = close


class Turn:
    """An event loop of which the test ends the turns."""

    def __init__(self) -> None:
        self.scheduled: list[Callable[[], None]] = []

    def call_soon(self, callback: Callable[[], None]) -> None:
        self.scheduled.append(callback)

    def end(self) -> None:
        scheduled, self.scheduled = self.scheduled, []
        for callback in scheduled:
            callback()


def connected(outbox: Outbox) -> tuple[Connection, Wire]:
    connection, wire = Connection(outbox), Wire()
    connection.connection_made(cast(asyncio.Transport, wire))
    return connection, wire


@pytest.fixture
def turn() -> Turn:
    return Turn()


@pytest.fixture
def outbox(turn: Turn) -> Outbox:
    return Outbox(cast(asyncio.AbstractEventLoop, turn))


def test_one_write_for_each_connection(turn: Turn, outbox: Outbox) -> None:
    connections = [connected(outbox) for _ in range(3)]
    for data in (b"first ", b"second"):
        for connection, _ in connections:
            connection.write(data)
    assert not any(wire.calls for _, wire in connections)
    assert len(turn.scheduled) == 1, "once for the turn, not for each"
    turn.end()
    assert [wire.calls for _, wire in connections] == [[b"first second"]] * 3
    assert not turn.scheduled


def test_what_is_sent_at_once_comes_after_what_waits(turn: Turn, outbox: Outbox) -> None:
    connection, wire = connected(outbox)
    connection.write_at_once(b"one ")
    connection.write(b"two ")
    connection.write_at_once(b"three")
    assert wire.calls == [b"one ", b"two three"]
    turn.end()
    assert wire.taken == b"one two three"


def test_what_is_large_is_not_kept(turn: Turn, outbox: Outbox) -> None:
    connection, wire = connected(outbox)
    connection.write(b"head")
    connection.write(b"x" * LARGE_BYTES)
    assert wire.taken == b"head" + b"x" * LARGE_BYTES
    connection.write(b"tail")
    turn.end()
    assert wire.taken.endswith(b"tail")


def test_a_slow_turn_does_not_hold_back_what_came_before(
    turn: Turn, outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    (early, early_wire), (late, late_wire) = connected(outbox), connected(outbox)
    early.write(b"early")
    now = 1.0
    late.write(b"late")
    assert (early_wire.taken, late_wire.taken) == (b"early", b"late")
    early.write(b" again")
    turn.end()
    assert early_wire.taken == b"early again"


def test_closing_comes_after_what_was_written(turn: Turn, outbox: Outbox) -> None:
    connection, wire = connected(outbox)
    connection.write(b"last words")
    assert connection.unsent == 10
    connection.close()
    assert (wire.taken, wire.closed, connection.unsent) == (b"last words", True, 0)
    turn.end()


@pytest.mark.parametrize("end", [Connection.abort, lambda c: c.connection_lost(None)])
def test_nothing_is_written_to_a_connection_that_is_gone(
    turn: Turn, outbox: Outbox, end: Callable[[Connection], None]
) -> None:
    connection, wire = connected(outbox)
    connection.write(b"too late")
    end(connection)
    turn.end()
    assert wire.taken == b""


def test_one_that_cannot_be_written_to_does_not_cost_the_others(
    turn: Turn, outbox: Outbox, caplog: pytest.LogCaptureFixture
) -> None:
    (broken, broken_wire), (sound, sound_wire) = connected(outbox), connected(outbox)
    broken_wire.raises = True
    broken.write(b"lost")
    sound.write(b"kept")
    with caplog.at_level(logging.ERROR):
        turn.end()
    assert broken_wire.closed
    assert sound_wire.taken == b"kept"
    assert "no more" in caplog.text


@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.integers(0, 2), st.sampled_from([1, 2, LARGE_BYTES]), st.booleans()),
            st.sampled_from(["end of turn", "slow", "write out"]),
        ),
        max_size=40,
    )
)
def test_every_byte_goes_out_once_and_in_order(steps: list[tuple[int, int, bool] | str]) -> None:
    turn, now, number = Turn(), 0.0, 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "perf_counter", lambda: now)
        outbox = Outbox(cast(asyncio.AbstractEventLoop, turn))
        connections = [connected(outbox) for _ in range(3)]
        sent = [b"", b"", b""]
        for step in steps:
            if step == "end of turn":
                turn.end()
            elif step == "slow":
                now += 1
            elif step == "write out":
                connections[number % 3][0].write_out()
            else:
                which, size, at_once = cast(tuple[int, int, bool], step)
                number += 1
                data = bytes([number % 256]) * size
                connection = connections[which][0]
                (connection.write_at_once if at_once else connection.write)(data)
                sent[which] += data
        turn.end()
    assert [wire.taken for _, wire in connections] == sent
