"""What a language that plugins are written in is to the kit."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Tool:
    """A program that a language is built with.

    Attributes:
        name: as an author knows it.
        install: the one command that installs it.
        find: its command's first words, or None where this machine does not have it.
    """

    name: str
    install: str
    find: Callable[[], Sequence[str] | None]

    def command(self) -> Sequence[str]:
        """Its command's first words, of a tool that was looked for before (`check_tools`)."""
        command = self.find()
        assert command is not None, "nothing is built without its tools"
        return command


Run = Callable[[Sequence[str], Path, Mapping[str, str]], None]
"""Runs a command in a folder, with variables added to the environment. Raises BuildError with what
the command printed where it fails."""


@dataclass(frozen=True, slots=True)
class Language:
    """One language.

    Attributes:
        name: as in `--lang`, and the folder of its files under `templates`.
        policy_file: where the policy stands in a plugin's folder; all else there is made once.
        tools: what building takes.
        build: of a plugin's folder, its name and a way to run commands: builds the module, and
            returns where it is; the manifest is not in it yet.
        settings: with what its modules are loaded where the defaults do not do, in the form of a
            plugin's settings (`max_memory_bytes`, `allowed_syscalls`).
    """

    name: str
    policy_file: str
    tools: Sequence[Tool]
    build: Callable[[Path, str, Run], Path]
    settings: Mapping[str, Any] = field(default_factory=dict)
