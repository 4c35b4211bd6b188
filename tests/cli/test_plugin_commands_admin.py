"""`sgl-router plugin …` and the control plane's application understand each other.

The application is the router's own; behind it are plugins that are nothing but what was asked.
"""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from sgl_router.admin.control import AdminSettings
from sgl_router.cli.main import main
from sgl_router.cli.router_client import KEY_VARIABLE
from sgl_router.errors import PluginRefused
from sgl_router.wasm.module import MAX_MODULE_BYTES
from sgl_router.wasm.refusals import Reason
from tests.admin.support import ADMIN_KEY, Router
from tests.cli.fake_router import Call, Taken, http_server

WASM = b"\0asm\1\0\0\0 and\r\n--what\xff follows\r\n"


class Commands:
    """Runs commands against an application.

    Attributes:
        router: what is behind it.
    """

    def __init__(self, router: Router) -> None:
        self.router = router
        self.url = ""

    def run(self, *arguments: str) -> int:
        """The exit status of `sgl-router plugin`."""
        return main(["plugin", *arguments, "--router", self.url])

    def answer(self, call: Call) -> Taken:
        return asyncio.run(self._answer(call))

    async def _answer(self, call: Call) -> Taken:
        async with self.router.client() as client:
            response = await client.request(
                call.method, call.path, headers=dict(call.headers), content=call.body
            )
        return response.status_code, response.content, {}


def commands_of(router: Router) -> Iterator[Commands]:
    commands = Commands(router)
    with http_server(commands.answer) as commands.url:
        yield commands


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> Iterator[Commands]:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    yield from commands_of(Router())


@pytest.fixture
def guarded(monkeypatch: pytest.MonkeyPatch) -> Iterator[Commands]:
    """With a key, which is not in the environment."""
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    yield from commands_of(Router(settings=AdminSettings(admin_key=ADMIN_KEY.encode())))


@pytest.fixture
def module(tmp_path: Path) -> Path:
    path = tmp_path / "mine.wasm"
    path.write_bytes(WASM)
    return path


def test_the_life_of_a_plugin(
    commands: Commands, module: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for line, told in (
        ("list", "no plugin is loaded"),
        (f"load {module}", "loaded: mine, version v1"),
        (f"load {module}", "unchanged: mine"),
        ("list", "mine    v1"),
        ("shadow mine --share 0.25", "25.0%"),
        ("shadow", "http://one:8000"),
        ("shadow --stop", "25.0%"),
        ("shadow", "no shadow run is under way"),
        ("shadow mine", "10.0%"),
        ("promote", "regular  mine    plugin"),
        ("use", "regular  mine"),
        ('reload mine --settings {"max_execution_time_ms":20}', "replaced: mine, version v2"),
        ("show mine", "max_execution_time_ms  20"),
        ("rollback mine", "mine is version v1 again"),
        ("use round_robin", "builtin"),
        ("unload mine", "unloaded: mine"),
        ("list", "no plugin is loaded"),
    ):
        assert commands.run(*line.split()) == 0, line
        shown = capsys.readouterr()
        assert told in shown.out, line
        assert not shown.err


@pytest.mark.parametrize("from_file", [False, True])
def test_a_module_and_its_settings_arrive_as_they_are(
    from_file: bool, commands: Commands, module: Path, tmp_path: Path
) -> None:
    settings = {"max_execution_time_ms": 50, "config": {"größe": ["\r\n--", None, 1.5]}}
    word = json.dumps(settings)
    if from_file:
        (tmp_path / "settings.json").write_text(word, encoding="utf-8")
        word = f"@{tmp_path / 'settings.json'}"
    assert commands.run("load", str(module), "--settings", word) == 0
    assert commands.router.plugins.calls == [("put", "mine", WASM, settings)]


def test_the_largest_module_arrives_with_settings(commands: Commands, module: Path) -> None:
    module.write_bytes(bytes(MAX_MODULE_BYTES))
    assert commands.run("load", str(module), "--settings", "{}") == 0
    assert commands.router.plugins.calls == [("put", "mine", bytes(MAX_MODULE_BYTES), {})]


def test_what_is_refused(
    commands: Commands, module: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert commands.run("load", str(module), "--use") == 0
    capsys.readouterr()
    for line, told in (
        ("show nobody", "404 plugin_not_found"),
        ("reload nobody", "404 plugin_not_found"),
        ("use nobody", "404 policy_not_found"),
        ("rollback mine", "409 nothing_to_roll_back_to"),
        ("unload mine", "409 plugin_in_use"),
        ("shadow mine", "409 plugin_in_use"),
        ("promote", "409 no_shadow"),
    ):
        assert commands.run(*line.split()) == 1, line
        shown = capsys.readouterr()
        assert told in shown.err, line
        assert not shown.out


def test_each_reason_of_a_refusal_has_a_line(
    commands: Commands, module: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reasons = ["it imports env.print", "max_memory_bytes is 0"]
    found = [Reason("import_unknown", reasons[0]), Reason("setting_out_of_range", reasons[1])]
    commands.router.plugins.failure = PluginRefused("mine", found)
    assert commands.run("load", str(module)) == 1
    lines = capsys.readouterr().err.splitlines()
    assert [line.strip() for line in lines[1:]] == [f"{each.text} [{each.code}]" for each in found]


def test_an_empty_file_is_refused(
    commands: Commands, module: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module.write_bytes(b"")
    assert commands.run("load", str(module)) == 1
    assert "the module is empty" in capsys.readouterr().err


def test_the_key_of_the_control_plane(
    guarded: Commands,
    module: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert guarded.run("list") == 1
    assert KEY_VARIABLE in capsys.readouterr().err
    monkeypatch.setenv(KEY_VARIABLE, "another")
    assert guarded.run("load", str(module)) == 1
    assert "that was sent" in capsys.readouterr().err
    monkeypatch.setenv(KEY_VARIABLE, ADMIN_KEY)
    assert guarded.run("load", str(module)) == 0
    assert "loaded: mine" in capsys.readouterr().out
