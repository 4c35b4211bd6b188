"""Worker URLs: what is accepted, what is made of them, what is refused."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sgl_router.core.worker import Circuit, Health, Worker
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
        ("https://engine", "engine", 443, b"engine", b""),
        ("https://engine:8443/v2", "engine", 8443, b"engine:8443", b"/v2"),
        ("https://[::1]", "::1", 443, b"[::1]", b""),
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
        "grpc://engine:8000",
        "ftp://engine",
        "https://",
        "https://:8000",
        "https://user:secret@engine",
        "https://engine/?a=b",
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
        "http://engine/a/..",
        "http://engine/./a",
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


@pytest.mark.parametrize(
    ("given_url", "url"),
    [
        ("HTTP://Engine:8000/Path", "http://engine:8000/Path"),
        ("Https://ENGINE", "https://engine"),
        ("http://engine:", "http://engine"),
        ("http://engine:08001", "http://engine:8001"),
    ],
)
def test_one_engine_has_one_url_however_it_is_written(given_url: str, url: str) -> None:
    worker = Worker(given_url)
    assert (worker.url, worker.id) == (url, Worker(url).id)
    assert worker.host == "engine"


@pytest.mark.parametrize(("url", "tls"), [("http://engine", False), ("https://engine", True)])
def test_the_scheme_says_whether_it_is_spoken_to_over_tls(url: str, tls: bool) -> None:
    assert Worker(url).tls is tls


@pytest.mark.parametrize("url", ["http://user:secret@engine", "http://engine/?key=secret"])
def test_what_may_be_secret_is_not_repeated(url: str) -> None:
    with pytest.raises(ConfigError) as refused:
        Worker(url)
    assert "engine" in str(refused.value)
    assert "secret" not in str(refused.value)


def test_the_id_is_a_function_of_the_url() -> None:
    assert Worker("http://engine:1").id == Worker("http://engine:1").id
    assert Worker("http://engine:1").id != Worker("http://engine:2").id
    # Written down: a restart, or a new version, must not rename anybody's workers.
    assert Worker("http://127.0.0.1:8000").id == "d7887efb-3bc6-5c21-b723-931f7aa79cf7"


def test_only_up_is_healthy() -> None:
    healthy = {health for health in Health if Worker("http://engine", health).healthy}
    assert healthy == {Health.UP}


@pytest.mark.parametrize("health", list(Health))
@pytest.mark.parametrize("circuit", list(Circuit))
@pytest.mark.parametrize("probing", [True, False])
def test_who_is_available(health: Health, circuit: Circuit, probing: bool) -> None:
    worker = Worker("http://engine", health)
    worker.circuit, worker.probing = circuit, probing
    lets_through = circuit is Circuit.CLOSED or (circuit is Circuit.HALF_OPEN and not probing)
    assert worker.available is (health is Health.UP and lets_through)


def test_a_new_worker_is_unknown_and_idle() -> None:
    worker = Worker("http://engine:8000")
    assert (worker.health, worker.load, worker.streak) == (Health.UNKNOWN, 0, 0)
    assert (worker.circuit, worker.probing, worker.ended) == (Circuit.CLOSED, False, 0)
    assert (worker.pending_tokens, worker.unreported_tokens) == (0, 0)
    assert (worker.metrics, worker.ttft_ms) == (None, None)


def test_what_it_is_for_unless_that_is_said() -> None:
    worker = Worker("http://engine:8000")
    assert (worker.role, worker.model_id, worker.labels) == ("regular", None, {})


def test_labels_are_its_own() -> None:
    labels = {"zone": "a"}
    worker = Worker("http://engine:8000", labels=labels)
    labels["zone"] = "b"
    assert worker.labels == {"zone": "a"}


def test_repr_says_what_an_operator_asks_for() -> None:
    worker = Worker("http://engine:8000", Health.DOWN)
    worker.load = 3
    assert repr(worker) == "<Worker http://engine:8000 down load=3>"
    worker.circuit = Circuit.HALF_OPEN
    assert repr(worker) == "<Worker http://engine:8000 down breaker=half_open load=3>"


def test_repr_does_not_show_its_key() -> None:
    assert "secret" not in repr(Worker("http://engine:8000", api_key="secret"))
