"""Tools are found, run, and ended with all that they have started."""

import os
import re
import select
import sys
from pathlib import Path

import pytest

from sgl_router.devkit import toolchains
from sgl_router.devkit.toolchains import (
    OUTPUT_LINES,
    check_tools,
    find_module,
    find_program,
    find_version,
    runner,
)
from sgl_router.errors import BuildError
from tests.devkit.fake import FAKE, fake_language


def program(folder: Path, name: str, script: str = "") -> str:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def sh(folder: Path, script: str, **variables: str) -> list[str]:
    """What a shell prints, by line."""
    lines: list[str] = []
    runner(lines.append)(["/bin/sh", "-c", script], folder, variables)
    return lines


def failure(folder: Path, script: str) -> BuildError:
    with pytest.raises(BuildError) as failed:
        sh(folder, script)
    return failed.value


# ---- finding ----


def test_beside_this_python_before_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripts, elsewhere = tmp_path / "scripts", tmp_path / "elsewhere"
    monkeypatch.setattr("sysconfig.get_path", lambda _: str(scripts))
    monkeypatch.setenv("PATH", str(elsewhere))
    assert find_program("tool") is None
    on_path = program(elsewhere, "tool")
    assert find_program("tool") == [on_path]
    beside = program(scripts, "tool")
    assert find_program("tool") == [beside]
    Path(beside).chmod(0o644)
    assert find_program("tool") == [on_path]


@pytest.mark.parametrize(
    ("script", "fits"),
    [
        ("echo tool 1.24.1", True),
        ("echo tool 2.0", True),
        ("echo tool 1.23", False),
        ("echo tool devel", False),
        ("printf '\\377'", False),
        ("echo tool 1.24; exit 3", False),
        ("exec sleep 1000", False),
    ],
)
def test_a_program_that_is_new_enough(
    script: str, fits: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "sleep" in script:
        monkeypatch.setattr(toolchains, "_SECS_TO_ANSWER", 0.05)
    monkeypatch.setattr("sysconfig.get_path", lambda _: str(tmp_path / "scripts"))
    made = program(tmp_path / "scripts", "tool", script)
    found = find_version("tool", "--version", re.compile(r"tool (\d+)\.(\d+)"), (1, 24))
    assert found == ([made] if fits else None)


def test_a_program_that_does_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sysconfig.get_path", lambda _: str(tmp_path / "scripts"))
    path = Path(program(tmp_path / "scripts", "tool"))
    path.write_bytes(b"#!/nowhere/sh\n")
    assert find_version("tool", "--version", re.compile(r"(\d+)"), (1,)) is None


def test_packages_that_are_programs() -> None:
    assert find_module("pytest") == [sys.executable, "-m", "pytest"]
    assert find_module("no_such_package") is None


def test_what_is_missing_is_told_with_the_command_that_installs_it() -> None:
    check_tools(FAKE)
    with pytest.raises(BuildError) as missing:
        check_tools(fake_language("odd", tool=None))
    assert missing.value.tool == "a shell"
    assert missing.value.command == ()
    assert all(word in str(missing.value) for word in ("odd", "a shell", "apt install dash"))


# ---- running ----


def test_where_and_with_what_a_tool_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "FORCE_COLOR"):
        monkeypatch.setenv(variable, "leaked")
    monkeypatch.setenv("KEPT", "kept")
    monkeypatch.setenv("RUST_BACKTRACE", "full")
    lines = sh(tmp_path, "pwd; env; cat", GOOS="wasip1")
    assert lines[0] == str(tmp_path.resolve())
    assert {"KEPT=kept", "GOOS=wasip1", "RUST_BACKTRACE=0"} <= set(lines)
    assert not any("leaked" in line for line in lines)


def test_a_tool_is_not_given_what_is_typed(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.write(writing, b"typed\n")
    os.close(writing)
    kept = os.dup(0)
    os.dup2(reading, 0)
    try:
        assert sh(tmp_path, "cat") == []
    finally:
        os.dup2(kept, 0)
        os.close(kept)
        os.close(reading)


def test_each_line_is_told_and_safe_to_show(tmp_path: Path) -> None:
    script = r"printf 'one\r\n\033[31mred\033[0m\n\tü\n' >&2; printf '\377\n'; printf last"
    assert sh(tmp_path, script) == ["one", r"\x1b[31mred\x1b[0m", "        ü", "\ufffd", "last"]


def test_a_failure_tells_the_end_of_what_was_said(tmp_path: Path) -> None:
    failed = failure(tmp_path, "i=0; while [ $i -lt 500 ]; do echo l$i; i=$((i+1)); done; exit 3")
    assert failed.output.splitlines() == [f"l{i}" for i in range(500 - OUTPUT_LINES, 500)]
    assert failed.tool == "sh"
    assert failed.command[0] == "/bin/sh"
    assert "status 3" in str(failed)
    assert failed.output in str(failed)
    assert "exit 3" in str(failed), "the command"


def test_a_silent_failure_and_a_signal(tmp_path: Path) -> None:
    assert "status 7" in str(failure(tmp_path, "exit 7"))
    assert "signal 9" in str(failure(tmp_path, "kill -9 $$"))


def test_a_line_without_an_end(tmp_path: Path) -> None:
    failed = failure(tmp_path, "head -c 1000000 /dev/zero | tr '\\0' x; exit 1")
    assert len(failed.output) < 150_000


def test_what_cannot_be_started(tmp_path: Path) -> None:
    for command, folder in (("./no", tmp_path), ("/bin/sh", tmp_path / "missing")):
        with pytest.raises(BuildError) as failed:
            runner()([command], folder, {})
        assert command in str(failed.value)


@pytest.mark.parametrize(
    "at_first", ["", "trap '' TERM; "], ids=["they end when asked", "they do not"]
)
def test_what_is_broken_off_leaves_nothing_running(
    at_first: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each process holds a pipe open, whose end is read once all of them are gone."""
    monkeypatch.setattr(toolchains, "_SECS_TO_LEAVE", 0.05)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    end = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)

    def interrupt(line: str) -> None:
        assert line == "running"
        raise KeyboardInterrupt

    script = f"{at_first}exec 3>pipe; sleep 1000 & echo held >&3; echo running; sleep 1000"
    try:
        with pytest.raises(KeyboardInterrupt):
            runner(interrupt)(["/bin/sh", "-c", script], tmp_path, {})
        assert os.read(end, 100) == b"held\n"
        assert select.select([end], [], [], 20)[0], "somebody still holds it"
        assert os.read(end, 100) == b"", "the end"
    finally:
        os.close(end)
