"""Worker URLs: what is accepted, what is made of them, what is refused."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sgl_router.core.worker import Health, Worker
from sgl_router.errors import ConfigError


@pytest.mark.parametrize(
    ("url", "host", "port", "authority", "prefix"),
    [
        ("http://engine:8000", "engine", 8000, b"engine:8000", b""),
        ("http://engine", "engine", 80, b"engine", b""),
        ("http://10.0.0.7:30000", "10.0.0.7", 30000, b"10.0.0.7:30000", b""),
        ("http://[::1]:8000", "::1", 8000, b"[::1]:8000", b""),
        ("http://[fe80::2]", "fe80::2", 80, b"[fe80::2]", b""),
        ("http://engine:8000/a/b", "engine", 8000, b"engine:8000", b"/a/b"),
        ("http://engine:8000/a%20b", "engine", 8000, b"engine:8000", b"/a%20b"),
        ("http://engine:65535", "engine", 65535, b"engine:65535", b""),
    ],
)
def test_parts(url: str, host: str, port: int, authority: bytes, prefix: bytes) -> None:
    worker = Worker(url)
    assert worker.url == url
    assert (worker.host, worker.port) == (host, port)
    assert (worker.authority, worker.prefix) == (authority, prefix)


@pytest.mark.parametrize(
    ("given_url", "url"),
    [
        ("http://engine:8000/", "http://engine:8000"),
        ("http://engine:8000//", "http://engine:8000"),
        ("http://engine:8000/a/", "http://engine:8000/a"),
    ],
)
def test_a_trailing_slash_makes_no_difference(given_url: str, url: str) -> None:
    with_slash, without = Worker(given_url), Worker(url)
    assert with_slash.url == without.url == url
    assert with_slash.id == without.id
    assert with_slash.prefix == without.prefix


@pytest.mark.parametrize(
    "url",
    [
        "",
        "engine:8000",
        "//engine:8000",
        "http:engine",
        "http://",
        "http://:8000",
        "http:///v1",
        "https://engine:8000",
        "grpc://engine:8000",
        "http://user@engine",
        "http://user:secret@engine",
        "http://:secret@engine",
        "http://@engine",
        "http://engine/?a=b",
        "http://engine?",
        "http://engine#part",
        "http://engine#",
        "http://engine:8000/a b",
        " http://engine",
        "http://engine ",
        "http://engine\r\nX: y",
        "http://engine/\ta",
        "http://engine/\x00",
        "http://engine/\x7f",
        "http://bücher:8000",
        "http://engine/ü",
        "http://engine:port",
        "http://engine:80:90",
        "http://engine:-1",
        "http://engine:+80",
        "http://engine:0",
        "http://engine:65536",
        "http://[::1",
        "http://::1:8000",
    ],
)
def test_refused(url: str) -> None:
    with pytest.raises(ConfigError):
        Worker(url)


@settings(deadline=None)
@given(st.text(max_size=40) | st.text(max_size=40).map("http://".__add__))
def test_any_text_is_a_worker_or_a_config_error(url: str) -> None:
    try:
        worker = Worker(url)
    except ConfigError:
        return
    assert worker.host
    assert 1 <= worker.port <= 65535
    written = worker.authority + worker.prefix
    assert all(b" " < written[i : i + 1] < b"\x7f" for i in range(len(written)))


def test_the_id_is_a_function_of_the_url() -> None:
    assert Worker("http://engine:1").id == Worker("http://engine:1").id
    assert Worker("http://engine:1").id != Worker("http://engine:2").id
    # Written down: a restart, or a new version, must not rename anybody's workers.
    assert Worker("http://127.0.0.1:8000").id == "d7887efb-3bc6-5c21-b723-931f7aa79cf7"


def test_only_up_is_healthy() -> None:
    healthy = {health for health in Health if Worker("http://engine", health).healthy}
    assert healthy == {Health.UP}


def test_a_new_worker_is_unknown_and_idle() -> None:
    worker = Worker("http://engine:8000")
    assert (worker.health, worker.load, worker.streak) == (Health.UNKNOWN, 0, 0)


def test_repr_says_what_an_operator_asks_for() -> None:
    worker = Worker("http://engine:8000", Health.DOWN)
    worker.load = 3
    assert repr(worker) == "<Worker http://engine:8000 down load=3>"
