"""`sgl-router plugin …` where the router refuses, is not there, or is something else."""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sgl_router.cli.main import main
from sgl_router.cli.router_client import KEY_VARIABLE, MAX_ANSWER_BYTES
from tests.cli.fake_router import FakeRouter, fake_router, refusal
from tests.gateway.certificates import make_certificate

KEY = "a-key-that-nobody-may-read"


def failure(*arguments: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What a command that fails says; it shows nothing else, and never the key."""
    assert main(["plugin", *arguments]) == 1
    told = capsys.readouterr()
    assert not told.out
    assert KEY not in told.err
    assert told.err.startswith("sgl-router: ")
    return told.err


@contextmanager
def peer(answer: bytes | None) -> Iterator[str]:
    """A server that reads the head of one request, sends `answer`, and closes; None: it is mute."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            connection = listening.accept()[0]
            with connection:
                head = b""
                while b"\r\n\r\n" not in head:
                    head += connection.recv(1024)
                connection.sendall(answer or b"")

        thread = threading.Thread(target=serve)
        if answer is not None:
            thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        if answer is not None:
            thread.join()


@pytest.mark.parametrize(
    ("status", "code", "command", "named"),
    [
        (401, "unauthorized", "list", [KEY_VARIABLE, "--api-key-file", "--admin-api-key"]),
        (401, "invalid_api_key", "list", [KEY_VARIABLE, "--api-key"]),
        (403, "forbidden", "list", ["--admin-api-key", KEY_VARIABLE]),
        (404, "plugin_not_found", "show weighted", ["plugin list"]),
        (404, "policy_not_found", "use weighted", []),
        (404, "unknown_url", "list", ["--router"]),
        (409, "plugin_in_use", "unload weighted", ["plugin use", "shadow --stop"]),
        (409, "nothing_to_roll_back_to", "rollback weighted", []),
        (409, "no_shadow", "promote", ["plugin shadow NAME"]),
        (503, "shutting_down", "shadow", []),
    ],
)
def test_a_refusal_says_why_and_what_to_do(
    *,
    status: int,
    code: str,
    command: str,
    named: list[str],
    router: FakeRouter,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for call in list(router.answers):
        router.answer(call, refusal(code, "this is why"), status)
    told = failure(*command.split(), "--router", router.url, "--json", capsys=capsys)
    for part in ("this is why", f"{status} {code}", *named):
        assert part in told


def test_each_reason_has_a_line(router: FakeRouter, capsys: pytest.CaptureFixture[str]) -> None:
    reasons = ["max_memory_bytes is 0", "it imports env.print", "a\nb"]
    answer = refusal("plugin_refused", "; ".join(reasons), *reasons)
    router.answer("POST /plugins/weighted/reload", answer, 400)
    told = failure("reload", "weighted", "--router", router.url, capsys=capsys)
    assert [line.strip() for line in told.splitlines()[1:]] == [*reasons[:2], r"a\nb"]


@pytest.mark.parametrize(
    ("status", "body", "headers", "named"),
    [
        (200, b"<html>", {}, ["not JSON", "200"]),
        (200, b'{"plugins": [', {}, ["not JSON"]),
        (200, b'{"plugins": "\xff"}', {}, ["not JSON"]),
        (200, b"[" * 100_000 + b"]" * 100_000, {}, ["not JSON"]),
        (200, b" " * (MAX_ANSWER_BYTES + 1), {}, ["16,777,216"]),
        (502, b"Bad gateway", {}, ["502"]),
        (502, b"[]", {}, ["502"]),
        (500, b'{"error": "x", "code": "y"}', {}, ["500"]),
        (307, b"", {"Location": "http://other/\x1b[2J"}, ["307", "http://other/", "--router"]),
    ],
)
def test_what_is_no_routers_answer(
    *,
    status: int,
    body: bytes,
    headers: dict[str, str],
    named: list[str],
    router: FakeRouter,
    capsys: pytest.CaptureFixture[str],
) -> None:
    router.answer("GET /plugins", body, status, **headers)
    told = failure("list", "--router", router.url, capsys=capsys)
    assert len(router.calls) == 1, "redirects are not followed"
    assert "\x1b" not in told
    for part in named:
        assert part in told


def test_nobody_listens(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    told = failure("list", "--router", f"http://127.0.0.1:{port}", capsys=capsys)
    assert "refused" in told
    assert "--router" in told


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a" * 70, "a..b"])
def test_there_is_no_such_host(host: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert host in failure("list", "--router", f"http://{host}:1", capsys=capsys)


@pytest.mark.parametrize(
    ("answer", "named"),
    [(b"", "closed"), (b"SSH-2.0-x\r\n\r\n", "not HTTP"), (b"HTTP/1.1 200", "not JSON")],
)
def test_a_peer_that_is_no_router(
    answer: bytes, named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with peer(answer) as url:
        assert named in failure("list", "--router", url, capsys=capsys)


@pytest.mark.parametrize(("command", "changes"), [("list", False), ("promote", True)])
def test_a_router_that_does_not_answer(
    command: str, changes: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    with peer(None) as url:
        told = failure(command, "--router", url, "--timeout", "0.05", capsys=capsys)
    assert "--timeout" in told
    assert ("may happen yet" in told) == changes


def test_a_refusal_that_comes_before_the_module_is_sent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = tmp_path / "p.wasm"
    module.write_bytes(bytes(4 * 1024 * 1024))
    body = b'{"error": {"code": "unauthorized", "message": "a key"}}'
    answer = b"HTTP/1.1 401 Unauthorized\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    with peer(answer) as url:
        assert KEY_VARIABLE in failure("load", str(module), "--router", url, capsys=capsys)


# ---- keys, proxies, certificates ----


def test_the_key_is_that_of_the_variable(
    router: FakeRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    assert main(["plugin", "list", "--router", router.url]) == 0
    assert router.calls[0].headers["Authorization"] == f"Bearer {KEY}"


def test_a_file_comes_before_the_variable(
    router: FakeRouter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "another")
    file = tmp_path / "key"
    file.write_text(f"{KEY}\n")
    assert main(["plugin", "list", "--router", router.url, "--api-key-file", str(file)]) == 0
    assert router.calls[0].headers["Authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize("text", ["", f"{KEY} x", f"{KEY}\nx", f"{KEY}é", "k" * 5_000])
@pytest.mark.parametrize("in_file", [False, True])
def test_what_is_no_key_is_not_sent(
    *,
    text: str,
    in_file: bool,
    router: FakeRouter,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "key").write_text(text, encoding="utf-8")
    monkeypatch.setenv(KEY_VARIABLE, text)
    file = ["--api-key-file", str(tmp_path / "key")] if in_file else []
    told = failure("list", "--router", router.url, *file, capsys=capsys)
    assert router.calls == []
    assert ("--api-key-file" if in_file else KEY_VARIABLE) in told
    assert "visible ASCII" in told


def test_a_key_file_that_is_not_there(
    router: FakeRouter, capsys: pytest.CaptureFixture[str]
) -> None:
    told = failure("list", "--router", router.url, "--api-key-file", "/no/key", capsys=capsys)
    assert "/no/key" in told
    assert router.calls == []


def test_a_wrong_key_is_not_shown(
    router: FakeRouter, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    router.answer("GET /plugins", refusal("unauthorized", "the key is wrong"), 401)
    told = failure("list", "--router", router.url, capsys=capsys)
    assert "that was sent" in told


def test_no_proxy_is_used(router: FakeRouter, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:1")
    assert main(["plugin", "list", "--router", router.url]) == 0
    assert len(router.calls) == 1


def test_https_needs_a_certificate_that_is_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    own = make_certificate(tmp_path, "own")
    other = make_certificate(tmp_path, "other", "DNS:other.example")
    with fake_router(own.server_side()) as router:
        router.answer_all()
        assert main(["plugin", "list", "--router", router.url, "--ca-cert", own.cert]) == 0
        assert "weighted" in capsys.readouterr().out
        assert "--ca-cert" in failure("list", "--router", router.url, capsys=capsys)
        for cert in (other.cert, own.key, str(tmp_path / "none.pem")):
            told = failure("list", "--router", router.url, "--ca-cert", cert, capsys=capsys)
            assert "--ca-cert" in told
        assert len(router.calls) == 1


def test_https_to_a_router_without(router: FakeRouter, capsys: pytest.CaptureFixture[str]) -> None:
    url = router.url.replace("http:", "https:")
    assert "TLS" in failure("list", "--router", url, capsys=capsys)
    assert router.calls == []


# ---- what a hostile router sends ----

HOSTILE = "a\x1b]0;title\x07\x1b[2Jb\x9b1A\u202ec\r\nd [red]e[/red] \ud83d\ude00".encode(
    "utf-16", "surrogatepass"
).decode("utf-16")


@pytest.mark.parametrize(
    "command", ["list", "show weighted", "reload weighted", "use", "shadow", "unload weighted"]
)
@pytest.mark.parametrize("as_json", [False, True])
def test_nothing_from_a_router_moves_the_cursor(
    command: str, as_json: bool, router: FakeRouter, capsys: pytest.CaptureFixture[str]
) -> None:
    plugin = {
        "name": HOSTILE,
        "in_use_as": [HOSTILE],
        "last_failure": HOSTILE,
        "last_failure_detail": {"output": f"{HOSTILE}\n{HOSTILE}", "backtrace": [HOSTILE] * 2},
        "current": {"id": HOSTILE, "settings": {HOSTILE: HOSTILE}},
    }
    everything = {
        **plugin,
        "status": HOSTILE,
        "plugin": plugin,
        "plugins": [plugin],
        "policies": [{"role": HOSTILE, "policy": HOSTILE}],
        "shadow": {"plugin": HOSTILE, "failures": {HOSTILE: 1}, "workers": [{"url": HOSTILE}]},
    }
    for call in list(router.answers):
        router.answer(call, everything)
    json = ["--json"][: int(as_json)]
    assert main(["plugin", *command.split(), "--router", router.url, *json]) == 0
    told = capsys.readouterr().out
    assert all(char.isprintable() or char == "\n" for char in told)
    assert "[red]e[/red]" in told
    assert "\U0001f600" in told


def test_nor_does_a_refusal(router: FakeRouter, capsys: pytest.CaptureFixture[str]) -> None:
    router.answer("GET /plugins", refusal(HOSTILE, HOSTILE, HOSTILE), 400)
    told = failure("list", "--router", router.url, capsys=capsys)
    assert all(char.isprintable() or char == "\n" for char in told)


def test_what_the_encoding_does_not_have_is_escaped(router: FakeRouter) -> None:
    router.answer("GET /policy", {"policies": [{"policy": "größe"}]})
    command = [sys.executable, "-m", "sgl_router", "plugin", "use", "--router", router.url]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, capture_output=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert rb"gr\xf6\xdfe" in done.stdout
