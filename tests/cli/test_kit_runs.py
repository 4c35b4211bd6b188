"""`sgl-router plugin check|test|bench|run|dev`: exit statuses, and what is shown."""

import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from sgl_router.cli.kit_runs import RUN_COMMANDS
from sgl_router.cli.kit_runs_help import RUN_EXAMPLES
from sgl_router.cli.main import main
from sgl_router.cli.router_client import KEY_VARIABLE
from sgl_router.devkit import develop
from sgl_router.testing import check_names
from tests.cli.fake_router import REPORT, FakeRouter, put_result, refusal
from tests.devkit.projects import SOURCE, build, golden, project
from tests.end_to_end.process import launched
from tests.testing.guests import sound, sound_table, traps_on
from tests.testing.test_case import PLAIN
from tests.wasm.guests import guest

ESCAPE = guest('{"error": "\\u001b[31mred"}')


def status_of(*arguments: object) -> object:
    """The exit status of `sgl-router plugin`."""
    try:
        return main(["plugin", *map(str, arguments)])
    except SystemExit as leaving:
        return leaving.code


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return project(tmp_path / "mine")


def shown_json(capsys: pytest.CaptureFixture[str]) -> Any:
    return orjson.loads(capsys.readouterr().out)


def test_each_command_has_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert RUN_COMMANDS.keys() == RUN_EXAMPLES.keys()
    for name in RUN_COMMANDS:
        assert status_of(name, "--help") == 0
        assert f"sgl-router plugin {name}" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["check", "test", "bench", "run"])
def test_what_is_not_there_is_told(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of(command, tmp_path / "nowhere.wasm") == 1
    assert "nowhere.wasm" in capsys.readouterr().err
    assert status_of(command, tmp_path) == 1
    assert "plugin.toml" in capsys.readouterr().err
    assert status_of(command, "--settings", '{"max_memory": 1}', tmp_path / "nowhere.wasm") == 1
    assert status_of(command, "--settings", "5") == 2


# ---- test ----


def test_test(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of("test", folder) == 0
    said = capsys.readouterr().out
    for name in (*check_names(), "tests/first"):
        assert name in said
    golden(folder, "second", 1)
    assert status_of("test", folder) == 1
    said = capsys.readouterr().out
    assert "expected 1; found 0" in said
    assert "1 failed" in said


def test_test_tells_what_the_plugin_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of("test", project(tmp_path / "mine", traps_on('"model":null'))) == 1
    said = capsys.readouterr().out
    assert "unreachable" in said
    assert "the innermost first" in said, "the functions that it was in"


def test_test_as_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    golden(folder, "second", 1)
    assert status_of("test", folder, "--json") == 1
    found = shown_json(capsys)
    assert [check["name"] for check in found["checks"]] == check_names()
    assert [one["outcome"] for one in found["golden"]] == ["passed", "failed"]
    assert found["golden"][1]["answer"]["selected_worker"] == 0
    assert found["passed"] is False


def test_a_module_that_is_refused_fails_its_test(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of("test", project(tmp_path / "mine", sound(pages=17))) == 1
    assert "max_memory_bytes" in capsys.readouterr().out


# ---- bench ----


def test_bench(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of("bench", folder, "--decisions", "20") == 0
    said = capsys.readouterr().out
    assert "512" in said and "inline_budget_ms" in said
    assert status_of("bench", folder, "--decisions", "20", "--json") == 0
    assert [row["decisions"] for row in shown_json(capsys)["rows"]] == [20] * 4


def test_bench_of_an_instance_for_each_decision(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = '{"isolation": "per_call"}'
    assert status_of("bench", folder, "--decisions", "3", "--settings", settings) == 0
    said = capsys.readouterr().out
    assert "instance of its own" in said
    assert "full" not in said and "max_memory_bytes" not in said


@pytest.mark.parametrize("wrong", ["--decisions=0", "--seconds=0", "--seconds=x", "--decisions=-1"])
def test_bench_is_bounded(wrong: str, folder: Path) -> None:
    assert status_of("bench", folder, wrong) == 2


def test_a_plugin_that_fails_is_not_timed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of("bench", project(tmp_path / "mine", traps_on("u42"))) == 1
    assert "trap" in capsys.readouterr().err


# ---- run ----


def test_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of("run", folder) == 0
    said = capsys.readouterr().out
    assert "made up" in said and "answer: worker 0" in said
    given = orjson.dumps({**PLAIN, "workers": []}).decode()
    assert status_of("run", folder, "--input", given, "--state", '{"seen": 5}') == 0
    said = capsys.readouterr().out
    assert "no worker" in said and '"seen": 5' in said
    assert status_of("run", folder, "--input", folder / "tests" / "first.json") == 0
    assert "answer: worker 0" in capsys.readouterr().out


def test_what_run_made_up_can_be_given(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of("run", folder, "--json") == 0
    first = shown_json(capsys)
    (folder / "input.json").write_bytes(orjson.dumps(first["given"]))
    assert status_of("run", folder, "--json", "--input", folder / "input.json") == 0
    second = shown_json(capsys)
    assert second["given"] == first["given"]
    assert second["answer"]["selected_worker"] == first["answer"]["selected_worker"]


def test_run_of_one_that_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of("run", project(tmp_path / "mine", ESCAPE)) == 1
    said = capsys.readouterr().out
    assert "plugin_error" in said
    assert "\x1b" not in said, "what a guest says moves no cursor"


@pytest.mark.parametrize("wrong", ["{", "[]", "nowhere.json", ""])
def test_an_input_that_cannot_be_read(wrong: str, folder: Path) -> None:
    assert status_of("run", folder, "--input", wrong) == 1


def test_an_input_that_the_abi_cannot_say(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = project(tmp_path / "mine", sound_table())
    assert status_of("run", folder, "--input", '{"workers": 5}') == 1
    assert "--input" in capsys.readouterr().err


def test_a_terminal_gets_progress(folder: Path) -> None:
    """On standard error, and nothing of it on standard output."""
    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "sgl_router", "plugin", "test", str(folder)]
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=follower, check=False)
        os.close(follower)
        told = os.read(leader, 1_000_000)
    finally:
        os.close(leader)
    assert done.returncode == 0
    assert b"testing" in told
    assert b"\x1b" not in done.stdout


# ---- dev ----


@pytest.fixture
def author(monkeypatch: pytest.MonkeyPatch, folder: Path) -> list[bytes]:
    """What is saved, one after the other; then Ctrl-C is pressed. Nothing is compiled."""
    versions: list[bytes] = []

    def saves(_folder: Path) -> Iterator[str]:
        for version in versions:
            if version:
                (folder / SOURCE).write_bytes(version)
            yield "changed" if version else "quiet"
        raise KeyboardInterrupt

    monkeypatch.setattr(develop, "saves", saves)
    monkeypatch.setattr("sgl_router.cli.kit_runs.build_project", build)
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    return versions


@pytest.fixture
def dev_router(router: FakeRouter) -> FakeRouter:
    """A router on which nothing of the plugin is yet."""
    router.answer("PUT /plugins/mine-dev", put_result("loaded", []), 201)
    router.answer("DELETE /plugins/mine-dev", {"status": "unloaded", "name": "mine-dev"})
    router.answer("GET /plugins", {"plugins": [{"name": "mine-dev"}], "total": 1})
    router.answer("GET /shadow", {"shadow": None})
    return router


def calls(router: FakeRouter) -> list[str]:
    """Those that change something."""
    return [f"{call.method} {call.path}" for call in router.calls if call.method != "GET"]


def test_dev_builds_and_tests_each_save(
    folder: Path, author: list[bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    author += [traps_on('"model":null'), b"", b"error", sound()]
    assert status_of("dev", folder) == 0
    said = capsys.readouterr().out
    assert said.count("built ") == 3
    assert "nulls failed" in said
    assert "policy.wat:1: no policy" in said
    assert said.count("waiting for changes") == 4, "the one that held nothing new says nothing"


def test_dev_puts_what_passes_in_shadow_and_ends_it(
    folder: Path, author: list[bytes], dev_router: FakeRouter, capsys: pytest.CaptureFixture[str]
) -> None:
    author += [traps_on('"model":null')]
    assert status_of("dev", folder, "--router", dev_router.url, "--share", "0.5") == 0
    assert calls(dev_router) == [
        "PUT /plugins/mine-dev",
        "PUT /shadow",
        "DELETE /plugins/mine-dev",
    ]
    put = dev_router.calls[[call.method for call in dev_router.calls].index("PUT")]
    assert sound() in put.body
    assert b'"max_execution_time_ms":5000' in put.body
    shadow = next(call for call in dev_router.calls if call.path == "/shadow" and call.body)
    assert orjson.loads(shadow.body) == {"plugin": "mine-dev", "share": 0.5, "role": "regular"}
    assert "in shadow, for 50.0% of the requests" in capsys.readouterr().out


def report(plugin: str) -> dict[str, Any]:
    said: dict[str, Any] = orjson.loads(orjson.dumps(REPORT))
    return {"shadow": {**said, "plugin": plugin}}


def test_dev_tells_the_agreement_once(
    folder: Path, author: list[bytes], dev_router: FakeRouter, capsys: pytest.CaptureFixture[str]
) -> None:
    dev_router.answer("GET /shadow", report("mine-dev"))
    author += [b"", b""]
    assert status_of("dev", folder, "--router", dev_router.url) == 0
    said = capsys.readouterr().out
    assert said.count("81.3% agree with round_robin") == 1
    assert calls(dev_router)[-2:] == ["DELETE /shadow", "DELETE /plugins/mine-dev"]


def test_dev_never_replaces_what_decides(
    folder: Path, author: list[bytes], dev_router: FakeRouter, capsys: pytest.CaptureFixture[str]
) -> None:
    in_use = {"role": "regular", "policy": "mine-dev", "kind": "plugin", "version": "1"}
    dev_router.answer("GET /policy", {"policies": [in_use]})
    assert status_of("dev", folder, "--router", dev_router.url) == 0
    assert calls(dev_router) == []
    assert "not replaced" in capsys.readouterr().out


def test_dev_leaves_one_that_has_been_put_in_use(
    folder: Path,
    author: list[bytes],
    dev_router: FakeRouter,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def saves(_folder: Path) -> Iterator[str]:
        in_use = {"role": "decode", "policy": "mine-dev", "kind": "plugin", "version": "1"}
        dev_router.answer("GET /policy", {"policies": [in_use]})
        yield "quiet"
        raise KeyboardInterrupt

    monkeypatch.setattr(develop, "saves", saves)
    assert status_of("dev", folder, "--router", dev_router.url) == 0
    assert calls(dev_router) == ["PUT /plugins/mine-dev", "PUT /shadow"]
    assert "decides about the decode workers" in capsys.readouterr().out


def test_dev_leaves_the_shadow_run_of_another(
    folder: Path, author: list[bytes], dev_router: FakeRouter, capsys: pytest.CaptureFixture[str]
) -> None:
    dev_router.answer("GET /shadow", report("other"))
    assert status_of("dev", folder, "--router", dev_router.url) == 0
    assert calls(dev_router) == ["PUT /plugins/mine-dev", "DELETE /plugins/mine-dev"]
    assert "other runs in shadow there" in capsys.readouterr().out


def test_dev_goes_on_where_the_router_refuses(
    folder: Path, author: list[bytes], dev_router: FakeRouter, capsys: pytest.CaptureFixture[str]
) -> None:
    body = refusal("plugin_refused", "the plugin is refused", "it is too large here")
    dev_router.answer("PUT /plugins/mine-dev", body, 400)
    dev_router.answer("GET /plugins", {"plugins": [], "total": 0})
    author += [sound(state='{"n":1}')]
    assert status_of("dev", folder, "--router", dev_router.url) == 0
    assert capsys.readouterr().out.count("it is too large here") == 2
    assert "DELETE /plugins/mine-dev" not in calls(dev_router)


def test_dev_tells_why_it_ended_where_the_router_has_gone(
    folder: Path,
    author: list[bytes],
    dev_router: FakeRouter,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def saves(_folder: Path) -> Iterator[str]:
        dev_router.answer("GET /shadow", {"error": "gone"}, 500)
        yield "quiet"
        raise OSError("the watch is lost")

    monkeypatch.setattr(develop, "saves", saves)
    assert status_of("dev", folder, "--router", dev_router.url) == 1
    told = capsys.readouterr()
    assert "the watch is lost" in told.err
    assert "mine-dev may still be on the router" in told.out


def test_dev_of_a_folder_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of("dev", tmp_path) == 1
    assert "plugin.toml" in capsys.readouterr().err


def test_dev_and_a_router_that_runs(
    folder: Path,
    author: list[bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with launched(
        *("--worker-urls", "http://127.0.0.1:1", "--policy", "random"),
        *("--plugin-store", str(tmp_path / "store")),
    ) as router:

        def saves(_folder: Path) -> Iterator[str]:
            assert status_of("shadow", "--router", router.url) == 0
            (folder / SOURCE).write_bytes(sound(state='{"n":1}'))
            yield "changed"
            raise KeyboardInterrupt

        monkeypatch.setattr(develop, "saves", saves)
        assert status_of("dev", folder, "--router", router.url) == 0
        said = capsys.readouterr().out
        assert "loaded: mine-dev" in said and "replaced: mine-dev" in said
        assert "the shadow run has ended" in said and "mine-dev is unloaded" in said
        assert status_of("list", "--json", "--router", router.url) == 0
        assert shown_json(capsys) == {"plugins": [], "total": 0}
        assert status_of("use", "--router", router.url) == 0
        assert "random" in capsys.readouterr().out
