"""`sgl-router plugin new` and `build`, and `load` of a plugin's folder."""

import argparse
import os
import pty
import re
import shlex
import subprocess
import sys
from pathlib import Path

import orjson
import pytest

from sgl_router.cli.kit import KIT_COMMANDS, LANGUAGE_NAMES, POLICY_NAMES
from sgl_router.cli.kit_help import KIT_EXAMPLES
from sgl_router.cli.main import main
from sgl_router.cli.plugin import add_plugin_command
from sgl_router.devkit.languages import LANGUAGES
from sgl_router.devkit.scaffold import POLICIES
from tests.cli.fake_router import FakeRouter, put_result
from tests.devkit.fake import FAKE, fake_language, fake_project


@pytest.fixture(autouse=True)
def with_a_fake_language(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Beside the kit's own; and the current folder is an empty one."""
    monkeypatch.setattr("sgl_router.devkit.languages.LANGUAGES", (*LANGUAGES, FAKE))
    monkeypatch.chdir(tmp_path)


def status_of(*arguments: str) -> object:
    """The exit status of `sgl-router plugin`."""
    try:
        return main(["plugin", *arguments])
    except SystemExit as leaving:
        return leaving.code


# ---- new ----


def test_a_new_folder_and_what_to_do_with_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of("new", "my-p", "--lang", "rust", "--from", "weighted_random") == 0
    shown = capsys.readouterr()
    assert not shown.err
    assert (Path("my-p") / "plugin.toml").exists()
    assert "my-p/src/lib.rs" in shown.out
    commands = [line.strip() for line in shown.out.splitlines() if line.startswith("  ")]
    assert commands[0] == "cd my-p"
    parser = argparse.ArgumentParser()
    add_plugin_command(parser.add_subparsers())
    for command in commands[1:]:
        words = shlex.split(command)
        assert words[0] == "sgl-router"
        assert not parser.parse_known_args(words[1:])[1]
    assert status_of("new", "my-p", "--lang", "rust") == 1
    assert "--dir" in capsys.readouterr().err
    assert status_of("new", "my-p", "--lang", "rust", "--dir", "a b/c") == 0
    assert "cd 'a b/c'" in capsys.readouterr().out
    assert (Path("a b") / "c" / "plugin.toml").exists()


def test_a_tool_that_is_missing_is_told_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lacking = fake_language("rust", tool=None)
    monkeypatch.setattr("sgl_router.devkit.languages.LANGUAGES", (lacking,))
    assert status_of("new", "p", "--lang", "rust") == 0
    assert "apt install dash" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("new p", "--lang"),
        ("new --lang rust", "NAME"),
        ("new p --lang cobol", "rust"),
        ("new p --lang rust --from nothing", "least_connections"),
        ("new a/b --lang rust", "a/b"),
        ("build a b", "b"),
        ("build --router http://127.0.0.1:1", "--router"),
    ],
)
def test_what_is_not_understood(
    command: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of(*shlex.split(command)) == 2
    assert told in capsys.readouterr().err
    assert not list(Path().iterdir())


def test_a_reserved_name_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of("new", "round_robin", "--lang", "rust") == 1
    assert "round_robin" in capsys.readouterr().err
    assert not list(Path().iterdir())


# ---- build ----


def test_a_folder_is_built(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = fake_project(Path("p")) / "build" / "my-plugin.wasm"
    assert status_of("build", "p") == 0
    shown = capsys.readouterr()
    assert f"{module}: {module.stat().st_size:,} bytes" in shown.out
    assert not shown.err
    module.unlink()
    monkeypatch.chdir("p")
    assert status_of("build") == 0
    assert Path("build/my-plugin.wasm").exists()


@pytest.mark.parametrize(
    ("script", "more", "told"),
    [
        ("echo 'policy.sh:3: it is wrong'; exit 1", "", "\npolicy.sh:3: it is wrong\n"),
        ("cp module.wasm out.wasm", "[settings]\nmax_memory_bytes = 1", "max_memory_bytes"),
        ("cp module.wasm out.wasm", "need = []", "needs"),
        ("true", "", "out.wasm"),
    ],
)
def test_a_build_that_fails(
    script: str, more: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_project(Path("p"), script=script, more=more)
    assert status_of("build", "p") == 1
    shown = capsys.readouterr()
    assert not shown.out
    assert shown.err.startswith("sgl-router: ")
    assert told in shown.err
    assert "Traceback" not in shown.err


def test_no_folder_of_a_plugin(capsys: pytest.CaptureFixture[str]) -> None:
    for folder in (".", "missing"):
        assert status_of("build", folder) == 1
        assert "plugin new" in capsys.readouterr().err


def test_a_terminal_shows_what_a_tool_says_the_while(tmp_path: Path) -> None:
    """The tool waits until its line has been seen."""
    os.mkfifo(tmp_path / "seen")
    fake_project(
        tmp_path / "p", script="echo 'compiling [1/2]'; cat ../seen; cp module.wasm out.wasm"
    )
    ours, theirs = pty.openpty()
    program = (
        "import sys; from sgl_router.devkit import languages; from tests.devkit.fake import FAKE;"
        "languages.LANGUAGES = (FAKE,); from sgl_router.cli.main import main;"
        "sys.exit(main(['plugin', 'build', 'p']))"
    )
    root = Path(__file__).parents[2]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100", "PYTHONPATH": str(root)}
    command = [sys.executable, "-c", program]
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=theirs, env=environment
    ) as process:
        os.close(theirs)
        written = b""
        while b"compiling [1/2]" not in written:
            written += os.read(ours, 65_536)
        (tmp_path / "seen").write_text("on")
        assert process.wait(60) == 0
    os.close(ours)
    assert b"my-plugin" in written


# ---- load ----


def test_a_folder_is_loaded_as_its_plugin_toml_says(router: FakeRouter) -> None:
    more = "[settings]\nmax_execution_time_ms = 20\ninline_budget_ms = 3\n[settings.config]\na = 1"
    fake_project(Path("p"), more=more)
    assert status_of("build", "p") == 0
    router.answer("PUT /plugins/my-plugin", put_result("loaded"))
    router.answer("PUT /plugins/other", put_result("loaded"))
    assert status_of("load", "p", "--router", router.url) == 0
    settings = '{"inline_budget_ms": 5, "config": {"b": 2}}'
    arguments = ["--name", "other", "--settings", settings]
    assert status_of("load", "p", *arguments, "--router", router.url) == 0
    first, second = router.calls
    assert (first.path, second.path) == ("/plugins/my-plugin", "/plugins/other")
    module = Path("p/build/my-plugin.wasm").read_bytes()
    assert module in first.body
    assert module in second.body
    (sent,) = re.findall(rb"\r\n\r\n(\{.*\})\r\n--", first.body)
    assert orjson.loads(sent) == {
        "max_execution_time_ms": 20,
        "inline_budget_ms": 3,
        "config": {"a": 1},
    }
    (sent,) = re.findall(rb"\r\n\r\n(\{.*\})\r\n--", second.body)
    assert orjson.loads(sent) == {
        "max_execution_time_ms": 20,
        "inline_budget_ms": 5,
        "config": {"b": 2},
    }


def test_a_source_that_is_not_built_is_told(
    router: FakeRouter, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = fake_project(Path("a p"))
    assert status_of("build", "a p") == 0
    router.answer("PUT /plugins/my-plugin", put_result("loaded"))
    saved = (folder / "build" / "my-plugin.wasm").stat().st_mtime + 5
    os.utime(folder / "build.sh", (saved, saved))
    capsys.readouterr()
    assert status_of("load", "a p", "--router", router.url) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert "build.sh" in line and "sgl-router plugin build 'a p'" in line
    assert len(router.calls) == 1, "it is loaded as it is"


def test_a_folder_that_has_not_been_built(
    router: FakeRouter, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_project(Path("a p"))
    assert status_of("load", "a p", "--router", router.url) == 1
    assert "plugin build 'a p'" in capsys.readouterr().err
    assert not router.calls


# ---- help ----


def test_the_help_names_what_the_kit_has() -> None:
    assert set(LANGUAGE_NAMES) == {language.name for language in LANGUAGES}
    assert POLICY_NAMES == POLICIES


@pytest.mark.parametrize(
    ("command", "words"),
    [("new", ["NAME", "--lang", "--from", "--dir"]), ("build", ["FOLDER"])],
)
def test_help_names_each_argument(
    command: str, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of(command, "--help") == 0
    text = capsys.readouterr().out
    for word in words:
        assert re.search(rf"^  {word}\b", text, re.MULTILINE), word
    assert "--router" not in text
    if command == "new":
        for name in (*LANGUAGE_NAMES, *POLICY_NAMES):
            assert re.search(rf"\b{name}\b", text)


def test_each_example_of_the_help_is_understood() -> None:
    parser = argparse.ArgumentParser()
    add_plugin_command(parser.add_subparsers())
    texts = [examples for _, examples in KIT_EXAMPLES.values()]
    lines = re.findall(r"^  sgl-router (plugin .*)$", "\n".join(texts), re.MULTILINE)
    assert len(lines) > len(KIT_EXAMPLES) == len(KIT_COMMANDS)
    for line in lines:
        options, unknown = parser.parse_known_args(shlex.split(line))
        assert (unknown, options.command.prog.split()[-1]) == ([], line.split()[1])


def test_the_help_lists_an_authors_commands_apart(capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of("--help") == 0
    text = capsys.readouterr().out
    _, author, running = re.split(
        r"^(?:an author's|a running router's) commands:$", text, flags=re.MULTILINE
    )
    for name in KIT_COMMANDS:
        assert re.search(rf"^  {name} ", author, re.MULTILINE)
    assert re.search(r"^  load ", running, re.MULTILINE)


def test_the_help_imports_nothing_of_the_kit() -> None:
    program = (
        "import sys\nfrom sgl_router.cli.main import main\n"
        "try:\n    main(['plugin', 'new', '--help'])\nexcept SystemExit:\n"
        "    sys.exit(any(m.startswith(('sgl_router.devkit', 'wasmtime')) for m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.DEVNULL, check=False)
    assert done.returncode == 0
