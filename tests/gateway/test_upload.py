"""`Upload`: what is kept of a body, and what an engine is sent of it."""

import pytest

from sgl_router.gateway.upload import REPLAY_BYTES, Upload
from sgl_router.http1.head import LAST_CHUNK, chunk


def pass_on(upload: Upload, *pieces: bytes) -> bytes:
    """Let the pieces come and be sent, one after the other; what the engine got."""
    sent = b""
    for piece in pieces:
        upload.add(piece)
        sent += upload.take()
        upload.forget_sent()
    return sent


def kept(upload: Upload) -> int:
    """Bytes of the body that it holds."""
    return sum(map(len, upload._pieces))


def test_a_body_is_kept_for_another_engine_up_to_a_size() -> None:
    upload = Upload(chunked=False)
    body = pass_on(upload, b"x" * (REPLAY_BYTES - 1), b"y")
    assert (upload.replayable, upload.received, kept(upload)) == (True, len(body), len(body))
    assert upload.take() == b""
    assert upload.take_again() == body == upload.whole()


def test_what_is_too_large_to_be_kept_is_not() -> None:
    """Not a byte of what was sent, before or after; what was not sent stays."""
    upload = Upload(chunked=False)
    pass_on(upload, b"x" * REPLAY_BYTES, b"y")
    assert (upload.replayable, kept(upload)) == (False, 0)
    assert pass_on(upload, *[b"z" * 1000] * 100) == b"z" * 100_000
    assert kept(upload) == 0
    upload.add(b"unsent")
    upload.forget_sent()
    assert (upload.take(), upload.received) == (b"unsent", REPLAY_BYTES + 1 + 100_000 + 6)


@pytest.mark.parametrize("over", [False, True])
def test_chunks_come_to_their_end_at_each_engine(over: bool) -> None:
    upload = Upload(chunked=True)
    upload.add(b"one")
    assert upload.take_again() == chunk(b"one")
    upload.add(b"two")
    upload.over = over
    last = LAST_CHUNK if over else b""
    assert upload.take() == chunk(b"two") + last
    assert upload.take() == b"", "once"
    for _ in range(2):
        assert upload.take_again() == chunk(b"one") + chunk(b"two") + last


def test_chunks_end_alone_where_nothing_came_with_the_end() -> None:
    upload = Upload(chunked=True)
    pass_on(upload, b"all")
    upload.over = True
    assert upload.take() == LAST_CHUNK
    assert Upload(chunked=False).take() == b""
