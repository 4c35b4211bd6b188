"""`sgl-router plugin …`: what each command asks a router, and what it shows of the answer."""

import argparse
import os
import pty
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import orjson
import pytest

from sgl_router.cli.main import main
from sgl_router.cli.plugin import add_plugin_command
from sgl_router.cli.plugin_help import EXAMPLES, OVERVIEW
from sgl_router.wasm.module import MAX_MODULE_BYTES
from tests.cli.fake_router import PLUGIN, REPORT, FakeRouter, put_result, refusal

WASM = b"\0asm\1\0\0\0 and\r\n--what\xff follows\r\n"


def status_of(router: FakeRouter, *arguments: str) -> object:
    """The exit status of `sgl-router plugin`."""
    try:
        return main(["plugin", *arguments, "--router", router.url])
    except SystemExit as leaving:
        return leaving.code


@pytest.fixture
def module(tmp_path: Path) -> Path:
    path = tmp_path / "weighted.wasm"
    path.write_bytes(WASM)
    return path


@pytest.mark.parametrize(
    ("command", "asked", "body"),
    [
        ("list", "GET /plugins", None),
        ("show weighted", "GET /plugins/weighted", None),
        ("reload weighted", "POST /plugins/weighted/reload", None),
        (
            """reload weighted --settings '{"config": {"a": 1}}'""",
            "POST /plugins/weighted/reload",
            {"settings": {"config": {"a": 1}}},
        ),
        ("rollback weighted", "POST /plugins/weighted/rollback", None),
        ("unload weighted", "DELETE /plugins/weighted", None),
        ("use", "GET /policy", None),
        ("use weighted", "PUT /policy", {"policy": "weighted", "role": None}),
        (
            "use weighted --role decode",
            "PUT /policy",
            {"policy": "weighted", "role": "decode"},
        ),
        ("shadow", "GET /shadow", None),
        (
            "shadow weighted",
            "PUT /shadow",
            {"plugin": "weighted", "share": 0.1, "role": "regular"},
        ),
        (
            "shadow weighted --share 0.5 --role prefill",
            "PUT /shadow",
            {"plugin": "weighted", "share": 0.5, "role": "prefill"},
        ),
        ("shadow --stop", "DELETE /shadow", None),
        ("promote", "POST /shadow/promote", None),
    ],
)
@pytest.mark.parametrize("as_json", [False, True])
def test_what_a_command_asks(
    *,
    command: str,
    asked: str,
    body: object,
    as_json: bool,
    router: FakeRouter,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert status_of(router, *shlex.split(command), *["--json"][: int(as_json)]) == 0
    (call,) = router.calls
    assert f"{call.method} {call.path}" == asked
    assert (orjson.loads(call.body) if call.body else None) == body
    assert (call.headers.get("Content-Type") == "application/json") == (body is not None)
    assert "Authorization" not in call.headers
    shown = capsys.readouterr()
    assert not shown.err
    if as_json:
        assert shown.out.encode() == orjson.dumps(router.answers[asked][1]) + b"\n"
    else:
        assert "weighted" in shown.out


def test_a_module_is_sent_as_it_is(
    router: FakeRouter, module: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of(router, "load", str(module)) == 0
    (call,) = router.calls
    assert (call.method, call.path, call.body) == ("PUT", "/plugins/weighted", WASM)
    assert call.headers["Content-Type"] == "application/wasm"
    told = capsys.readouterr().out
    assert "loaded: weighted, version 7 (1.2.0)" in told
    assert "worker 0 in 12.3 µs" in told
    assert "sgl-router plugin use weighted" in told, "it decides nothing yet"


def test_a_name_and_its_use(router: FakeRouter, module: Path) -> None:
    router.answer("PUT /plugins/other", put_result("replaced"))
    assert status_of(router, "load", str(module), "--name", "other", "--use", "--json") == 0
    assert [call.path for call in router.calls] == ["/plugins/other", "/policy"]
    assert orjson.loads(router.calls[1].body) == {"policy": "other", "role": None}


def test_what_is_put_in_use_at_once_is_not_told_how(
    router: FakeRouter, module: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of(router, "load", str(module), "--use") == 0
    told = capsys.readouterr().out
    assert "loaded: weighted" in told
    assert "power_of_two" in told, "the policies in use"
    assert "plugin use" not in told


def test_json_of_load_and_use_is_two_lines(
    router: FakeRouter, module: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of(router, "load", str(module), "--use", "--json") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [set(orjson.loads(line)) for line in lines] == [
        {"status", "plugin", "self_test"},
        {"policies"},
    ]


def test_a_module_that_is_loaded_and_cannot_be_used(
    router: FakeRouter, module: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    router.answer("PUT /policy", refusal("plugin_refused", "refused", "it has no worker"), 400)
    assert status_of(router, "load", str(module), "--use") == 1
    told = capsys.readouterr()
    assert "loaded: weighted" in told.out
    assert "it has no worker" in told.err


def test_nothing_is_sent_where_the_file_gives_no_name(
    router: FakeRouter, module: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of(router, "load", str(module.rename(module.with_name("my.v2.wasm")))) == 2
    assert router.calls == []
    told = capsys.readouterr().err
    assert "my.v2" in told
    assert "--name" in told


@pytest.mark.parametrize("large", [False, True])
def test_nothing_is_sent_of_a_file_that_is_no_module(
    large: bool, router: FakeRouter, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "p.wasm"
    if large:
        file.write_bytes(bytes(MAX_MODULE_BYTES + 1))
    assert status_of(router, "load", str(file)) == 1
    assert router.calls == []
    told = capsys.readouterr().err
    assert str(file) in told
    assert (f"{MAX_MODULE_BYTES:,}" in told) == large


@pytest.mark.parametrize(
    ("command", "named"),
    [
        ("", "COMMAND"),
        ("lst", "list"),
        ("show", "NAME"),
        ("show ../workers", "../workers"),
        ("show a b", "word too many"),
        ("load", "FILE"),
        ("load x.wasm --settings", "--settings"),
        ("load x.wasm --settings {", "--settings"),
        ("load x.wasm --settings []", "object"),
        ("load x.wasm --settings @missing.json", "missing.json"),
        ("use --role decode", "NAME"),
        ("use weighted --role draft", "draft"),
        ("shadow --share 0.1", "NAME"),
        ("shadow --role decode", "NAME"),
        ("shadow weighted --stop", "--stop"),
        ("shadow weighted --share 0", "--share"),
        ("shadow weighted --share nan", "--share"),
        ("shadow weighted --share 1.1", "--share"),
        ("list --timeout 0", "--timeout"),
        ("list --timeout inf", "--timeout"),
        ("list --ca-cert ca.pem", "https"),
        ("list --api-key secret-key", "--api-key-file"),
    ],
)
def test_usage(
    command: str, named: str, router: FakeRouter, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of(router, *command.split()) == 2
    assert router.calls == []
    told = capsys.readouterr().err
    assert named in told
    assert "secret-key" not in told


def test_settings_that_are_not_json(
    router: FakeRouter, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "settings.yaml"
    for text, why in (
        ("1: a\n", "is not JSON"),
        ("a: !!set {x}\n", "is not JSON"),
        ("- a\n", "expected a mapping"),
        ("a: [\n", "is not YAML"),
    ):
        file.write_text(text)
        assert status_of(router, "reload", "weighted", "--settings", f"@{file}") == 2
        told = capsys.readouterr().err
        assert str(file) in told
        assert why in told
    assert router.calls == []


@pytest.mark.parametrize(
    "url", ["127.0.0.1:1", "ftp://a", "http://", "http://u:secret-word@a", "http://[::1"]
)
def test_what_is_no_url(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        main(["plugin", "list", "--router", url])
    assert leaving.value.code == 2
    told = capsys.readouterr().err
    assert "http://HOST:PORT" in told
    assert "secret-word" not in told


def test_a_router_behind_a_path(router: FakeRouter) -> None:
    router.answer("GET /llm/plugins", {"plugins": [], "total": 0})
    assert main(["plugin", "list", "--router", f"{router.url}/llm/"]) == 0
    assert [call.path for call in router.calls] == ["/llm/plugins"]


# ---- what is shown ----


def test_the_list_stands_in_columns_where_it_is_piped(
    router: FakeRouter, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of(router, "list") == 0
    heading, row, *notes = capsys.readouterr().out.splitlines()
    cells = "weighted", "7", "regular, shadow"
    for column, cell in zip(("plugin", "version", "in use as"), cells, strict=True):
        assert row.startswith(cell, heading.index(column))
    for column, cell in (("decisions", "1,234,567"), ("failed", "4")):
        assert row[: heading.index(column) + len(column)].endswith(cell)
    assert row.endswith("for 1.5 s")
    assert any("the file is no WebAssembly" in note for note in notes)
    assert any("trap: unreachable" in note for note in notes)


def test_a_plugin_is_shown_whole(router: FakeRouter, capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(router, "show", "weighted") == 0
    told = capsys.readouterr().out
    rows = {cells[0]: cells[1:] for cells in (re.split(r"  +", line) for line in told.splitlines())}
    assert rows["id"] == ["7", "6"]
    assert rows["sha256"] == ["ab" * 32, "cd" * 32]
    assert rows["plugin's own version"] == ["1.2.0", "–"]
    assert rows["decisions"] == ["1,234,567", "12"]
    assert rows["failures"][0] == "trap 3, timeout 1"
    assert rows["loaded"][0] == "2026-01-31 12:00:00 UTC"
    assert rows["memory, bytes"][0] == "1,114,112"
    assert rows["max_execution_time_ms"] == ["50", "50"]
    assert rows["config"][0] == '{"weights":{"http://w:1":4}}'
    assert rows["lane"] == ["inline, 0 waiting"]
    assert rows["last in quarantine for"] == ["five failures in a row"]
    assert re.search(r"inner at 0x1f\W+outer at 0x2e\W(.|\n)*loading\W+panic: no such table", told)


def test_a_shadow_run_is_reported(router: FakeRouter, capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(router, "shadow") == 0
    told = capsys.readouterr().out
    for part in ("10.0%", "81.3%", "2,400", "17", "timeout 100", "3.2 µs", "41.0 ms", "1.5 s"):
        assert part in told
    (worker,) = (line.split() for line in told.splitlines() if line.startswith("http://w:1"))
    assert worker[1:] == ["1,250", "50.0%", "1,800", "75.0%", "12", "31"]


@pytest.mark.parametrize(
    ("command", "answer", "told"),
    [
        ("list", {"plugins": [], "total": 0}, "no plugin is loaded"),
        ("use", {"policies": []}, "no policy is in use"),
        ("shadow", {"shadow": None}, "no shadow run is under way"),
        (
            "shadow",
            {"shadow": replace(REPORT, agreement=None, decision_us=None)},
            "agreement                –",
        ),
    ],
)
def test_nothing_to_show_is_said(
    command: str,
    answer: object,
    told: str,
    router: FakeRouter,
    capsys: pytest.CaptureFixture[str],
) -> None:
    paths = {"list": "/plugins", "use": "/policy", "shadow": "/shadow"}
    router.answer(f"GET {paths[command]}", answer)
    assert status_of(router, command) == 0
    assert told in capsys.readouterr().out


@pytest.mark.parametrize(
    ("result", "told"),
    [
        (put_result("unchanged"), "unchanged: weighted has this module"),
        (put_result("replaced"), "replaced: weighted, version 7"),
        (put_result("replaced", error="no weights"), "in 12.3 µs, and reported: no weights"),
        (put_result("replaced", worker=None), "it chose no worker"),
    ],
)
def test_what_a_load_came_to(
    result: object,
    told: str,
    router: FakeRouter,
    module: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    router.answer("PUT /plugins/weighted", result)
    assert status_of(router, "load", str(module)) == 0
    shown = capsys.readouterr().out
    assert told in shown
    assert "plugin use" not in shown, "it is in use"


def test_on_a_terminal_a_table_has_lines_and_fits(router: FakeRouter) -> None:
    ours, theirs = pty.openpty()
    environment = {**os.environ, "COLUMNS": "60", "TERM": "xterm", "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, "-m", "sgl_router", "plugin", "show", "weighted"]
    done = subprocess.run(
        [*command, "--router", router.url], stdout=theirs, env=environment, check=False
    )
    os.close(theirs)
    written = b""
    while data := _read(ours):
        written += data
    os.close(ours)
    assert done.returncode == 0
    plain = re.sub(r"\x1b\[[0-9;]*m", "", written.decode())
    assert "─" in plain
    assert max(map(len, plain.splitlines())) <= 60
    assert PLUGIN.fallback in plain


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65_536)
    except OSError:  # Linux's way to say that the other end is closed
        return b""


# ---- help ----


@pytest.mark.parametrize("command", EXAMPLES)
def test_help_names_each_argument(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        main(["plugin", command, "--help"])
    assert leaving.value.code == 0
    text = capsys.readouterr().out
    flags = ["--router", "--api-key-file", "--ca-cert", "--timeout", "--json"]
    own = {
        "load": ["FILE", "--name", "--settings", "--use"],
        "reload": ["NAME", "--settings"],
        "use": ["NAME", "--role"],
        "shadow": ["NAME", "--share", "--role", "--stop"],
    }
    for word in flags + own.get(command, [] if command in ("list", "promote") else ["NAME"]):
        assert re.search(rf"^  {word}\b", text, re.MULTILINE), word
    assert f"  sgl-router plugin {command}" in text


def test_each_example_of_the_help_is_understood(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_policy.yaml").write_text("max_execution_time_ms: 50\n")
    parser = argparse.ArgumentParser()
    add_plugin_command(parser.add_subparsers())
    texts = [OVERVIEW, *(examples for _, examples in EXAMPLES.values())]
    lines = re.findall(r"^  sgl-router (plugin .*?)(?: \|.*)?$", "\n".join(texts), re.MULTILINE)
    assert len(lines) > len(EXAMPLES)
    for line in lines:
        options, unknown = parser.parse_known_args(shlex.split(line))
        assert (unknown, options.command.prog.split()[-1]) == ([], line.split()[1])
