"""Finds the programs that plugins are built with, and runs them."""

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from sgl_router.devkit.language import Language, Run
from sgl_router.errors import BuildError

OUTPUT_LINES = 60
"""Of a tool's output that are told where it fails: its end, where compilers say what is wrong."""

_LINE_BYTES = 2_000
_SECS_TO_LEAVE = 5.0
_SECS_TO_ANSWER = 10.0

_DROPPED = frozenset(
    {
        "RUSTFLAGS",
        "CARGO_ENCODED_RUSTFLAGS",
        "CARGO_BUILD_RUSTFLAGS",
        "CARGO_BUILD_TARGET",
        "CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_RUSTFLAGS",
        "FORCE_COLOR",
        "CLICOLOR_FORCE",
    }
)
"""Variables that would replace what a plugin's folder says of how it is built."""

_PLAIN = {"NO_COLOR": "1", "CARGO_TERM_COLOR": "never", "RUST_BACKTRACE": "0"}
"""A tool in Rust that fails would print where in itself it was, and push out why."""


def beside_python(program: str) -> Path | None:
    """A program that is installed in the environment of this Python."""
    found = shutil.which(program, path=sysconfig.get_path("scripts"))
    return None if found is None else Path(found)


def find_program(program: str) -> list[str] | None:
    """A program beside this Python, else on the PATH."""
    found = beside_python(program) or shutil.which(program)
    return None if found is None else [str(found)]


def find_version(
    program: str, argument: str, pattern: re.Pattern[str], oldest: Sequence[int]
) -> list[str] | None:
    """A program that says that it is new enough; see `find_program`.

    Args:
        argument: with which it tells its version.
        pattern: its groups are numbers, in what it says first.
        oldest: that will do, as many numbers.
    """
    command = find_program(program)
    said = None if command is None else answer_of([*command, argument])
    version = None if said is None else pattern.match(said)
    if version is None or tuple(map(int, version.groups())) < tuple(oldest):
        return None
    return command


def answer_of(command: Sequence[str]) -> str | None:
    """What a program prints that answers at once; None where it fails or does not."""
    try:
        asked = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=_SECS_TO_ANSWER,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return None if asked.returncode else asked.stdout


def find_module(module: str) -> list[str] | None:
    """A program that is a package of this Python: `python -m module`."""
    if importlib.util.find_spec(module) is None:
        return None
    return [sys.executable, "-m", module]


def check_tools(language: Language) -> None:
    """Raises BuildError where this machine lacks a tool, with the command that installs it."""
    missing = [tool for tool in language.tools if tool.find() is None]
    if missing:
        raise BuildError(
            "\n".join(
                f"plugins in {language.name} are built with {tool.name}, which this machine lacks; "
                f"install it: {tool.install}"
                for tool in missing
            ),
            tool=missing[0].name,
        )


def runner(progress: Callable[[str], None] | None = None) -> Run:
    """A way to run tools, to their end however long they take.

    Args:
        progress: told each line that they print, safe for a terminal.
    """

    def run(command: Sequence[str], folder: Path, variables: Mapping[str, str]) -> None:
        output: deque[str] = deque(maxlen=OUTPUT_LINES)
        with _start(command, folder, variables) as process:
            try:
                assert process.stdout is not None
                while line := process.stdout.readline(_LINE_BYTES):
                    output.append(_safe(line))
                    if progress is not None:
                        progress(output[-1])
                status = process.wait()
            except BaseException:
                _end(process)
                raise
        if status:
            raise _failure(command, folder, status, output)

    return run


def _start(
    command: Sequence[str], folder: Path, variables: Mapping[str, str]
) -> "subprocess.Popen[bytes]":
    inherited = {key: value for key, value in os.environ.items() if key not in _DROPPED}
    try:
        return subprocess.Popen(
            command,
            cwd=folder,
            env={**inherited, **_PLAIN, **variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a group of its own, which is ended as a whole
        )
    except OSError as error:
        raise BuildError(
            f"cannot start {command[0]!r} in {str(folder)!r}: {error.strerror}",
            tool=command[0],
            command=command,
        ) from error


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End a program with all that it has started: asked first, then not asked."""
    _signal(process, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(_SECS_TO_LEAVE)
    _signal(process, signal.SIGKILL)
    process.wait()


def _signal(process: "subprocess.Popen[bytes]", number: signal.Signals) -> None:
    with suppress(ProcessLookupError):  # all of the group have ended
        os.killpg(process.pid, number)


def _failure(
    command: Sequence[str], folder: Path, status: int, output: Sequence[str]
) -> BuildError:
    how = f"ended with status {status}" if status > 0 else f"was ended by signal {-status}"
    said = ", saying:" if output else " and said nothing"
    tool = command[2] if command[1:2] == ["-m"] else Path(command[0]).name
    return BuildError(
        f"{tool} {how} in {str(folder)!r}{said}",
        tool=tool,
        command=command,
        output="\n".join(output),
    )


def _safe(line: bytes) -> str:
    """One line without what would move a terminal's cursor or change its colours."""
    text = line.decode("utf-8", "replace").rstrip("\r\n").expandtabs()
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii")
        for char in text
    )
